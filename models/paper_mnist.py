"""The small convolutional network of the paper's MNIST experiment (docs/paper.md §3)."""

from collections import OrderedDict
from functools import partial

from torch import nn

from skip_conditioning.models.arms import (
    RESCALED_GAIN,
    Arm,
    chain_shortcut,
    choose_arm,
    gain_shortcut,
    isometry_shortcut,
    modified_shortcut,
    orthogonal_convolution_shortcut,
    orthogonal_shortcut,
    rank_deficient_shortcut,
    residual_shortcut,
)
from skip_conditioning.models.initialisation import initialise
from skip_conditioning.models.shortcuts import PreActivationBlock

_CHAIN, _RESIDUAL = partial(chain_shortcut, bias=True), partial(residual_shortcut, bias=True)

ARMS: dict[str, Arm] = {
    "chain": Arm(_CHAIN),
    "residual": Arm(_RESIDUAL),
    "modified": Arm(partial(modified_shortcut, bias=True)),
    "gain-0.25": Arm(partial(gain_shortcut, gain=0.25, bias=True)),
    "gain-0.5": Arm(partial(gain_shortcut, gain=0.5, bias=True)),
    "gain-2": Arm(partial(gain_shortcut, gain=2.0, bias=True)),
    "chain-orthogonal": Arm(_CHAIN, "orthogonal"),
    "chain-dirac": Arm(_CHAIN, "dirac"),
    "residual-orthogonal": Arm(_RESIDUAL, "orthogonal"),
    "residual-dirac": Arm(_RESIDUAL, "dirac"),
    "rescaled": Arm(_RESIDUAL, output_gain=RESCALED_GAIN),
    "orthogonal": Arm(partial(orthogonal_shortcut, bias=True)),
    "rank-deficient": Arm(partial(rank_deficient_shortcut, bias=True)),
    "isometry": Arm(partial(isometry_shortcut, bias=True)),
    "orthogonal-conv": Arm(partial(orthogonal_convolution_shortcut, bias=True)),
}
"""The arms: the paper's three, then the interventions of docs/paper.md §4.

- ``chain``: no skip; ``residual``: the identity in ``block1``, a convolution in ``block2``; ``modified``: the same with
  ``3·AvgPool3(o)`` added to the convolution.
- ``gain-0.25``, ``gain-0.5``, ``gain-2``: as ``residual``, both shortcuts times this gain.
- ``chain-orthogonal``, ``residual-orthogonal``: with delta-orthogonal weights.
- ``chain-dirac``, ``residual-dirac``: with identity weights in the convolutions that keep the number of channels.
  (``looks-linear`` needs an even number of channels, and there are 5.)
- ``rescaled``: as ``residual``, the outputs of both blocks divided by √2. Everything behind a block reads it through
  batch norm, so that this is the function ``residual`` save for batch norm's ε: a null control, not an intervention.
- ``orthogonal``: as ``residual``, with a fixed random orthogonal map of the channels in place of the identity.
- ``isometry``, ``rank-deficient``: as ``modified``, with a fixed random partial isometry of the pool's rank (5 for each
  output pixel), or of rank 1, in place of the pool.
- ``orthogonal-conv``: as ``residual``, the weight of the shortcut convolution initially semi-orthogonal.
"""


def build_paper_mnist(arm: str | Arm = "residual") -> nn.Sequential:
    r"""Build the paper's MNIST network, the chain ``stem → block1 → block2 → head``.

    ==========  ============================================================================  ===============
    module      layers                                                                        output
    ==========  ============================================================================  ===============
    ``stem``    conv 5×5, average pool 2                                                      ``5 × 12 × 12``
    ``block1``  BN-ReLU-conv5×5-BN-ReLU-conv5×5 (pad 2); shortcut on x                        ``5 × 12 × 12``
    ``block2``  o = BN-ReLU(x), conv3×3/2 (pad 1)-BN-ReLU-conv3×3 (no pad); shortcut on o     ``20 × 4 × 4``
    ``head``    flatten to 320, BN-ReLU-linear                                                ``10``
    ==========  ============================================================================  ===============

    All convolutions have biases. The shortcut convolution of ``block2`` (1×1, stride 3) exists in every
    arm and is unused in ``chain…``. In ``modified`` the pooled identity ``3·AvgPool3`` acts on o, as the
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
        output_gain=chosen.output_gain,
    )
    block2 = PreActivationBlock(
        preactivation=nn.Sequential(nn.BatchNorm2d(5), nn.ReLU()),
        branch=nn.Sequential(
            nn.Conv2d(5, 20, 3, stride=2, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 20, 3)
        ),
        shortcut=chosen.shortcut(5, 20, 3),
        shortcut_reads="preactivation",
        output_gain=chosen.output_gain,
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
