"""Choosing rows of an experiment's tables: runs, one map's spectra, one measure of them, the speed table."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError, UnknownLayerError, near_matches
from skip_conditioning.diagnostics.tables import STATISTICS, Experiment, run_directories
from skip_conditioning.diagnostics.tables.files import read_parquet
from skip_conditioning.diagnostics.tables.schemas import SPEED
from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.drawing.singular_values import weighted_quantile, with_points

#: Measures that count something and may be zero: averaged arithmetically, drawn on a linear scale.
COUNTS = frozenset({"rank", "effective_rank", "stable_rank"})
_QUANTILE = re.compile(r"sigma_q(\d{1,2})")
#: Measures that are only a bound when a singular value lies under its floor, and on which side the truth is.
_BOUNDED = {"condition_number": "above", "sigma_min": "below", "sigma_gmean": "below"}


def check_option(kind: str, value: str, known: Iterable[str]) -> None:
    """Raise ``InputError``, with the near matches, unless the value is a known one."""
    known = list(known)
    if value not in known:
        raise InputError(f"unknown {kind} {value!r}; known are {', '.join(known)}.{near_matches(value, known)}")


def in_order_of(arms: Sequence[str], experiment: Experiment) -> Experiment:
    """The experiment with its runs in the order of the arms, which figures follow; other arms come last."""
    order = experiment.runs["arm"].map({arm: rank for rank, arm in enumerate(arms)}).fillna(len(arms))
    runs = experiment.runs.loc[order.sort_values(kind="stable").index].reset_index(drop=True)
    return dataclasses.replace(experiment, runs=runs)


def in_listed_order(experiment: Experiment, directory: Path) -> Experiment:
    """The experiment with its runs in the order in which the user listed the arms, as ``experiment.json`` has it."""
    try:
        description = json.loads((directory / "experiment.json").read_text())
        arms = [str(arm) for arm in description["network"]["arms"]]
    except (OSError, ValueError, KeyError, TypeError):  # a figure without this order is still right
        return experiment
    return in_order_of(arms, experiment)


def described_runs(experiment: Experiment) -> pd.DataFrame:
    """The runs; what a user's own training loop does not record of status, model and dataset is filled in.

    Raises:
        NothingToDrawError: There is no run.
    """
    runs = experiment.runs
    if runs.empty:
        raise NothingToDrawError("the experiment has no runs yet")
    given = runs[["status", "model", "dataset"]].astype(object)
    return runs.assign(
        status=given["status"].fillna("running"), model=given["model"].fillna(""), dataset=given["dataset"].fillna("")
    )


def chosen_lr(runs: pd.DataFrame, lr: float | None = None) -> tuple[float, pd.DataFrame]:
    """The runs at one learning rate, by default the largest at which none diverged (else the smallest).

    Raises:
        InputError: No run has the learning rate asked for.
    """
    rates = runs["lr"].unique()
    if lr is None:
        stable = [rate for rate in rates if not (runs.loc[runs["lr"] == rate, "status"] == "diverged").any()]
        lr = float(np.max(stable)) if stable else float(np.min(rates))
    chosen = runs[runs["lr"].isna() if np.isnan(lr) else np.isclose(runs["lr"], lr)]
    if chosen.empty:
        raise InputError(f"no run has learning rate {lr:g}; there are {', '.join(f'{r:g}' for r in sorted(rates))}")
    return lr, chosen


def select_spectra(experiment: Experiment, map: str, batch_mode: str | None = None) -> pd.DataFrame:
    """Spectra of one map; of one batch mode, by default ``batch`` where it was measured, else ``sample``.

    Raises:
        NothingToDrawError: The map was not measured (so); the message names those that were.
    """
    spectra = experiment.spectra
    if spectra.empty:
        raise NothingToDrawError("no spectra were measured; those of checkpoints are, by: skip-conditioning analyse")
    of_map = spectra[spectra["map"] == map]
    modes = set(of_map["batch_mode"])
    chosen = of_map[of_map["batch_mode"] == (batch_mode or ("batch" if "batch" in modes else "sample"))]
    if chosen.empty:
        measured = spectra[["map", "batch_mode"]].drop_duplicates().itertuples(index=False)
        names = ", ".join(sorted(f"{row.map} ({row.batch_mode})" for row in measured))
        wanted = f"map {map!r}" + (f" in batch mode {batch_mode!r}" if batch_mode else "")
        raise NothingToDrawError(f"no spectra of {wanted}; measured: {names}")
    return chosen


def of_layer(spectra: pd.DataFrame, layer: str | None = None) -> tuple[str, pd.DataFrame]:
    """Spectra of one layer, by default the first measured one of each run.

    Returns:
        The layer's name (``the first layer`` where runs differ in it) and its rows.

    Raises:
        UnknownLayerError: The layer was not measured; the message names near matches.
    """
    if layer is None:
        first = spectra.groupby("run_id", sort=False)["layer"].transform("first")
        chosen = spectra[spectra["layer"] == first]
        names = chosen["layer"].unique()
        return (names[0] if len(names) == 1 else "the first layer"), chosen
    if layer not in set(spectra["layer"]):
        layers = list(spectra["layer"].unique())
        hint = near_matches(layer, layers) or f" Measured: {', '.join(layers)}"
        raise UnknownLayerError(f"layer {layer!r} was not measured.{hint}")
    return layer, spectra[spectra["layer"] == layer]


def first_steps(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """Rows of the first ``count`` measured steps of each run."""
    if count < 1:
        raise InputError(f"the number of first steps to average must be 1 or more, not {count}")
    return rows[rows.groupby("run_id")["step"].rank("dense") <= count]


def first_steps_label(rows: pd.DataFrame, several: str) -> str:
    """How to name the steps of ``first_steps``: ``at initialisation``, or ``several`` and their number."""
    low, high = int(rows["step"].min()), int(rows["step"].max())
    if low == high:
        return "at initialisation" if low == 0 else f"at step {low}"
    return f"{several} the {rows.groupby('run_id')['step'].nunique().max()} measured steps {low}–{high}"


def measured(spectra: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One measure of each spectrum.

    Args:
        spectra: Rows of the spectra table.
        measure: One of ``tables.STATISTICS``, or ``sigma_qNN`` for the NN % quantile of the values.

    Returns:
        Columns ``run_id, step, layer, value, error, bound``, samples averaged; ``error`` is the standard error
        where the value is an estimate (else NaN), ``bound`` is ``above`` or ``below`` where the truth lies on that
        side of the value, else the empty string.

    Raises:
        InputError: There is no such measure.
        NothingToDrawError: No spectrum has it; a quantile needs singular values or a density.
    """
    check_measure(measure)
    quantile = _QUANTILE.fullmatch(measure)
    keys = ["run_id", "step", "layer"]
    rows = _quantiles(spectra, int(quantile[1]) / 100) if quantile else _statistics(spectra, measure)
    rows = rows[np.isfinite(rows["value"])]
    if rows.empty:
        raise NothingToDrawError(f"no spectrum has the measure {measure!r}")
    return averaged(rows, keys, measure)


