"""A spectrum: the singular values of a map or their density, statistics, and how far each can be trusted.

Statistics that depend on the smallest values (``sigma_min``, ``sigma_gmean``, ``condition_number``) are taken on
``max(σ, floor)``: when a value lies under the floor they are bounds, and ``resolved`` is False. ``values`` keeps
what was computed, untouched.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np

from skip_conditioning.diagnostics.linalg.quadrature import Estimate
from skip_conditioning.diagnostics.tables import STATISTICS

#: Rounding moves a small singular value by so many units in the last place of ``‖J‖_F`` at most. Measured, float32
#: against float64, over 19 networks (tests/diagnostics/test_floor.py): 7.6 (AMD) or 8.9 (Intel with AVX-512) for 30
#: layers with batch norm and no skip, 1.4 at most for all others. Large values move further where a deep normalised
#: chain amplifies rounding of the forward pass (up to 630 units, still only 1e-4 of the value), which no reader takes
#: for zero.
ROUNDING_UNITS = 16


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one map, or a quadrature of their density, with statistics and provenance.

    Each statistic has a standard error beside it, ``sigma_mean_se`` and so on: None where all singular values were
    computed.

    Attributes:
        map: ``layer``, ``tail``, ``network``, ``param`` or ``kernel``.
        layer: Dotted module name; ``network`` for the network map, ``total`` for the whole kernel.
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
        estimates: To be given with a density: an ``Estimate`` for each of ``tables.STATISTICS``.
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
    sample: int | None = None
    seconds: float = 0.0
    peak_bytes: int = 0
    note: str = ""
    nodes: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    estimates: InitVar[Mapping[str, Estimate] | None] = None
    sigma_max: float = field(init=False)
    sigma_min: float = field(init=False)
    sigma_mean: float = field(init=False)
    sigma_gmean: float = field(init=False)
    sigma_median: float = field(init=False)
    sigma_rms: float = field(init=False)
    condition_number: float = field(init=False)
    rank: int = field(init=False)
    effective_rank: float = field(init=False)
    stable_rank: float = field(init=False)
    resolved: bool = field(init=False)
    sigma_max_se: float | None = field(init=False)
    sigma_min_se: float | None = field(init=False)
    sigma_mean_se: float | None = field(init=False)
    sigma_gmean_se: float | None = field(init=False)
    sigma_median_se: float | None = field(init=False)
    sigma_rms_se: float | None = field(init=False)
    condition_number_se: float | None = field(init=False)
    rank_se: float | None = field(init=False)
    effective_rank_se: float | None = field(init=False)
    stable_rank_se: float | None = field(init=False)

    def __post_init__(self, estimates: Mapping[str, Estimate] | None) -> None:
        if estimates is None:
            found = statistics(self.values, self.floor) | {f"{name}_se": None for name in STATISTICS}
        else:
            found = {name: estimates[name].value for name in STATISTICS} | {"resolved": False}
            found["rank"] = round(found["rank"])
            found |= {f"{name}_se": estimates[name].error for name in STATISTICS}
        for name, value in found.items():
            object.__setattr__(self, name, value)

    @property
    def trace(self) -> float | None:
        """Sum of the eigenvalues of a kernel; None for other maps."""
        return self.sigma_mean * min(self.rows, self.cols) if self.map == "kernel" else None

    def as_row(self) -> dict[str, Any]:
        """The spectrum as a row of the ``spectra`` table (without ``run_id``, ``step`` and what takes a loss)."""
        row = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        lists = {name: row[name].tolist() or None for name in ("values", "nodes", "weights")}
        return row | lists | {"trace": self.trace, "rayleigh": None}

    def __str__(self) -> str:
        symbol = "λ" if self.map == "kernel" else "σ"
        kappa = f"κ {'' if self.resolved else '≥ '}{self.condition_number:.3g}"
        return (
            f"{self.map} {self.layer}: {self.rows}×{self.cols}, {symbol} from {self.sigma_max:.3g} down to "
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
    found = {
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
    assert tuple(found) == STATISTICS
    return found | {"resolved": bool(values[-1] > floor)}


def jacobian_floor(frobenius_norm: float, eps: float) -> float:
    """What rounding makes of a singular value that is zero: ``ROUNDING_UNITS · eps · ‖J‖_F`` at most.

    By Weyl's inequality it moves by at most the norm of the perturbation, which is measured (see
    ``ROUNDING_UNITS``). Never zero: a map that vanishes has all its values under the floor.

    Args:
        frobenius_norm: ``‖J‖_F``.
        eps: Unit roundoff of the dtype in which the Jacobian was computed.
    """
    return max(ROUNDING_UNITS * eps * frobenius_norm, float(np.finfo(np.float64).tiny))


def gram_floor(sigma_max: float, size: int) -> float:
    """What squaring costs: eigenvalues of a float64 Gram matrix are known to ``size · eps · σ_max²``.

    Args:
        sigma_max: Largest singular value.
        size: Side of the Gram matrix.
    """
    return sigma_max * float(np.sqrt(size * np.finfo(np.float64).eps))
