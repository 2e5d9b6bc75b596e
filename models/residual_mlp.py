"""A residual multilayer perceptron of any depth and width, small enough to check the theory on."""

from collections import OrderedDict
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from skip_conditioning.models.arms import (
    RESCALED_GAIN,
    Arm,
    choose_arm,
    dosed_arm,
    gain_shortcut,
    low_rank_shortcut,
    orthogonal_shortcut,
    seeded_by_block,
)
from skip_conditioning.models.errors import check_choice, check_count, check_real
from skip_conditioning.models.initialisation import InitialisationName, initialise, initialise_between
from skip_conditioning.models.shortcuts import NoShortcut, PreActivationBlock, ShortcutFactory

ActivationName = Literal["relu", "tanh", "gelu", "softplus", "identity"]
NormaliserName = Literal["batch", "weight", "layer"]

ACTIVATIONS: dict[ActivationName, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}
"""Activations, by name."""


def arms_with_gain(skip_gain: float) -> dict[str, Arm]:
    """The arms, made anew for each network, as the random maps of the last two are numbered by its blocks.

    - ``chain``: no skips; ``residual``: skips ``α·x`` of the given gain α.
    - ``gain-0.25``, ``gain-0.5``, ``gain-2``: skips of these gains, whatever ``skip_gain`` is.
    - ``chain-…``, ``residual-…``: these two with the initialisation ``orthogonal``, ``dirac`` or ``looks-linear``. The
      last needs an even width; `models.arms` says why ``dirac`` conditions badly.
    - ``rescaled``: ``(g(x) + x)/√2``, a skip with the chain's variance of activations;
      `models.arms.RESCALED_GAIN` says how near its Jacobian comes to the chain's.
    - ``orthogonal``: a fixed random orthogonal map in place of the identity, another in each block.
    - ``rank-deficient``: a fixed random partial isometry of an eighth of the width in its place.
    """

    def skip(gain: float) -> ShortcutFactory:
        return partial(gain_shortcut, gain=gain)

    return {
        "chain": Arm(NoShortcut),
        "gain-0.25": Arm(skip(0.25)),
        "gain-0.5": Arm(skip(0.5)),
        "residual": Arm(skip(skip_gain)),
        "gain-2": Arm(skip(2.0)),
        "chain-orthogonal": Arm(NoShortcut, "orthogonal"),
        "chain-dirac": Arm(NoShortcut, "dirac"),
        "chain-looks-linear": Arm(NoShortcut, "looks-linear"),
        "residual-orthogonal": Arm(skip(skip_gain), "orthogonal"),
        "residual-dirac": Arm(skip(skip_gain), "dirac"),
        "residual-looks-linear": Arm(skip(skip_gain), "looks-linear"),
        "rescaled": Arm(skip(1.0), output_gain=RESCALED_GAIN),
        "orthogonal": Arm(seeded_by_block(orthogonal_shortcut)),
        "rank-deficient": Arm(seeded_by_block(low_rank_shortcut)),
    }


