"""A spectrum: singular values or their density, statistics, and how far each can be trusted.

Statistics that depend on the smallest values (``sigma_min``, ``sigma_gmean``, ``condition_number``) are taken on
``max(σ, floor)``: when a value lies under the floor they are bounds, and ``resolved`` is False. ``values`` keeps
what was computed, untouched.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from skip_conditioning.diagnostics.linalg.quadrature import Estimate
from skip_conditioning.diagnostics.linalg.slq import Lanczos
from skip_conditioning.diagnostics.tables import STATISTICS

#: Rounding moves a small singular value by at most so many units in the last place of ``‖J‖_F``. Measured, float32
#: against float64, over 19 networks (tests/diagnostics/test_floor.py): 7.6 (AMD) or 8.9 (Intel with AVX-512) for 30
#: layers with batch norm and no skip, 1.4 at most for all others. Large values move further where a deep normalised
#: chain amplifies rounding of the forward pass: up to 630 units, but that is only 1e-4 of the value.
ROUNDING_UNITS = 16

#: The note of a spectrum in which nothing can be told from zero.
_ALL_ROUNDING = "rounding is as large as the largest value: nothing is known of it; measure in dtype float64"

#: Units in the last place of σ_max that a float64 SVD may be off by.
_SOLVER_UNITS = 8


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix, or a quadrature of their density, with statistics and provenance.

    Made by ``of_values`` or ``of_density``. Each statistic has a standard error beside it, ``sigma_mean_se`` and so
    on: None where all singular values were computed.

    Attributes:
        map: ``layer``, ``tail``, ``network``, ``param`` or ``kernel``; ``matrix`` for any other matrix.
        layer: Dotted module name; ``network`` for the network map, ``total`` for the whole kernel, an operator's name.
        batch_mode: ``batch`` or ``sample``.
        sample: Index of the probe sample in ``sample`` mode, else None.
        values: Singular values, descending, shape ``(min(rows, cols),)``, float64. For ``kernel`` these are
            the eigenvalues of the (positive semi-definite) kernel. Empty when only the density is known.
        nodes: Nodes of the density's quadrature, descending, shape ``(k,)``; empty when all values are known.
        weights: The share of the ``min(rows, cols)`` singular values that each node stands for; they sum to 1.
        sigma_max: Largest singular value, the spectral norm.
        sigma_min: Smallest one; when it is under ``floor``, the floor itself, an upper bound. Of a density the smallest
            node, an upper bound too.
        sigma_mean: Arithmetic mean.
        sigma_gmean: Geometric mean of ``max(σ, floor)``.
        sigma_median: Median.
        sigma_rms: Root mean square, ``‖J‖_F / √min(rows, cols)``.
        condition_number: ``sigma_max / sigma_min``; a lower bound unless ``resolved``.
        rank: How many values exceed ``floor``.
        effective_rank: ``exp(entropy(σ / Σσ))`` (Roy & Vetterli 2007).
        stable_rank: ``‖J‖_F² / ‖J‖₂²``.
        resolved: Whether every value is known and exceeds ``floor``.
        rows: ``N·d_out``, or ``d_out`` in ``sample`` mode.
        cols: ``N·d_in``, or ``d_in`` in ``sample`` mode.
        floor: Size below which a value cannot be told from zero.
        method: How it was obtained, such as ``exact: svd`` or ``lanczos: 2 random vectors × 32 steps``.
        dtype: Precision in which the Jacobian was computed.
        seconds: Time it took.
        peak_bytes: Largest memory the engine planned for its temporaries and matrices.
        note: Anything a reader should know, such as a solver that failed and what replaced it.
        witness: How far random products of what was measured lay from plain autograd's on the network itself, relative
            to these; None for what is no module's map.
    """

    map: str
    layer: str
    batch_mode: str
    rows: int
    cols: int
    values: np.ndarray = field(repr=False)
    floor: float
    method: str
    dtype: str
    seconds: float
    peak_bytes: int
    note: str
    sigma_max: float
    sigma_min: float
    sigma_mean: float
    sigma_gmean: float
    sigma_median: float
    sigma_rms: float
    condition_number: float
    rank: int
    effective_rank: float
    stable_rank: float
    resolved: bool
    sigma_max_se: float | None
    sigma_min_se: float | None
    sigma_mean_se: float | None
    sigma_gmean_se: float | None
    sigma_median_se: float | None
    sigma_rms_se: float | None
    condition_number_se: float | None
    rank_se: float | None
    effective_rank_se: float | None
    stable_rank_se: float | None

    witness: float | None = None
    sample: int | None = None
    nodes: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)

    @classmethod
    def of_values(
        cls,
        values: np.ndarray,
        shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        floor: float | None = None,
        map: str = "matrix",
        layer: str = "",
        batch_mode: str = "batch",
        method: str = "exact: svd",
        seconds: float = 0.0,
        peak_bytes: int = 0,
        note: str = "",
        witness: float | None = None,
    ) -> "Spectrum":
        """The spectrum of a matrix whose singular values are all known.

        Args:
            values: All of them, descending, shape ``(min(rows, cols),)``, float64.
            shape: ``(rows, cols)``.
            dtype: Precision in which the matrix was computed.
            floor: Size below which a value cannot be told from zero; None for ``values_floor`` of the dtype.
            map: As for the attribute, like all that follow.
            layer: Module or operator.
            batch_mode: ``batch`` or ``sample``.
            method: How the values were obtained.
            seconds: Time it took.
            peak_bytes: Memory it took.
            note: What a reader should know.
            witness: How far it lay from plain autograd's.
        """
        floor = values_floor(values, dtype) if floor is None else floor
        errors: dict[str, Any] = {f"{name}_se": None for name in STATISTICS}
        if 0 < values[0] <= floor:
            note = "; ".join(filter(None, (note, _ALL_ROUNDING)))
        return cls(
            map=map,
            layer=layer,
            batch_mode=batch_mode,
            rows=shape[0],
            cols=shape[1],
            values=values,
            floor=floor,
            method=method,
            dtype=str(dtype).removeprefix("torch."),
            seconds=seconds,
            peak_bytes=peak_bytes,
            note=note,
            witness=witness,
            **statistics(values, floor),
            **errors,
        )

    @classmethod
    def of_density(
        cls,
        lanczos: Lanczos,
        shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        tolerance: float | None = None,
        rounding: float = 0.0,
        map: str = "matrix",
        layer: str = "",
        seconds: float = 0.0,
        peak_bytes: int = 0,
        note: str = "",
        witness: float | None = None,
    ) -> "Spectrum":
        """The spectrum of an operator whose density of singular values was estimated.

        Args:
            lanczos: What ``lanczos_density`` returned.
            shape: ``(rows, cols)``.
            dtype: Precision of the operator's products.
            tolerance: The relative standard error aimed for; ``note`` says so if it was not reached.
            rounding: The floor of the matrix itself where it was measured; that of the products comes on top.
            map: As for the attribute, like all that follow.
            layer: Module or operator.
            seconds: Time it took.
            peak_bytes: Memory it took.
            note: What a reader should know.
            witness: How far it lay from plain autograd's.
        """
        density = lanczos.density
        floor = max(jacobian_floor(density.rms().value * min(shape) ** 0.5, torch.finfo(dtype).eps), rounding)
        by_name, mean = estimates(lanczos, floor), density.mean()
        if not lanczos.converged:
            reached = f"tolerance {tolerance:g} not reached: relative standard error {mean.error / mean.value:.2g}"
            note = "; ".join(filter(None, (note, reached)))
        if 0 < lanczos.sigma_max <= floor:
            note = "; ".join(filter(None, (note, _ALL_ROUNDING)))
        fields: dict[str, Any] = {name: estimate.value for name, estimate in by_name.items()}
        fields |= {f"{name}_se": estimate.error for name, estimate in by_name.items()}
        return cls(
            map=map,
            layer=layer,
            batch_mode="batch",
            rows=shape[0],
            cols=shape[1],
            values=density.nodes[:0],
            nodes=density.nodes,
            weights=density.weights,
            floor=floor,
            method=f"lanczos: {density.vectors} random vectors × {max(lanczos.steps)} steps",
            dtype=str(dtype).removeprefix("torch."),
            seconds=seconds,
            peak_bytes=peak_bytes,
            note=note,
            witness=witness,
            resolved=False,
            **(fields | {"rank": round(fields["rank"])}),
        )

    @property
    def trace(self) -> float | None:
        """Sum of the eigenvalues of a kernel; None for other maps."""
        return self.sigma_mean * min(self.rows, self.cols) if self.map == "kernel" else None

    def as_row(self) -> dict[str, Any]:
        """The spectrum as a row of the ``spectra`` table, without ``run_id`` and ``step``; ``rayleigh`` is None."""
        row = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        lists = {name: row[name].tolist() or None for name in ("values", "nodes", "weights")}
        return row | lists | {"trace": self.trace, "rayleigh": None}

    def __str__(self) -> str:
        symbol = "λ" if self.map == "kernel" else "σ"
        name = self.layer if self.map == "matrix" else f"{self.map} {self.layer}"
        kappa = f"κ {'' if self.resolved else '≥ '}{self.condition_number:.3g}"
        return (
            f"{name}: {self.rows}×{self.cols}, {symbol} from "
            f"{'≤ ' if 0 < self.sigma_max <= self.floor else ''}{self.sigma_max:.3g} down to "
            f"{'' if self.resolved else '≤ '}{self.sigma_min:.3g}, mean {self.sigma_mean:.3g}"
            f"{'' if self.sigma_mean_se is None else f' ± {self.sigma_mean_se:.1g}'}, {kappa} ({self.method})"
        )


