"""Residual networks whose blocks contract whatever their weights are: the class for which convergence is proved."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skip_conditioning.models.arms import Arm, choose_arm
from skip_conditioning.models.errors import check_count, check_real
from skip_conditioning.models.initialisation import initialise
from skip_conditioning.models.shortcuts import IdentityShortcut, PreActivationBlock, ScaledShortcut


@dataclass(frozen=True)
class WeightArm(Arm):
    """An arm that also says whether the blocks' weights are normalised.

    Attributes:
        normalised: Whether they are.
    """

    normalised: bool = True


def _no_skip(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The zero map, for batches with any leading dimensions."""
    return ScaledShortcut(IdentityShortcut(), 0.0)


def _identity(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return IdentityShortcut()


ARMS: dict[str, Arm] = {
    "chain": WeightArm(_no_skip),
    "residual": WeightArm(_identity),
    "unnormalised": WeightArm(_identity, normalised=False),
}
"""The arms: blocks without a skip, with one, and with one but plain weights."""


def build_contractive_mlp(
    arm: str | Arm = "residual",
    *,
    width: int = 784,
    depth: int = 3,
    num_classes: int = 10,
    gain: float = 0.5,
    eps: float = 1.0,
) -> nn.Sequential:
    r"""Build the chain ``flatten → blocks.0 → … → blocks.{depth−1} → head``.

    Block l is ``h ↦ s·h + γ Ŵ_l tanh(h)`` with ``Ŵ = W / √(ε + |W|_F²)``; the head is ``W_L h``, without a bias and
    unbounded. As ``‖Ŵ‖ < 1``, a branch's Jacobian is shorter than γ everywhere, and with s = 1 and γ < 1 a block's
    singular values lie in ``(1 − γ, 1 + γ)``. There is no stem: the first block acts on the flattened input.

    All parameters may have leading dimensions, and the outputs then have them too: with stacked weights of shapes
    ``(R, …)``, `torch.func.functional_call` evaluates R networks on one batch, ``(N, …)`` to ``(R, N, num_classes)``.

    Source: docs/paper.md §2.7.

    Args:
        arm: ``residual`` (s = 1), ``chain`` (s = 0), ``unnormalised`` (s = 1, ``W`` in place of ``Ŵ``), or an `Arm`,
            whose blocks are normalised.
        width: Entries of one flattened input, and of all hidden layers.
        depth: Number of blocks.
        num_classes: Number of logits.
        gain: γ.
        eps: ε.

    Returns:
        The network, for inputs ``(N, …)`` of ``width`` entries each.

    Raises:
        ModelOptionError: An arm or an option's value does not exist.
    """
    for option, count in {"width": width, "depth": depth, "num_classes": num_classes}.items():
        check_count(option, count)
    check_real("gain", gain, positive=True)
    check_real("eps", eps, positive=True)
    chosen = choose_arm("contractive-mlp", arm, ARMS)
    norm_eps = None if isinstance(chosen, WeightArm) and not chosen.normalised else eps
    blocks = [
        PreActivationBlock(
            nn.Tanh(),
            ContractiveLinear(width, gain=gain, eps=norm_eps),
            chosen.shortcut(width, width, 1),
            output_gain=chosen.output_gain,
        )
        for _ in range(depth)
    ]
    head = StackedLinear(width, num_classes)
    model = nn.Sequential(OrderedDict(flatten=nn.Flatten(), blocks=nn.Sequential(*blocks), head=head))
    initialise(model, chosen.initialisation)
    return model


class StackedLinear(nn.Linear):
    """A linear layer without a bias, whose weight may have leading dimensions.

    Args:
        in_features: Columns of the weight.
        out_features: Rows of the weight.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x Wᵀ``: inputs ``(…, N, in_features)`` and weights ``(…, out_features, in_features)`` are broadcast."""
        return x @ self.weight.mT


class ContractiveLinear(StackedLinear):
    """A square linear layer ``γ Ŵ`` shorter than γ: ``Ŵ = W / √(ε + |W|_F²)``.

    The derivative of ``Ŵ`` in ``W`` is at most ``ε^{-1/2}``, however large ``W`` is.

    Args:
        width: Rows and columns of the weight.
        gain: γ.
        eps: ε; None leaves the weight as it is.
    """

    def __init__(self, width: int, *, gain: float, eps: float | None) -> None:
        super().__init__(width, width)
        self.gain, self.eps = gain, eps

    def forward(self, x: Tensor) -> Tensor:
        """``γ x Ŵᵀ``, with broadcasting as for `StackedLinear`."""
        if self.eps is None:
            return self.gain * super().forward(x)
        squared_length = self.weight.square().sum(dim=(-2, -1), keepdim=True)
        return self.gain * torch.rsqrt(self.eps + squared_length) * super().forward(x)

    def extra_repr(self) -> str:
        """The layer's description, γ and ε, for ``print(model)``."""
        return f"{super().extra_repr()}, gain={self.gain}, eps={self.eps}"
