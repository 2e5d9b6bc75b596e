"""Measures that claims compare: the logarithm of a positive number of each run, its speed or its conditioning.

Each is known to lie between two bounds, which are equal where it was measured. In every measure of speed less is
faster, and a run that diverged is slower than all others: both bounds are +inf. NaN means that nothing was measured.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.tables import STATISTICS, Experiment
from skip_conditioning.experiments.claims.verdict.step_thresholds import is_finite, log_steps, training_losses

#: Conditioning is the geometric mean over so many of a run's first measured steps, as in ``paired_ratios``.
SPECTRA_STEPS: Final = 10
#: Measures that are bounds where the spectrum is unresolved; the true value is then larger (1) or smaller (-1).
BOUNDS: Final[Mapping[str, int]] = {"condition_number": 1, "sigma_min": -1}
#: Measures of a run as a whole, which compare only runs that were trained for equally many steps.
OF_WHOLE_RUN: Final = frozenset({"steps", "mean_log_loss", "final_loss", "test_error"})

_SMALLEST_LOSS = float(np.finfo(np.float32).tiny)
_AT_STEP = re.compile(r"loss_at_step_(\d+)")


@dataclass(frozen=True)
class Reading:
    """What a measure is taken from.

    Attributes:
        tables: The runs to be measured.
        thresholds: Losses to reach, for ``steps``.
        window: Steps over which losses are averaged.
        map: Of the spectrum; empty for each run's first.
        layer: Of the spectrum; empty for each run's first.
    """

    tables: Experiment
    thresholds: tuple[float, ...] = ()
    window: int = 1
    map: str = ""
    layer: str = ""

    @cached_property
    def losses(self) -> dict[str, pd.Series]:
        """The training losses of each run by step, by ``run_id``."""
        return training_losses(self.tables, self.tables.runs)

    @cached_property
    def diverged(self) -> pd.Series:
        """Whether each run diverged, by its status or by a loss that is not finite; by ``run_id``."""
        runs = self.tables.runs
        flags = [
            status == "diverged" or (len(self.losses[run_id]) > 0 and not is_finite(self.losses[run_id]))
            for run_id, status in zip(runs["run_id"].astype(str), runs["status"], strict=True)
        ]
        return pd.Series(flags, index=pd.Index(runs["run_id"], name="run_id"), dtype=bool)


@dataclass(frozen=True)
class Logs:
    """Logarithms of a measure, by run.

    Attributes:
        low: Lower bounds, a row for each ``run_id``; several columns, one for each threshold, are averaged by pairs.
        high: Upper bounds, shape as ``low``.
    """

    low: pd.DataFrame
    high: pd.DataFrame


def measure(name: str, reading: Reading) -> Logs:
    """A measure of every run.

    Args:
        name: In ``MEASURES``, or ``loss_at_step_N``.
        reading: What it is taken from.

    Raises:
        InputError: There is no such measure, or the map or layer was not measured in any run.
    """
    step = step_of(name)
    if step is not None:
        return _loss(reading, step)
    if name not in MEASURES:
        raise InputError(
            f"unknown measure {name!r}; there are {', '.join(MEASURES)} and loss_at_step_N."
            f"{near_matches(name, MEASURES)}"
        )
    return MEASURES[name](reading)


def step_of(name: str) -> int | None:
    """The step N of a measure ``loss_at_step_N``; None for other measures."""
    match = _AT_STEP.fullmatch(name)
    return int(match[1]) if match else None


def train_steps(tables: Experiment) -> pd.Series:
    """The last step at which the training loss of each run was logged, by ``run_id``."""
    return tables.metrics[tables.metrics["split"] == "train"].groupby("run_id")["step"].max()


def _steps(reading: Reading) -> Logs:
    bounds = [
        log_steps(losses, reading.thresholds, window=reading.window, diverged=bool(reading.diverged[run_id]))
        for run_id, losses in reading.losses.items()
    ]
    low, high = np.stack(bounds, axis=1) if bounds else np.empty((2, 0, len(reading.thresholds)))
    return Logs(pd.DataFrame(low, index=reading.diverged.index), pd.DataFrame(high, index=reading.diverged.index))


def _of_losses(reading: Reading, number: Callable[[pd.Series], float]) -> Logs:
    """A number of each run's losses as it is, +inf for those that diverged."""
    values = {run_id: number(losses) if len(losses) else np.nan for run_id, losses in reading.losses.items()}
    logs = pd.Series(values, index=reading.diverged.index, dtype=float).mask(reading.diverged, np.inf).to_frame()
    return Logs(logs, logs)


def _log(loss: float) -> float:
    return float(np.log(max(loss, _SMALLEST_LOSS)))


def _loss(reading: Reading, step: int) -> Logs:
    """Logarithm of the mean loss of the steps around one; NaN where the run did not reach it."""
    reach = reading.window // 2
    return _of_losses(
        reading,
        lambda losses: _log(losses.loc[step - reach : step + reach].mean()) if step in losses.index else np.nan,
    )


