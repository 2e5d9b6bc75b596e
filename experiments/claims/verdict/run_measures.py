"""Measures that claims compare: the logarithm of one positive number per run, its speed or its conditioning.

In every measure of speed less is faster, and a run that diverged is slower than all others: its logarithm is +inf at
every step, even one before it diverged, so that it is never dropped. In ``steps_to_threshold`` a run that never reached
the threshold is +inf too: it is right-censored, and all that is known is that it comes after those that did. NaN means
that nothing was measured.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.tables import STATISTICS, Experiment
from skip_conditioning.experiments.speed import AT_STEPS, speed_table

#: Conditioning is the geometric mean over so many of a run's first measured steps, as in ``paired_ratios``.
SPECTRA_STEPS: Final = 10
#: Measures that are bounds where the spectrum is unresolved; the true value is then larger (1) or smaller (-1).
BOUNDS: Final[Mapping[str, int]] = {"condition_number": 1, "sigma_min": -1}
#: Measures of a run as a whole, which compare only runs that were trained for equally many steps.
OF_WHOLE_RUN: Final = frozenset({"steps_to_threshold", "mean_log_loss", "final_loss"})

_SMALLEST_LOSS = float(np.finfo(np.float32).tiny)


def speed_log(tables: Experiment, name: str, *, is_log: bool = False) -> pd.Series:
    """Logarithm of a column of the speed table by ``run_id``, +inf for diverged runs.

    Args:
        tables: The experiment.
        name: A column of ``experiments.speed.speed_table`` other than ``steps_to_threshold``.
        is_log: Whether the column is a logarithm already.
    """
    # No loss at a step depends on the threshold, so runs without one can be compared as well.
    speed = speed_table(tables.runs, tables.metrics, loss_threshold=0.0).set_index("run_id")
    values = speed[name].astype(float)
    logs = values if is_log else pd.Series(np.log(values.clip(lower=_SMALLEST_LOSS)), index=values.index)
    return logs.mask(speed["diverged"], np.inf).rename(name)


def steps_to_threshold_log(tables: Experiment) -> pd.Series:
    """Logarithm of the steps to the threshold by ``run_id``.

    +inf for censored and diverged runs, -inf where the loss was under the threshold before the first step.

    Raises:
        InputError: A run was configured without a threshold.
    """
    speed = speed_table(tables.runs, tables.metrics).set_index("run_id")
    logged = tables.metrics.loc[tables.metrics["split"] == "train", "run_id"]
    with np.errstate(divide="ignore"):
        logs = pd.Series(np.log(speed["steps_to_threshold"].astype(float)), index=speed.index)
    unmeasured = ~speed.index.isin(logged) & ~speed["diverged"]
    return logs.mask(speed["censored"], np.inf).mask(unmeasured, np.nan).rename("steps_to_threshold")


def conditioning_log(tables: Experiment, name: str) -> pd.Series:
    """Mean logarithm of a statistic over a run's first measured steps, by ``run_id``; NaN where it was not measured.

    Args:
        tables: The experiment; each run's first measured map and layer count.
        name: One of ``STATISTICS``; zeros and infinities are left out.
    """
    rows = _first_rows(tables.spectra)
    return mean_logs(rows[name], rows["run_id"], tables).rename(name)


def isometry_cosine_log(tables: Experiment) -> pd.Series:
    """Mean logarithm of the cosine between J and its nearest isometry, as ``conditioning_log``.

    ``mean(σ) / √mean(σ²) = ‖J‖_* / (√k ‖J‖_F)``, whatever the scale of J: 1 where all k singular values are equal, 1/√k
    where one is all there is. Dynamical isometry (Pennington et al. 2017) without its scale.
    """
    rows = _first_rows(tables.spectra)
    cosine = rows["sigma_mean"].astype(float) / rows["sigma_rms"].astype(float)
    return mean_logs(cosine, rows["run_id"], tables).rename("isometry_cosine")


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


def unresolved(tables: Experiment) -> pd.Series:
    """Whether the smallest singular value of a run is under its floor at any of its first steps, by ``run_id``.

    The condition number of such a run is a lower bound and its ``sigma_min`` an upper one; ``sigma_gmean`` is that of
    ``max(σ, floor)`` by definition and compared as it is (see ``diagnostics.spectrum``).
    """
    rows = _first_rows(tables.spectra)
    flags = rows["resolved"].eq(False).groupby(rows["run_id"]).any()
    return flags.reindex(pd.Index(tables.runs["run_id"], name="run_id")).eq(True).rename("unresolved")


def train_steps(tables: Experiment) -> pd.Series:
    """The last step at which the training loss of each run was logged, by ``run_id``."""
    return tables.metrics[tables.metrics["split"] == "train"].groupby("run_id")["step"].max()


def _first_rows(spectra: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's first measured map and layer, at the first ``SPECTRA_STEPS`` measured steps."""
    if spectra.empty:
        return spectra
    keys = ["map", "layer"]
    first = spectra.groupby("run_id")[keys].transform("first")
    rows = spectra[(spectra[keys] == first).all(axis=1)]
    return rows[rows.groupby("run_id")["step"].rank(method="dense") <= SPECTRA_STEPS]


#: Every measure by name: from the tables of an experiment to one logarithm per run.
MEASURES: Final[Mapping[str, Callable[[Experiment], pd.Series]]] = {
    **{f"loss_at_step_{step}": partial(speed_log, name=f"loss_at_step_{step}") for step in AT_STEPS},
    "final_loss": partial(speed_log, name="final_loss"),
    "mean_log_loss": partial(speed_log, name="auc_log_loss", is_log=True),
    "steps_to_threshold": steps_to_threshold_log,
    **{name: partial(conditioning_log, name=name) for name in STATISTICS},
    "isometry_cosine": isometry_cosine_log,
}

#: What texts call each measure.
NAMES: Final[Mapping[str, str]] = {
    **{f"loss_at_step_{step}": f"training loss at step {step}" for step in AT_STEPS},
    "final_loss": "training loss at the end",
    "mean_log_loss": "mean log loss over the run",
    "steps_to_threshold": "steps to the threshold",
    "sigma_max": "largest singular value",
    "sigma_min": "smallest singular value",
    "sigma_mean": "mean singular value",
    "sigma_gmean": "geometric mean of the singular values",
    "sigma_median": "median singular value",
    "sigma_rms": "root mean square of the singular values",
    "condition_number": "condition number",
    "rank": "numerical rank",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "isometry_cosine": "nearness to isometry",
}