def statistics(values: np.ndarray, floor: float) -> dict[str, Any]:
    """The statistics of a spectrum (those of ``tables.STATISTICS`` and ``resolved``).

    Args:
        values: Singular values, descending, shape ``(k,)`` with k ≥ 1.
        floor: Size below which a value cannot be told from zero; positive.
    """
    largest = float(values[0])
    raised = np.maximum(values, floor)
    # Divided by the largest first: sums and squares of extreme values would leave the range of float64.
    scaled = values / largest if largest > 0 else np.zeros_like(values)
    square_sum, total = float(np.sum(scaled**2)), float(np.sum(scaled))
    shares = scaled[scaled > 0] / total if total > 0 else np.ones(0)
    by_name = {
        "sigma_max": largest,
        "sigma_min": float(raised[-1]),
        "sigma_mean": largest * float(np.mean(scaled)),
        "sigma_gmean": float(np.exp(np.mean(np.log(raised)))),
        "sigma_median": largest * float(np.median(scaled)),
        "sigma_rms": largest * float(np.sqrt(square_sum / len(values))),
        "condition_number": max(largest / float(raised[-1]), 1.0),
        "rank": int(np.sum(values > floor)),
        "effective_rank": float(np.exp(-np.sum(shares * np.log(shares)))) if total > 0 else 0.0,
        "stable_rank": square_sum,
    }
    assert tuple(by_name) == STATISTICS
    return by_name | {"resolved": bool(values[-1] > floor)}


