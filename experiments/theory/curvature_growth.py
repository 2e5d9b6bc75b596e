"""Does normalisation bound the curvature of the loss while the parameters grow?

The parameters of a small residual network are scaled by r, all of them or only the hidden weights, which are those that
weight and batch norm normalise; the norm of the Hessian is measured at each r, and the exponent of ``r^p`` fitted
(docs/paper.md §2.5 and §4).

A Hessian also falls, as ``1/|w|²``, for weights whose length the network does not feel; so it is measured a second time
in units of that length (see ``diagnostics.loss.scale_invariance``).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.loss.hessian import HessianOperator, spectral_norm
from skip_conditioning.diagnostics.loss.scale_invariance import INVARIANT, Rescaled, effective_scales, scale_invariance
from skip_conditioning.diagnostics.tables import write_table
from skip_conditioning.diagnostics.theory.curvature import curvature
from skip_conditioning.diagnostics.theory.statement import Statement
from skip_conditioning.experiments.data.datasets import load_data, to_float
from skip_conditioning.experiments.theory.experiment import CheckedStatement, TheoryOptions
from skip_conditioning.models.residual_mlp import ActivationName, NormaliserName, build_residual_mlp

NORMALISERS: tuple[NormaliserName | None, ...] = ("weight", "batch", None)
ACTIVATIONS: tuple[ActivationName, ...] = ("tanh", "relu")
COSTS = ("cross-entropy", "mean square")
#: What is scaled: the weights that a normaliser acts on (a network without one has them all the same), the last layer,
#: which none does, or everything.
HIDDEN, LAST, ALL = "hidden weights", "last layer", "all parameters"
SCALED = (ALL, HIDDEN, LAST)

_WIDTH, _IMAGES, _SIDE = 16, 32, 8
_DEPTH, _QUICK_DEPTH = 4, 2
#: Networks small enough for their layers' second derivatives.
_TINY_WIDTH, _TINY_DEPTH, _TINY_IMAGES, _TINY_SIDE = 3, 2, 4, 2
_LARGEST = 1e3
#: An exponent this small, 5 % a decade, cannot be told from none on so few decades.
_FLAT = 0.02
#: An exponent known no better than this says nothing of growth.
_TELLING = 0.25


@dataclass(frozen=True)
class Fit:
    """A power law ``r^exponent``.

    Attributes:
        exponent: By least squares on log-log; NaN where fewer than three norms are positive.
        error: Its standard error; of a smooth curve that is no power law it is the curve's bend.
    """

    exponent: float
    error: float


def check_curvature(options: TheoryOptions) -> list[CheckedStatement]:
    """Measure and fit, write ``curvature_growth.parquet`` and ``curvature_growth_fits.parquet``, check the statements.

    Where a normaliser acts on what is scaled the claim is that the curvature is bounded: it fails where p is above 0 by
    more than two standard errors, 0.02 at least. Elsewhere, as of the last layer, it is that the curvature grows: it
    holds only where p is above 0 by more than that.
    """
    activations = ACTIVATIONS[: 1 if options.quick else None]
    factors = np.logspace(0, math.log10(_LARGEST), 5 if options.quick else 10)
    cases = list(itertools.product(NORMALISERS, activations))
    rows = [row for case in cases for row in _growth(*case, factors, options)]
    table = pd.DataFrame(rows)
    fits = fitted(table)
    write_table(table, options.out / "curvature_growth.parquet")
    write_table(fits, options.out / "curvature_growth_fits.parquet")
    checks = [check for fit in fits.to_dict("records") for check in _growth_checks(fit)]
    return [*checks, *(check for case in cases for check in _pointwise_checks(*case, options))]


def power_law(factors: Sequence[float], norms: Sequence[float]) -> Fit:
    """The exponent over the upper half of the factors; norms that are zero or NaN are left out."""
    half = len(factors) // 2
    x, y = np.asarray(factors[half:], float), np.asarray(norms[half:], float)
    x, y = np.log(x[y > 0]), np.log(y[y > 0])
    if len(x) < 3:
        return Fit(math.nan, math.nan)
    centred = x - x.mean()
    exponent = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - exponent * centred
    return Fit(exponent, math.sqrt(float(rest @ rest) / (len(x) - 2) / float(centred @ centred)))


def fitted(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each curve: exponents of the norm and the effective norm, and how far the norms range."""
    rows = []
    for keys, curve in table.groupby(["network", "normaliser", "activation", "cost", "scaled"], sort=False):
        factors = curve["r"].tolist()
        # What has not converged is rounding, as where cross-entropy is zero to machine precision.
        resolved = curve.where(curve["converged"])
        raw, effective = (power_law(factors, resolved[name].tolist()) for name in ("norm", "effective_norm"))
        rows.append(
            {
                **dict(zip(("network", "normaliser", "activation", "cost", "scaled"), keys, strict=True)),
                "exponent": raw.exponent,
                "exponent_error": raw.error,
                "effective_exponent": effective.exponent,
                "effective_exponent_error": effective.error,
                "r_low": factors[len(factors) // 2],
                "r_high": factors[-1],
                "norm_max": resolved["norm"].max(),
                "norm_min": resolved["norm"].min(),
                "effective_norm_max": resolved["effective_norm"].max(),
                "effective_norm_min": resolved["effective_norm"].min(),
                "unresolved": int((~curve["converged"]).sum()),
                "invariant": curve["invariant"].iloc[0],
            }
        )
    return pd.DataFrame(rows)


def _growth(
    normaliser: NormaliserName | None, activation: ActivationName, factors: np.ndarray, options: TheoryOptions
) -> Iterator[dict[str, Any]]:
    """The rows of one network: the norms at every factor, cost and choice of what is scaled."""
    x, labels = _digits(_IMAGES, _SIDE, options)
    depth = _QUICK_DEPTH if options.quick else _DEPTH
    model = _network(normaliser, activation, x, _WIDTH, depth, options)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = _invariant_groups(model, x)
    for cost, scaled, factor in itertools.product(COSTS, SCALED, factors):
        moved = {ALL: list(start), HIDDEN: _hidden(model, "weight"), LAST: _last(model)}[scaled]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(start[name] * (factor if name in moved else 1))
        hessian = HessianOperator(model, x, _targets(cost, labels))
        raw = spectral_norm(hessian)
        scales = effective_scales(model, hessian.columns, groups)
        effective = spectral_norm(Rescaled(hessian, scales)) if groups else raw
        yield {
            "network": f"residual-mlp {_WIDTH}×{depth}",
            "normaliser": normaliser or "none",
            "activation": activation,
            "cost": cost,
            "scaled": scaled,
            "r": float(factor),
            "norm": raw.value,
            "residual": raw.residual,
            "effective_norm": effective.value,
            "effective_residual": effective.residual,
            "converged": raw.converged and effective.converged,
            "invariant": ", ".join(groups),
        }


def _invariant_groups(model: nn.Module, x: Tensor) -> dict[str, list[str]]:
    """The weights whose length is not felt: alone, as under weight norm, or all together, as behind batch norm."""
    alone = {name: [name] for name in _hidden(model, "weight")}
    together = {"hidden layers": _hidden(model, "weight") + _hidden(model, "bias")}
    shares = scale_invariance(model, x, alone | together)
    invariant = {name: members for name, members in alone.items() if shares[name] < INVARIANT}
    return invariant or {name: members for name, members in together.items() if shares[name] < INVARIANT}


def _hidden(model: nn.Module, kind: str) -> list[str]:
    """Names of the weights or biases of all linear maps but the last, which stays unbounded."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [f"{name}.{kind}" for name in layers[:-1]]


def _last(model: nn.Module) -> list[str]:
    """Names of the weight and the bias of the last linear map."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [f"{layers[-1]}.weight", f"{layers[-1]}.bias"]


def statement_name(scaled: str, *, bounded: bool, effective: bool = False) -> str:
    """The name of the statement on a curve: that the curvature is bounded, or grows, in what is scaled.

    Args:
        scaled: One of ``SCALED``.
        bounded: Which of the two.
        effective: Whether the norm is in units of the length that the network does not feel.
    """
    return f"{'effective ' if effective else ''}curvature {'bounded' if bounded else 'grows'} in {scaled}"


def kind_of(normaliser: str, activation: str) -> str:
    """The kind of a network, by which claims choose."""
    return f"{'no' if normaliser == 'none' else normaliser} norm, {activation}"


def _growth_checks(fit: dict[Any, Any]) -> Iterator[CheckedStatement]:
    """What is claimed of one curve, and of the effective norm where any weights are scale-invariant."""
    bounded = fit["normaliser"] != "none" and fit["scaled"] != LAST
    # The last layer's length is felt by every network.
    for kind in ("", "effective_") if fit["invariant"] and fit["scaled"] != LAST else ("",):
        exponent, error = fit[f"{kind}exponent"], fit[f"{kind}exponent_error"]
        norm = "‖D∇²ℓD‖" if kind else "‖∇²ℓ‖"
        chance = max(2 * error, _FLAT)
        doubt = _inconclusive(exponent, chance)
        # Where no power law fits a small exponent is no sign that the curvature stays bounded either.
        must_exceed = chance if not bounded and not doubt else 0.0
        statement = Statement(
            name=statement_name(fit["scaled"], bounded=bounded, effective=bool(kind)),
            formula=f"p {'≤ 0' if bounded else '> 0 beyond chance'} where {norm} ~ r^p, {fit['scaled']} scaled by r",
            left=exponent,
            relation="<=" if bounded else ">=",
            right=must_exceed,
            error=0.0 if must_exceed else chance,
            cause=doubt,
            note=f"p = {exponent:.3g} ± {error:.1g} on r from {fit['r_low']:.3g} to {fit['r_high']:.3g}, two standard "
            f"errors being chance; norms from {fit[f'{kind}norm_min']:.3g} to {fit[f'{kind}norm_max']:.3g} over all r"
            + (f"; {fit['unresolved']} not resolved" if fit["unresolved"] else ""),
            is_claim=True,
        )
        network = _described(fit["network"], fit["normaliser"], fit["activation"], fit["cost"])
        yield CheckedStatement(network, statement, kind=kind_of(fit["normaliser"], fit["activation"]))


def _inconclusive(exponent: float, chance: float) -> str:
    """Why a fit neither supports nor contradicts a sign of the exponent, if it does not."""
    if not math.isfinite(exponent):
        return "fewer than three norms are resolved"
    return f"no power law fits: p = {exponent:.2g} to within {chance:.2g}" if chance > _TELLING else ""


def _pointwise_checks(
    normaliser: NormaliserName | None, activation: ActivationName, options: TheoryOptions
) -> Iterator[CheckedStatement]:
    """The layer-wise bound at the initialisation of a tiny network."""
    x, labels = _digits(_TINY_IMAGES, _TINY_SIDE, options)
    model = _network(normaliser, activation, x, _TINY_WIDTH, _TINY_DEPTH, options)
    for cost in COSTS:
        network = _described(f"residual-mlp {_TINY_WIDTH}×{_TINY_DEPTH}", normaliser or "none", activation, cost)
        statement = curvature(model, x, _targets(cost, labels)).statement
        yield CheckedStatement(network, statement, kind=kind_of(normaliser or "none", activation))


def _digits(count: int, side: int, options: TheoryOptions) -> tuple[Tensor, Tensor]:
    data = load_data("digits", options.data_dir, limit_train=count, image_size=side)
    return to_float(data.train.images, dtype=torch.float64), data.train.labels


def _targets(cost: str, labels: Tensor) -> Tensor:
    return labels if cost == "cross-entropy" else nn.functional.one_hot(labels, 10).double()


def _network(
    normaliser: NormaliserName | None,
    activation: ActivationName,
    x: Tensor,
    width: int,
    depth: int,
    options: TheoryOptions,
) -> nn.Module:
    """The network in float64, in train mode; networks of one seed differ by nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return build_residual_mlp(
            in_features=x[0].numel(), width=width, depth=depth, normaliser=normaliser, activation=activation
        ).double()


def _described(network: str, normaliser: str, activation: str, cost: str) -> str:
    return f"{network}, {kind_of(normaliser, activation)}, {cost}"