def _statistics(spectra: pd.DataFrame, measure: str) -> pd.DataFrame:
    rows = spectra[["run_id", "step", "layer"]].assign(
        value=spectra[measure].astype(float), error=spectra[f"{measure}_se"].astype(float)
    )
    bounded = ~spectra["resolved"].astype(bool)
    if measure == "sigma_gmean":
        # The ends of an estimated spectrum are bounds always, its mean only where nodes were raised to the floor.
        smallest = spectra["nodes"].map(np.min, na_action="ignore").astype(float)
        bounded &= smallest.isna() | (smallest <= spectra["floor"])
    return rows.assign(bound=np.where(bounded, _BOUNDED.get(measure, ""), ""))


def _quantiles(spectra: pd.DataFrame, share: float) -> pd.DataFrame:
    points = with_points(spectra)
    if len(points) < len(spectra):
        raise NothingToDrawError(
            f"sigma_q{100 * share:02.0f} needs singular values or their density, and some spectra have neither"
        )
    values = [weighted_quantile(*pair, share) for pair in zip(points["points"], points["counts"], strict=True)]
    rows = points[["run_id", "step", "layer"]].assign(value=values, error=np.nan)
    # A quadrature does not see past the middle of its outermost nodes: there the quantile is the node, a bound.
    ends = [(counts[-1] / counts.sum() / 2, 1 - counts[0] / counts.sum() / 2) for counts in points["counts"]]
    low, high = np.transpose(ends)
    estimate = points["values"].isna()
    below = (rows["value"] <= points["floor"]) | (estimate & (share < low))
    return rows.assign(bound=np.select([below, estimate & (share > high)], ["below", "above"], ""))


def check_measure(measure: str) -> None:
    """Raise ``InputError`` unless ``measured`` knows the measure."""
    if not _QUANTILE.fullmatch(measure):
        check_option("measure", measure, [*STATISTICS, "sigma_q10 (or another quantile)"])


def averaged(rows: pd.DataFrame, keys: list[str], measure: str) -> pd.DataFrame:
    """Mean of ``value`` per key, geometric unless the measure is a count; a mean over a bound is one.

    The ``error`` of a mean is that of independent estimates; exact values (NaN) have none. It says how far the mean
    of these very runs is known, not how much runs differ.
    """
    logs = measure not in COUNTS
    with np.errstate(divide="ignore", invalid="ignore"):  # a vanished value makes the geometric mean vanish
        values = np.log(rows["value"]) if logs else rows["value"]
        squares = (rows["error"] / rows["value"] if logs else rows["error"]) ** 2
        groups = rows.assign(value=values, square=squares).groupby(keys, sort=False, dropna=False)
        means = groups["value"].mean()
        means = np.exp(means) if logs else means
        errors = np.sqrt(groups["square"].sum(min_count=1)) / groups.size() * (means if logs else 1)
    return pd.DataFrame({"value": means, "error": errors, "bound": groups["bound"].max()}).reset_index()


def read_speed(directory: Path) -> pd.DataFrame:
    """The experiment's speed table, one row per run.

    Raises:
        InputError: It is missing or cannot be read; the message says how to make it.
    """
    if run_directories(directory) == [directory]:
        raise NothingToDrawError(f"{directory} is a single run, with none to compare it with; give a folder of runs")
    path = directory / "speed.parquet"
    remedy = f"make it with: skip-conditioning speed {directory}"
    if not path.exists():
        raise NothingToDrawError(f"{path} is missing; {remedy}")
    return read_parquet(path, SPEED, remedy)
