"""Arms of an experiment compared in pairs: ratios over trials, with Student's intervals at 95 %.

There is no verdict, and no correction for multiple tests.

``skip-conditioning ratios DIR``: each later arm over the one listed before it, and the last over the first.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import tyro
from scipy import stats

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.tables import STATISTICS, Experiment, read_experiment
from skip_conditioning.experiments.config.command_line import parse_options, run_command
from skip_conditioning.experiments.records.directory import read_options


@dataclass(frozen=True)
class Options:
    """Compare the arms of an experiment in pairs: ratios of geometric means over trials, with 95 % intervals."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """An experiment written by skip-conditioning train, or a folder of runs of your own."""

    measures: tuple[str, ...] = STATISTICS
    """Columns of the spectra table."""

    spectra_steps: int = 10
    """How many of the first measured steps to average a measure over (geometrically)."""

    loss_steps: tuple[int, ...] = (2, 5, 10, 20, 30)
    """Steps at which the training losses are compared."""


def paired_ratios(
    tables: Experiment, arms: Sequence[str], measures: Sequence[str], spectra_steps: int, loss_steps: Sequence[int]
) -> pd.DataFrame:
    """One row per measure and learning rate, one column per pair of arms: ratio [interval], and in how many trials < 1.

    A pair's trials are those in which both runs have the quantity, positive and finite; a diverged run has no loss at
    later steps, which the count shows.

    Args:
        tables: The experiment; each run's first measured layer counts.
        arms: In the order of comparison.
        measures: Columns of the spectra table.
        spectra_steps: How many of the first measured steps to average over.
        loss_steps: Steps of the training losses.

    Raises:
        InputError: Two runs are the same trial of an arm at the same learning rate.
    """
    _check_trials(tables.runs)
    logs = {name: _log_measure(tables, name, spectra_steps) for name in measures}
    logs |= {f"training loss at step {step}": _log_loss(tables, step) for step in loss_steps}
    pairs = list(pairwise(arms)) + ([(arms[0], arms[-1])] if len(arms) > 2 else [])
    rows = []
    for name, values in logs.items():
        frame = tables.runs[["run_id", "arm", "lr", "trial"]].assign(value=tables.runs["run_id"].map(values))
        rates: Any = frame.groupby("lr", dropna=False)
        for lr, group in rates:
            by_arm = group.pivot(index="trial", columns="arm", values="value").reindex(columns=list(arms))
            row = {f"{after} / {before}": _ratio(by_arm[after] - by_arm[before]) for before, after in pairs}
            rows.append({"quantity": name, "lr": f"{lr:g}" if np.isfinite(lr) else "–", **row})
    return pd.DataFrame(rows)


def _check_trials(runs: pd.DataFrame) -> None:
    """Check that a trial of an arm is one run, by which it is compared with those of other arms."""
    twice = runs[runs.duplicated(["arm", "lr", "trial"], keep=False)]
    if len(twice):
        first, second = twice[(twice[["arm", "trial"]] == twice[["arm", "trial"]].iloc[0]).all(axis=1)]["run_id"][:2]
        raise InputError(
            f"runs {first!r} and {second!r} are both trial {twice['trial'].iloc[0]} of arm {twice['arm'].iloc[0]!r}; "
            "number the trials, by SpectrumMonitor(trial=…) or in their config.json"
        )


def _log_measure(tables: Experiment, name: str, count: int) -> pd.Series:
    """Mean logarithm of a measure over each run's first steps, by run."""
    spectra = tables.spectra
    first = spectra[spectra["layer"] == spectra.groupby("run_id")["layer"].transform("first")]
    first = first[first.groupby("run_id")["step"].rank(method="dense") <= count]
    return _log(first[name]).groupby(first["run_id"]).mean()


def _log_loss(tables: Experiment, step: int) -> pd.Series:
    rows = tables.metrics[(tables.metrics["split"] == "train") & (tables.metrics["step"] == step)]
    return _log(rows["loss"]).set_axis(rows["run_id"])


def _log(values: pd.Series) -> pd.Series:
    return np.log(values.where(values > 0)).replace(np.inf, np.nan)


#: Fewer pairs have no interval.
_FEWEST_PAIRS = 5


def _ratio(differences: pd.Series) -> str:
    """The ratio, Student's interval of the mean logarithm (95 % for normal ones), and how many pairs are below 1."""
    differences = differences.dropna()
    if differences.empty:
        return "–"
    text, n = f"{np.exp(differences.mean()):.2f}", len(differences)
    if n >= _FEWEST_PAIRS and differences.nunique() > 1:
        reach = float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
        text += f" [{np.exp(differences.mean() - reach):.2f}, {np.exp(differences.mean() + reach):.2f}]"
    return f"{text}, < 1 in {int((differences < 0).sum())} of {n}"


def print_ratios(options: Options) -> None:
    """Print the table.

    Raises:
        InputError: The directory is no experiment with spectra and at least two arms, or a measure is unknown.
    """
    for name in options.measures:
        if name not in STATISTICS:
            raise InputError(
                f"unknown measure {name!r}; known are {', '.join(STATISTICS)}.{near_matches(name, STATISTICS)}"
            )
    tables = read_experiment(options.directory)
    if tables.spectra.empty:
        raise InputError(f"{options.directory} has no spectra; train with diagnostics, or analyse its checkpoints")
    arms = _listed_arms(options.directory, tables)
    if len(arms) < 2:
        raise InputError(f"{options.directory} has one arm only, {arms[0]}; there is nothing to compare")
    table = paired_ratios(tables, arms, options.measures, options.spectra_steps, options.loss_steps)
    print(table.to_string(index=False))


def _listed_arms(directory: Path, tables: Experiment) -> list[str]:
    """The arms in the order of the option ``--arms``."""
    known = list(tables.runs["arm"].dropna().unique())
    try:
        listed = read_options(directory).get("arms")
    except InputError:
        return known
    listed = listed if isinstance(listed, list) else []
    return [arm for arm in listed if arm in known] + [arm for arm in known if arm not in listed]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 for bad input."""
    return run_command(print_ratios, lambda: parse_options(Options, "skip-conditioning ratios", args))


if __name__ == "__main__":
    sys.exit(main())
