"""Trajectories of gradient descent: their curves, fits of the last decade of steps, and the statements they test."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.kernel.tangent_kernel import tangent_kernel
from skip_conditioning.diagnostics.loss.hessian import HessianOperator, spectral_norm
from skip_conditioning.diagnostics.theory.statement import Statement
from skip_conditioning.experiments.theory.convergence_training import Problem, Trajectory
from skip_conditioning.experiments.theory.report import Check


def curve_of(trajectory: Trajectory, initialisations: Sequence[str]) -> pd.DataFrame:
    """The logged rows, one for each initialisation and step."""
    rows = []
    for logged in trajectory.rows:
        columns = {name: np.broadcast_to(np.asarray(value), len(initialisations)) for name, value in logged.items()}
        rows.append(pd.DataFrame({"initialisation": list(initialisations), **columns}))
    return pd.concat(rows, ignore_index=True)


def fits_of(curve: pd.DataFrame) -> pd.DataFrame:
    """Fits to the last decade of steps, for each initialisation.

    ``exponent`` is p of ``ℓ ~ t^−p`` and ``rate`` is r of ``ℓ ~ e^{−rt}``, by ordinary least squares over the logged
    steps from ``first_step`` to ``last_step``; the standard errors take the residuals to be independent, which those of
    a smooth curve are not. ``norm_slope`` is the slope of ``|θ|`` against ``log t``, ``norm_growth`` the last
    ``|θ|`` over the first. ``distance`` is the last ``|θ − θ_0|``, ``distance_before`` the largest logged before.
    """
    rows = []
    for initialisation, run in curve.groupby("initialisation", sort=False):
        last = int(run["step"].max())
        late = run[run["step"] >= last / 10]
        time, log_time, log_loss = late["step"], np.log(late["step"]), np.log(late["loss"])
        exponent, exponent_se = _slope(log_time, log_loss)
        rate, rate_se = _slope(time, log_loss)
        rows.append(
            {
                "initialisation": initialisation,
                "exponent": -exponent,
                "exponent_se": exponent_se,
                "rate": -rate,
                "rate_se": rate_se,
                "first_step": int(late["step"].min()),
                "last_step": last,
                "loss": run["loss"].iloc[-1],
                "parameter_norm": run["parameter_norm"].iloc[-1],
                "norm_growth": run["parameter_norm"].iloc[-1] / run["parameter_norm"].iloc[0],
                "norm_slope": _slope(log_time, late["parameter_norm"])[0],
                "distance": run["distance"].iloc[-1],
                "distance_before": run["distance"].iloc[:-1].max(),
            }
        )
    return pd.DataFrame(rows)


def checks_of(
    network: str,
    problem: Problem,
    trajectory: Trajectory,
    curve: pd.DataFrame,
    fits: pd.DataFrame,
    measured: Sequence[str],
) -> Iterator[Check]:
    """Every statement on one arm: of all steps of each initialisation, and of single states measured directly.

    Args:
        network: A description of the network.
        problem: The network and what it was fitted to.
        trajectory: Its runs.
        curve: Of `curve_of`.
        fits: Of `fits_of`, in the order of the runs.
        measured: Initialisations whose last state is measured; of the first of them the initial state too.
    """
    for run, fit in enumerate(_records(fits)):
        start, last = fit["initialisation"], fit["last_step"]
        for statement in _of_all_steps(trajectory, run, fit):
            yield Check(network, statement, last, start)
        if problem.is_classification:
            yield Check(network, _growth(fit, len(problem.inputs)), last, start)
    states = [
        (measured[0], min(trajectory.weights)),
        *((initialisation, max(trajectory.weights)) for initialisation in measured),
    ]
    for initialisation, step in states:
        (row,) = _records(curve[(curve["initialisation"] == initialisation) & (curve["step"] == step)])
        run = fits["initialisation"].tolist().index(initialisation)
        for statement in _of_a_state(problem, trajectory, run, row):
            yield Check(network, statement, step, initialisation)


def _of_all_steps(trajectory: Trajectory, run: int, fit: dict[str, Any]) -> Iterator[Statement]:
    """The guarantees and the regularity along a run."""
    yield Statement(
        name="decrease per step",
        formula="max_t ℓ_{t+1} − ℓ_t + η_t/2·λ_t|∇c_t|² − rounding ≤ 0",
        left=float(trajectory.worst_step[run]),
        relation="<=",
        right=0.0,
        error=0.0,
        note=f"{int(trajectory.violations[run])} of {fit['last_step']} steps gained less",
    )
    yield Statement(
        name="cumulative guarantee",
        formula="max_t ℓ_t − G_t − rounding ≤ 0",
        left=float(trajectory.worst_total[run]),
        relation="<=",
        right=0.0,
        error=0.0,
        note=(
            f"G of {'λ₀, for all weights' if trajectory.prior else 'λ_t along the path'}; fitted ℓ ~ t^−p, "
            f"p = {fit['exponent']:.4f} ± {fit['exponent_se']:.4f} over steps {fit['first_step']} to {fit['last_step']}"
        ),
    )
    least = float(trajectory.least_regularity[run])
    yield Statement(
        name="regularity along the path",
        formula="min_t λ_t ≥ λ₀" if trajectory.prior else "min_t λ_t > 0",
        left=least,
        relation=">=",
        right=trajectory.prior,
        error=1e-12 * least,
        cause="" if least > 0 else "the layers do not bound λ(DF) away from 0",
        note="" if trajectory.prior else "a condition, no bound: λ₀ = 0 before training",
    )


def _growth(fit: dict[str, Any], samples: int) -> Statement:
    """``|θ| → ∞``, as far as the steps can tell: from a far start ``|θ|`` may fall at first, not so ``|θ − θ_0|``."""
    separated = fit["loss"] < math.log(2) / samples
    return Statement(
        name="optimum at infinity",
        formula="|θ_T − θ_0| ≥ max_{t<T} |θ_t − θ_0|",
        left=fit["distance"],
        relation=">=",
        right=fit["distance_before"],
        error=0.0,
        cause="" if separated else "the loss is above ln 2 / N, so that classes may not be separated yet",
        note=f"|θ_T|/|θ_0| = {fit['norm_growth']:.4g}, d|θ|/d ln t = {fit['norm_slope']:.3g} in the last decade",
        is_claim=True,
    )


def _of_a_state(problem: Problem, trajectory: Trajectory, run: int, row: dict[str, Any]) -> Iterator[Statement]:
    """The bounds of one state against the tangent kernel and the Hessian themselves."""
    network = copy.deepcopy(problem.network)
    network.load_state_dict({name: weight[run] for name, weight in trajectory.weights[int(row["step"])].items()})
    kernel = tangent_kernel(network, problem.inputs).spectrum()
    yield Statement(
        name="regularity of the layers",
        formula="λ(DF) ≥ Σ_l λ(Df_l) Π_{j>l} λ(Jf_j)",
        left=float(kernel.values[-1]),
        relation=">=",
        right=row["lambda_layers"],
        error=kernel.floor,
        cause="" if row["lambda_layers"] > 0 else "the layers do not bound λ(DF) away from 0",
    )
    norm = spectral_norm(HessianOperator(network, problem.inputs, problem.targets))
    yield Statement(
        name="curvature",
        formula="‖∇²ℓ‖ ≤ β",
        left=norm.value,
        relation="<=",
        right=row["beta"],
        error=norm.residual,
        note="" if norm.converged else "‖∇²ℓ‖ has not converged: a lower bound",
    )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _slope(x: pd.Series, y: pd.Series) -> tuple[float, float]:
    """Slope of the least-squares line and its standard error."""
    deviation, response = (np.asarray(values, dtype=float) - float(np.mean(values)) for values in (x, y))
    spread = float(deviation @ deviation)
    slope = float(deviation @ response) / spread
    residual = response - slope * deviation
    return slope, math.sqrt(float(residual @ residual) / (len(residual) - 2) / spread)
