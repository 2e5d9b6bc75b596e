"""The small convolutional network of the paper's MNIST experiment (PAPER.md §3)."""

from collections import OrderedDict
from functools import partial

from torch import nn

from models.arms import Arm, chain_shortcut, choose_arm, modified_shortcut, residual_shortcut
from models.blocks import PreActivationBlock
from models.initialisation import initialise

ARMS: dict[str, Arm] = {
    "chain": Arm(partial(chain_shortcut, bias=True)),
    "residual": Arm(partial(residual_shortcut, bias=True)),
    "modified": Arm(partial(modified_shortcut, bias=True)),
}
"""Arms: no skip; identity and convolution skips; the same with ``3·AvgPool3(o)`` added to the convolution."""


def build_paper_mnist(arm: str | Arm = "residual") -> nn.Sequential:
    r"""Build the paper's MNIST network, the chain ``stem → block1 → block2 → head``.

    ========  ==============================================================================  ================
    module    layers                                                                          output
    ========  ==============================================================================
    ================ (input)
    ``1 × 28 × 28`` stem      conv 5×5, average pool 2
    ``5 × 12 × 12`` block1    BN-ReLU-conv5×5-BN-ReLU-conv5×5 (pad 2); shortcut on x
    ``5 × 12 × 12`` block2    o = BN-ReLU(x), conv3×3/2 (pad 1)-BN-ReLU-conv3×3 (no pad); shortcut on o
    ``20 × 4 × 4`` head      flatten to 320, BN-ReLU-linear
    ``10`` ========  ==============================================================================
    ================

    All convolutions have biases. The shortcut convolution of ``block2`` (1×1, stride 3) exists in every
    arm and is unused in ``chain``. In ``modified`` the pooled identity ``3·AvgPool3`` acts on o, as the
    convolution does, with 7 zero channels before and 8 after. The map ``tail`` of ``stem`` is the
    Jacobian that the paper measures: ``320 × 23040`` for a batch of 32, batch norm in train mode.

    Args:
        arm: A name in `ARMS`, or an `Arm`.

    Returns:
        The network, with its arm's initialisation.

    Raises:
        ModelOptionError: There is no such arm.
    """
    chosen = choose_arm("paper-mnist", arm, ARMS)
    block1 = PreActivationBlock(
        preactivation=nn.Sequential(nn.BatchNorm2d(5), nn.ReLU()),
        branch=nn.Sequential(
            nn.Conv2d(5, 5, 5, padding=2), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 5, 5, padding=2)
        ),
        shortcut=chosen.shortcut(5, 5, 1),
    )
    block2 = PreActivationBlock(
        preactivation=nn.Sequential(nn.BatchNorm2d(5), nn.ReLU()),
        branch=nn.Sequential(
            nn.Conv2d(5, 20, 3, stride=2, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 20, 3)
        ),
        shortcut=chosen.shortcut(5, 20, 3),
        shortcut_reads="preactivation",
    )
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Conv2d(1, 5, 5), nn.AvgPool2d(2)),
            block1=block1,
            block2=block2,
            head=nn.Sequential(nn.Flatten(), nn.BatchNorm1d(320), nn.ReLU(), nn.Linear(320, 10)),
        )
    )
    initialise(model, chosen.initialisation)
    return model
