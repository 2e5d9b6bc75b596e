"""Rigorous constants of the class `models.contractive_mlp`, from norms and singular values of weights and features.

Block l is ``H_l = s·H_{l−1} + γ Φ_{l−1} Ŵ_lᵀ`` with ``Φ = tanh(H)``, the head ``F = H_B W_Lᵀ``; batches are ``(N, d)``.
The features times a step V of the weights are ``|Φ Vᵀ|_F ≤ ‖Φ‖ |V|_F``, so that their spectral norm is what counts.
All numbers come for R networks at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skip_conditioning.diagnostics.theory.curvature_bounds import LayerConstants

#: ``max ‖D²n‖`` of ``n(v) = v / √(1 + |v|²)``, attained at ``|v| = 1/2``.
NORMALISER_CURVATURE = 48 / (25 * math.sqrt(5))
#: ``max |tanh''|``.
TANH_CURVATURE = 4 / (3 * math.sqrt(3))


@dataclass(frozen=True)
class ContractiveClass:
    """Which networks: all weights, at fixed s, γ and ε.

    Attributes:
        skip: s.
        gain: γ.
        eps: ε of the normaliser; None for plain weights.
    """

    skip: float
    gain: float
    eps: float | None


@dataclass(frozen=True)
class Spectra:
    """Ranges of norms and singular values of R networks of B blocks: at some weights, or all within a distance.

    Attributes:
        lengths: Least and greatest ``|W_l|_F`` of the blocks, shape ``(B, R)`` each.
        weights: Greatest ``‖W_l‖``, shape ``(B, R)``.
        features: Least and greatest singular value of ``Φ_0 … Φ_{B−1}, H_B``, shape ``(B + 1, R)`` each; the least is
            0 where there are more samples than features.
        head: Least and greatest singular value of ``W_L``, shape ``(R,)`` each; the least is 0 where there are more
            classes than features.
    """

    lengths: tuple[Tensor, Tensor]
    weights: Tensor
    features: tuple[Tensor, Tensor]
    head: tuple[Tensor, Tensor]


def spectra_of(blocks: Sequence[Tensor], head: Tensor, features: Sequence[Tensor]) -> Spectra:
    """The spectra at given weights.

    Args:
        blocks: ``W_1 … W_B``, shape ``(R, d, d)`` each.
        head: ``W_L``, shape ``(R, K, d)``.
        features: ``H_0``, shape ``(N, d)``, and ``H_1 … H_B``, shape ``(R, N, d)`` each.
    """
    *inner, last = torch.broadcast_tensors(*features)
    stacked = torch.stack(list(blocks))
    length = torch.linalg.vector_norm(stacked, dim=(-2, -1))
    return Spectra(
        lengths=(length, length),
        weights=singular_value_range(stacked)[1],
        features=singular_value_range(torch.stack([*(H.tanh() for H in inner), last])),
        head=singular_value_range(head),
    )


def widened(family: ContractiveClass, spectra: Spectra, motion: Tensor) -> Spectra:
    """The spectra at all weights within a distance: a singular value moves no further than its matrix (Weyl).

    Args:
        family: The class.
        spectra: At the centre.
        motion: How far the weights of the blocks and of the head may be in Frobenius norm, shape ``(B + 1, R)``.
    """
    low, high = spectra.lengths
    near = Spectra(
        ((low - motion[:-1]).clamp(min=0), high + motion[:-1]),
        spectra.weights + motion[:-1],
        spectra.features,
        ((spectra.head[0] - motion[-1]).clamp(min=0), spectra.head[1] + motion[-1]),
    )
    slope, weight = family.gain * _slopes(family, near)[1], family.gain * _weight(family, near)
    moved = [torch.zeros_like(motion[0])]  # of H_l; tanh moves no further
    for l in range(len(slope)):
        features = spectra.features[1][l] + moved[-1]
        moved.append((family.skip + weight[l]) * moved[-1] + slope[l] * features * motion[l])
    shifts = torch.stack(moved)
    return replace(near, features=((spectra.features[0] - shifts).clamp(min=0), spectra.features[1] + shifts))


def normaliser_slope(length: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Least and greatest singular value of the derivative of ``v ↦ v/√(ε + |v|²)`` at a length of v.

    Along v it is ``ε / (ε + |v|²)^{3/2}``, across it ``(ε + |v|²)^{-1/2}``.
    """
    across = torch.rsqrt(eps + length.square())
    return eps * across**3, across


def normaliser_curvature(length: Tensor, eps: float) -> Tensor:
    """Upper bound of ``‖D²‖`` of ``v ↦ v/√(ε + |v|²)`` wherever v has at least this length.

    With ``q² = 1/(1 + r²)`` and ``r = |v|/√ε`` it is ``2q²/√3`` for ``r² ≥ 1/2`` and ``3rq⁵`` below, where that is
    the smaller and at most `NORMALISER_CURVATURE`. Both are divided by ε.
    """
    return (2 / math.sqrt(3) / (eps + length.square())).clamp(max=NORMALISER_CURVATURE / eps)