def _final_loss(reading: Reading) -> Logs:
    return _of_losses(reading, lambda losses: _log(losses.iloc[-reading.window :].mean()))


def _mean_log_loss(reading: Reading) -> Logs:
    """The mean logarithm of the loss over the run: the area under it, by the number of steps."""

    def area(losses: pd.Series) -> float:
        steps, logs = losses.index.to_numpy(float), np.log(losses.to_numpy().clip(min=_SMALLEST_LOSS))
        return float(np.trapezoid(logs, steps) / (steps[-1] - steps[0])) if len(losses) > 1 else float(logs[0])

    return _of_losses(reading, area)


def _test_error(reading: Reading) -> Logs:
    """Logarithm of the share of test images that the last evaluation found wrong, +inf if the run diverged."""
    metrics = reading.tables.metrics
    last = metrics[metrics["split"] == "test"].sort_values("step", kind="stable").groupby("run_id")["accuracy"].last()
    errors = (1 - last.astype(float)).clip(lower=_SMALLEST_LOSS).reindex(reading.diverged.index)
    logs = pd.Series(np.log(errors.to_numpy()), index=errors.index).mask(reading.diverged, np.inf).to_frame()
    return Logs(logs, logs)


def _gradient_norm(reading: Reading) -> Logs:
    """Logarithm of the gradient's norm at the first step."""
    metrics = reading.tables.metrics
    start = metrics[(metrics["split"] == "train") & (metrics["step"] == 0)].drop_duplicates("run_id", keep="last")
    norms = start.set_index("run_id")["grad_norm"].astype(float)
    return _exact(pd.Series(np.log(norms), index=norms.index), reading.tables)


def _conditioning(reading: Reading, name: str) -> Logs:
    """Mean logarithm of a statistic over a run's first measured steps; zeros and infinities are left out."""
    rows = _spectra(reading)
    logs = _exact(mean_logs(rows[name], rows["run_id"], reading.tables), reading.tables)
    if name not in BOUNDS:
        return logs
    is_bound = rows["resolved"].eq(False).groupby(rows["run_id"]).any().reindex(logs.low.index).eq(True)
    low = logs.low.mask(is_bound & logs.low[0].notna(), -np.inf) if BOUNDS[name] < 0 else logs.low
    high = logs.high.mask(is_bound & logs.high[0].notna(), np.inf) if BOUNDS[name] > 0 else logs.high
    return Logs(low, high)


def _isometry_cosine(reading: Reading) -> Logs:
    """Mean logarithm of the cosine between J and its nearest isometry.

    ``mean(σ) / √mean(σ²) = ‖J‖_* / (√k ‖J‖_F)``, whatever the scale of J: 1 where all k singular values are equal, 1/√k
    where one is all there is. Dynamical isometry (Pennington et al. 2017) without its scale.
    """
    rows = _spectra(reading)
    cosine = rows["sigma_mean"].astype(float) / rows["sigma_rms"].astype(float)
    return _exact(mean_logs(cosine, rows["run_id"], reading.tables), reading.tables)


def mean_logs(values: pd.Series, run_ids: pd.Series, tables: Experiment) -> pd.Series:
    """Mean logarithm of each run's positive finite values, by ``run_id``; NaN for runs without any.

    Args:
        values: Numbers, or None, of any runs.
        run_ids: The run of each.
        tables: The experiment, whose runs the result has.
    """
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    logs = np.log(numbers.where((numbers > 0) & np.isfinite(numbers)))
    index = pd.Index(tables.runs["run_id"], name="run_id")
    return pd.Series(logs, index=values.index).groupby(run_ids).mean().reindex(index).astype(float)


def _exact(logs: pd.Series, tables: Experiment) -> Logs:
    frame = logs.reindex(pd.Index(tables.runs["run_id"], name="run_id")).astype(float).to_frame().set_axis([0], axis=1)
    return Logs(frame, frame)


def _spectra(reading: Reading) -> pd.DataFrame:
    """The rows of the map and layer, each run's first by default, at the first ``SPECTRA_STEPS`` measured steps."""
    spectra = reading.tables.spectra
    for column, wanted in (("map", reading.map), ("layer", reading.layer)):
        if spectra.empty:
            return spectra
        names = sorted(spectra[column].unique())
        if wanted and wanted not in names:
            raise InputError(f"no {column} {wanted!r} was measured; there are {', '.join(names)}")
        chosen = wanted or spectra.groupby("run_id")[column].transform("first")
        spectra = spectra[spectra[column] == chosen]
    return spectra[spectra.groupby("run_id")["step"].rank(method="dense") <= SPECTRA_STEPS]


#: Every measure by name.
MEASURES: Final[Mapping[str, Callable[[Reading], Logs]]] = {
    "steps": _steps,
    "mean_log_loss": _mean_log_loss,
    "final_loss": _final_loss,
    "test_error": _test_error,
    "gradient_norm": _gradient_norm,
    **{name: partial(_conditioning, name=name) for name in STATISTICS},
    "isometry_cosine": _isometry_cosine,
}