def build_residual_mlp(
    arm: str | Arm = "residual",
    *,
    in_features: int = 784,
    width: int = 64,
    depth: int = 8,
    num_classes: int = 10,
    activation: ActivationName = "relu",
    normaliser: NormaliserName | None = None,
    eps: float = 1e-5,
    skip_gain: float = 1.0,
    initialisation: InitialisationName = "default",
) -> nn.Sequential:
    r"""Build a residual MLP, the chain ``stem → blocks.0 → … → blocks.{depth−1} → head``.

    The stem flattens its input and is linear; block l is ``x ↦ W_l φ(norm(x)) + b_l + α x``; the head is
    ``W φ(norm(x)) + b``. With ``normaliser="weight"`` there is no norm, the stem and the blocks are
    `WeightNormLinear` and the last layer is unbounded, as in the class of docs/paper.md §2.7.

    Args:
        arm: ``chain`` (α = 0), ``residual`` (α = ``skip_gain``), an intervention of docs/paper.md §4 (`arms_with_gain`
            describes them all), one of `models.arms.DOSES` such as ``gain-0.37``, or an `Arm`.
        in_features: Entries of one flattened input.
        width: Width of all hidden layers.
        depth: Number of blocks.
        num_classes: Number of logits.
        activation: φ.
        normaliser: ``None``, ``batch``, ``weight`` or ``layer``.
        eps: ε of the normaliser.
        skip_gain: α in the arms ``residual`` and ``residual-…``; the others have their own.
        initialisation: Applied after the arm's own; see `models.initialisation`.

    Returns:
        The network, for inputs ``(N, …)`` of ``in_features`` entries each.

    Raises:
        ModelOptionError: An arm, an option's value, or their combination does not exist.
    """
    sizes = {"in_features": in_features, "width": width, "depth": depth, "num_classes": num_classes}
    for option, count in sizes.items():
        check_count(option, count)
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("normaliser", normaliser, (None, *get_args(NormaliserName)))
    check_real("eps", eps, positive=True)
    check_real("skip_gain", skip_gain)
    dosed = dosed_arm(arm, lambda gain: partial(gain_shortcut, gain=gain), NoShortcut) if isinstance(arm, str) else None
    chosen = dosed or choose_arm("residual-mlp", arm, arms_with_gain(skip_gain))

    def preactivation() -> nn.Sequential:
        norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
        norm = [norms[normaliser](width, eps=eps)] if normaliser in norms else []
        return nn.Sequential(*norm, ACTIVATIONS[activation]())

    def linear(fan_in: int) -> nn.Linear:
        return WeightNormLinear(fan_in, width, eps=eps) if normaliser == "weight" else nn.Linear(fan_in, width)

    stem = nn.Sequential(nn.Flatten(), linear(in_features))
    blocks = [
        PreActivationBlock(
            preactivation(), linear(width), chosen.shortcut(width, width, 1), output_gain=chosen.output_gain
        )
        for _ in range(depth)
    ]
    head = nn.Sequential(preactivation(), nn.Linear(width, num_classes))
    if chosen.logit_gain != 1:
        head.append(Gain(chosen.logit_gain))
    model = nn.Sequential(OrderedDict(stem=stem, blocks=nn.Sequential(*blocks), head=head))
    if chosen.towards is None:
        initialise(model, chosen.initialisation)
    else:
        initialise_between(model, chosen.initialisation, *chosen.towards)
    initialise(model, initialisation)  # "default" changes nothing
    return model


class Gain(nn.Module):
    """A fixed factor.

    Args:
        gain: The factor.
    """

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """The input times the factor."""
        return self.gain * x

    def extra_repr(self) -> str:
        """The factor, for ``print(model)``."""
        return f"gain={self.gain}"


class WeightNormLinear(nn.Linear):
    r"""A linear layer whose rows are normalised smoothly: ``w ↦ w / √(ε + |w|²)``.

    No effective row is longer than 1, and its derivative in ``w`` is at most ``ε^{-1/2}``, however large
    ``w`` is. Unlike `torch.nn.utils.parametrizations.weight_norm` it has no trainable length.

    Source: docs/paper.md §2.5.

    Args:
        in_features: Columns of the weight.
        out_features: Rows of the weight.
        eps: ε.
    """

    def __init__(self, in_features: int, out_features: int, *, eps: float) -> None:
        super().__init__(in_features, out_features)
        self.eps = eps

    def effective_weight(self) -> Tensor:
        """The normalised weight, shape ``(out_features, in_features)``."""
        return self.weight * torch.rsqrt(self.eps + self.weight.square().sum(dim=1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised linear map and the bias, shape ``(N, out_features)``."""
        return nn.functional.linear(x, self.effective_weight(), self.bias)

    def extra_repr(self) -> str:
        """The layer's description and ε, for ``print(model)``."""
        return f"{super().extra_repr()}, eps={self.eps}"
