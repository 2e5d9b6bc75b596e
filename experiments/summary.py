"""Summary of an experiment on one screen: conditioning and speed per arm and learning rate, and where its files are."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import tyro

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, read_experiment
from skip_conditioning.diagnostics.tables.files import read_parquet, shortened
from skip_conditioning.diagnostics.tables.schemas import SPEED as SPEED_TABLE
from skip_conditioning.experiments.config.command_line import parse_options, run_command
from skip_conditioning.experiments.speed import SPEED, speed_table


def summary_table(directory: Path) -> pd.DataFrame:
    """One row per learning rate and arm, medians over trials.

    Columns: ``runs``; ``diverged`` and ``never reached`` (the loss threshold) among them; ``steps to loss ≤ …`` and
    ``final loss``, in which runs that never got there or diverged count as worse than all others (``–`` when the
    median is one of them); and of the first spectrum measured of the first layer: ``first κ`` (``≥`` where some
    σ_min is not resolved), ``first σ mean``.
    """
    tables = read_experiment(directory)
    frame = tables.runs.drop(columns="loss_threshold", errors="ignore").merge(_speed(directory, tables), on="run_id")
    frame = frame.merge(_first_spectra(tables.spectra), on="run_id", how="left")
    rows = []
    for (lr, arm), group in frame.groupby(["lr", "arm"], sort=False, dropna=False):
        row = {
            "lr": _rate(lr),
            "arm": arm,
            "runs": len(group),
            "diverged": int(group["diverged"].sum()),
            "never reached": int((group["censored"] & ~group["diverged"]).sum()),
            f"steps to loss ≤ {group['loss_threshold'].iloc[0]:g}": _median(
                group["steps_to_threshold"], group["censored"]
            ),
            "final loss": _median(group["final_loss"], group["diverged"]),
        }
        measured = group.dropna(subset="condition_number")
        if len(measured):
            bound = "" if measured["resolved"].all() else "≥"
            row |= {
                "first κ": f"{bound}{measured['condition_number'].median():.3g}",
                "first σ mean": f"{measured['sigma_mean'].median():.3g}",
            }
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["lr", "arm"], key=lambda column: column.map(_order(frame)), kind="stable")


def print_summary(directory: Path) -> None:
    """Print the table and where the files of the experiment are.

    Raises:
        InputError: The directory is no experiment, or its speed table lacks runs or is damaged.
    """
    tables = read_experiment(directory)
    print(f"\n{summary_table(directory).to_string(index=False)}\n")
    if "loss_threshold" not in tables.runs and not (directory / SPEED).exists():
        print(
            "the loss to reach is the lowest that every run reached; for another: skip-conditioning speed "
            f"{directory} --loss-threshold …"
        )
    if "diagnostics_share" in tables.runs and len(tables.spectra):
        share = tables.runs["diagnostics_share"].median()
        print(f"diagnostics took {share:.1%} of the training time (median run)")
    if len(tables.skipped):
        print(f"{len(tables.skipped)} scheduled measurements were skipped; why: the tables in runs/*/skipped")
    contents = {
        "runs": "tables and checkpoints",
        SPEED: "speed",
        "analysis": "spectra of checkpoints",
        "figures": "figures",
    }
    for name, what in contents.items():
        if (directory / name).exists():
            print(f"{what}: {directory / name}")


def _speed(directory: Path, tables: Experiment) -> pd.DataFrame:
    """The speed table on disk, or one made now where there is none."""
    path = directory / SPEED
    remedy = f"write it again with: skip-conditioning speed {directory}"
    if not path.exists():
        return speed_table(tables.runs, tables.metrics)
    speed = read_parquet(path, SPEED_TABLE, remedy)
    missing = set(tables.runs["run_id"]) - set(speed["run_id"])
    if missing:
        raise InputError(f"{path} lacks run {shortened(min(missing))!r}; {remedy}")
    return speed


def _rate(lr: Any) -> str:
    return f"{lr:g}" if np.isfinite(lr) else "–"


def _median(values: pd.Series, worse_than_all: pd.Series) -> str:
    """Median of values some of which are only known to be larger than all others."""
    median = values.astype(float).mask(worse_than_all, np.inf).median()
    return f"{median:.4g}" if np.isfinite(median) else "–"


def _first_spectra(spectra: pd.DataFrame) -> pd.DataFrame:
    """The first spectrum of each run, of the layer listed first when several were measured at once."""
    return spectra.sort_values("step", kind="stable").drop_duplicates("run_id")[
        ["run_id", "map", "layer", "condition_number", "sigma_mean", "resolved"]
    ]


def _order(frame: pd.DataFrame) -> dict[str, int]:
    """Sort keys: learning rates by size, arms in their order in the runs table."""
    rates = [_rate(lr) for lr in sorted(frame["lr"].unique())]
    return {name: index for index, name in enumerate([*rates, *frame["arm"].unique()])}


@dataclass(frozen=True)
class Options:
    """Print the conditioning and speed of each arm and learning rate, and where the files of the experiment are."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """An experiment written by skip-conditioning train, or a folder of runs of your own."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 for bad input."""
    return run_command(
        lambda options: print_summary(options.directory),
        lambda: parse_options(Options, "skip-conditioning summary", args),
    )


if __name__ == "__main__":
    sys.exit(main())