def _slopes(family: ContractiveClass, spectra: Spectra) -> tuple[Tensor, Tensor]:
    """Least and greatest singular value of ``DŴ_l``, shape ``(B, R)`` each."""
    if family.eps is None:
        return torch.ones_like(spectra.weights), torch.ones_like(spectra.weights)
    shortest, longest = spectra.lengths
    return normaliser_slope(longest, family.eps)[0], normaliser_slope(shortest, family.eps)[1]


def _weight(family: ContractiveClass, spectra: Spectra) -> Tensor:
    """Upper bound of ``‖Ŵ_l‖``, shape ``(B, R)``."""
    if family.eps is None:
        return spectra.weights
    return (spectra.weights * normaliser_slope(spectra.lengths[0], family.eps)[1]).clamp(max=1)


def layer_constants(family: ContractiveClass, spectra: Spectra) -> list[LayerConstants]:
    """Constants of the B blocks and the head wherever the spectra hold; tensors of shape ``(R,)``, or numbers."""
    slope, weight, features = _slopes(family, spectra)[1], _weight(family, spectra), spectra.features[1]
    bend = torch.zeros_like(slope) if family.eps is None else normaliser_curvature(spectra.lengths[0], family.eps)
    blocks = (
        family.skip + family.gain * weight,
        family.gain * slope * features[:-1],
        family.gain * bend * features[:-1],
        family.gain * slope,
        family.gain * TANH_CURVATURE * weight,
    )
    of_blocks = [LayerConstants(*values) for values in zip(*blocks, strict=True)]
    return [*of_blocks, LayerConstants(spectra.head[1], features[-1], 0.0, 1.0, 0.0)]


def regularities(family: ContractiveClass, spectra: Spectra) -> Tensor:
    """Lower bounds of the terms ``λ(Df_l) Π_{j>l} λ(Jf_j)`` of λ(DF), of the blocks and the head, shape ``(B + 1, R)``.

    ``λ(Df_l) = γ² σ_min(DŴ_l)² σ_min(Φ_{l−1})²``, ``λ(Jf_j) ≥ (s − γ‖Ŵ_j‖)₊²``; the head has ``σ_min(H_B)²`` and
    ``σ_min(W_L)²``.

    Source: docs/paper.md §2.2.
    """
    low = spectra.features[0]
    shrinks = (family.skip - family.gain * _weight(family, spectra)).clamp(min=0).square()
    factors = torch.cat([shrinks[1:], spectra.head[0].square()[None]])
    later = factors.flip(0).cumprod(0).flip(0)
    blocks = (family.gain * _slopes(family, spectra)[0] * low[:-1]).square() * later
    return torch.cat([blocks, low[-1:].square()])


def regularity_floor(family: ContractiveClass, inputs: Tensor, depth: int) -> float:
    """Lower bound λ₀ of ``λ(DF)`` at all weights of the class: ``(σ_min(H_0) − ‖Φ_0‖((1 + γ)^B − 1))₊²``.

    ``|H_l − H_{l−1}|_F ≤ γ‖Φ_{l−1}‖`` whatever the weights are, so the features stay within ``‖Φ_0‖((1 + γ)^B − 1)`` of
    the inputs, and λ(DF) is at least the head's ``σ_min(H_B)²``. It is 0 (vacuous) where γ is too large, and without
    skips or normalisation.

    Args:
        family: The class.
        inputs: ``H_0``, shape ``(N, d)``.
        depth: B.
    """
    if family.skip != 1 or family.eps is None:
        return 0.0
    smallest = singular_value_range(inputs)[0]
    largest = singular_value_range(inputs.tanh())[1]
    return float((smallest - largest * ((1 + family.gain) ** depth - 1)).clamp(min=0).square())


def gain_with_floor(inputs: Tensor, depth: int) -> float:
    """The γ at which `regularity_floor` of a normalised residual network is ``σ_min(H_0)² / 4``."""
    smallest = singular_value_range(inputs)[0]
    largest = singular_value_range(inputs.tanh())[1]
    return float((1 + smallest / (2 * largest)) ** (1 / depth) - 1)


def singular_value_range(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Lower bound of the least and upper bound of the greatest singular value: of as many as there are rows.

    From the Gram matrix of the shorter side; what its rounding may have done is taken off and added.

    Args:
        matrices: Shape ``(…, rows, columns)``.

    Returns:
        Shape ``(…)`` each; the lower bound is 0 where there are more rows than columns.
    """
    rows, columns = matrices.shape[-2:]
    wide = matrices if rows <= columns else matrices.mT
    squares = torch.linalg.eigvalsh(wide @ wide.mT)
    rounding = max(rows, columns) * torch.finfo(matrices.dtype).eps * squares[..., -1]
    low, high = (squares[..., 0] - rounding).clamp(min=0).sqrt(), (squares[..., -1] + rounding).sqrt()
    return (low if rows <= columns else torch.zeros_like(low)), high