def estimates(lanczos: Lanczos, floor: float) -> dict[str, Estimate]:
    """An estimate of each of ``tables.STATISTICS``; a σ_min under ``floor`` is the floor."""
    density = lanczos.density
    largest = Estimate(lanczos.sigma_max, lanczos.residual)
    smallest = Estimate(max(lanczos.sigma_min, floor), 0.0)
    kappa = max(largest.value / smallest.value, 1.0)
    return {
        "sigma_max": largest,
        "sigma_min": smallest,
        "sigma_mean": density.mean(),
        "sigma_gmean": density.gmean(floor),
        "sigma_median": density.median(),
        "sigma_rms": density.rms(),
        "condition_number": Estimate(kappa, largest.error / smallest.value),
        "rank": density.rank(floor),
        "effective_rank": density.effective_rank(),
        "stable_rank": density.stable_rank(largest.value),
    }


def values_floor(values: np.ndarray, dtype: torch.dtype, gram_side: int = 0, rounding: float | None = None) -> float:
    """The floor of a matrix whose singular values are all known: of its own rounding, or its solver's if larger.

    Args:
        values: All singular values, descending.
        dtype: Precision in which the matrix was computed.
        gram_side: Side of the float64 Gram matrix that they come from, whose eigenvalues are known to
            ``gram_side · eps · σ_max²``; 0 where they come from the matrix itself.
        rounding: The floor as it was measured (``jacobians.witness``); None for ``jacobian_floor``.
    """
    if rounding is None:
        # Divided by the largest first so that no square overflows.
        norm = float(values[0]) * float(np.linalg.norm(values / values[0])) if values[0] > 0 else 0.0
        rounding = jacobian_floor(norm, torch.finfo(dtype).eps)
    eps = float(np.finfo(np.float64).eps)
    solver = float(values[0]) * (math.sqrt(gram_side * eps) if gram_side else _SOLVER_UNITS * eps)
    return max(rounding, solver, float(np.finfo(np.float64).tiny))


def jacobian_floor(frobenius_norm: float, eps: float) -> float:
    """How large rounding may make a singular value that is zero: ``ROUNDING_UNITS · eps · ‖J‖_F``.

    By Weyl's inequality the value moves by at most the norm of the perturbation, as measured (``ROUNDING_UNITS``).
    The floor is never zero, so that all values of a map that vanishes lie under it.

    Args:
        frobenius_norm: ``‖J‖_F``.
        eps: Unit roundoff of the dtype in which the Jacobian was computed.
    """
    return max(ROUNDING_UNITS * eps * frobenius_norm, float(np.finfo(np.float64).tiny))
