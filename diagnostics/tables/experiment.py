"""An experiment, or any folder of runs, read as pandas frames."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables.files import read_json, shortened
from skip_conditioning.diagnostics.tables.parts import read_table
from skip_conditioning.diagnostics.tables.schemas import KEYS, RUN_COLUMNS, SCHEMAS, SPECTRA

_RUN = "config.json"
_STATUS = "status.json"

#: What no 64-bit integer holds.
_HUGE = 2**63

#: What some columns of the runs table must be, where they are given.
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "run_id": (str, "text"),
    "arm": (str, "text"),
    "trial": (int, "a whole number"),
    "lr": ((int, float), "a number"),
    "loss_threshold": ((int, float), "a number"),
    "loss_window": (int, "a whole number"),
    "seconds": ((int, float), "a number"),
    "diagnostics_share": ((int, float), "a number"),
    "status": (str, "text"),
}


@dataclass(frozen=True)
class Experiment:
    """The tables of an experiment; ``run_id`` and ``step`` join them.

    Attributes:
        runs: One row per run, columns ``RUN_COLUMNS`` and whatever else the run's ``config.json`` holds. Of a run that
            does not say so the arm is its own name, the trial 0, and the learning rate the largest that it logged, or
            NaN.
        metrics: One row per run, step and split, columns of ``METRICS``.
        spectra: One row per run, step, map, layer (and sample), columns of ``SPECTRA``.
        skipped: One row per scheduled measurement that was not made, columns of ``SKIPPED``.
    """

    runs: pd.DataFrame
    metrics: pd.DataFrame
    spectra: pd.DataFrame
    skipped: pd.DataFrame


def run_directories(directory: Path) -> list[Path]:
    """The runs in an experiment (``directory/runs/*``) or a folder (``directory/*``), or the run that it is itself.

    Raises:
        InputError: The directory does not exist, or holds no run.
    """
    advice = "give an experiment, a run or a folder of runs"
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; {advice}")
    if _has_tables(directory):
        return [directory]
    runs = sorted(path for path in (directory / "runs").glob("*") if path.is_dir())
    # Not only spectra: the spectra of an analysis are no run.
    runs = runs or sorted(path for path in directory.glob("*") if (path / "metrics").is_dir())
    if not runs and (directory / _RUN).exists():
        return [directory]
    if not runs:
        raise InputError(f"{directory} holds no runs; {advice}")
    return runs


def read_experiment(directory: str | os.PathLike[str]) -> Experiment:
    """Read the tables of an experiment, or of a single run, as they are at this moment.

    Runs still in progress, diverged and failed ones are all included: see ``runs.status``.

    Args:
        directory: An experiment (which holds ``runs/``), a folder of runs, or one run's directory.

    Raises:
        InputError: The directory does not exist or holds no run, a file in it cannot be read, or two runs have the same
            name.
    """
    runs = run_directories(Path(directory))
    tables = {name: {run: _read_table(run, name) for run in runs} for name in SCHEMAS}
    frames = {name: _sorted(pd.concat(by_run.values(), ignore_index=True)) for name, by_run in tables.items()}
    logged = {run: pd.unique(pd.concat([by_run[run]["run_id"] for by_run in tables.values()])) for run in runs}
    return Experiment(runs=_described(_read_runs(logged), frames["metrics"]), **frames)


def empty_frame(name: str) -> pd.DataFrame:
    """One of the tables of ``SCHEMAS`` without rows, with its columns and types."""
    return _to_pandas(SCHEMAS[name].empty_table())


def spectra_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of a spectra table as a frame with the columns and types of ``SPECTRA``."""
    return _to_pandas(pa.Table.from_pylist([dict(row) for row in rows], schema=SPECTRA))


def _has_tables(directory: Path) -> bool:
    return any((directory / name).is_dir() for name in SCHEMAS)


def _read_runs(logged: Mapping[Path, Iterable[str]]) -> pd.DataFrame:
    """The runs as their ``config.json`` and ``status.json`` describe them.

    Args:
        logged: Names of runs in the tables of each directory. Where no description gives a name they are the runs.
    """
    rows: dict[str, dict[str, Any]] = {}
    directories: dict[str, Path] = {}
    for run, names in logged.items():
        described: dict[str, Any] = {}
        for name in (_RUN, _STATUS):
            if (run / name).exists():
                described |= _checked(run / name)
        recorded = [described["run_id"]] if "run_id" in described else []
        for run_id in dict.fromkeys([*recorded, *names]) or [run.resolve().name]:
            if run_id in rows:
                raise InputError(
                    f"{directories[run_id]} and {run} both hold a run named {run_id!r}; give each run its own name"
                )
            is_described = not recorded or run_id in recorded
            rows[run_id] = {**(described if is_described else {}), "run_id": run_id}
            directories[run_id] = run
    frame = pd.DataFrame(list(rows.values()))
    return frame.reindex(columns=[*RUN_COLUMNS, *(name for name in frame.columns if name not in RUN_COLUMNS)])


def _checked(path: Path) -> dict[str, Any]:
    """The description or status of a run, without what is null.

    Raises:
        InputError: It cannot be read, or a field is not what it should be.
    """
    content = {name: value for name, value in read_json(path).items() if value is not None}
    for name, (types, kind) in _TYPES.items():
        value = content.get(name)
        is_huge = isinstance(value, int) and abs(value) >= _HUGE
        if value is not None and (not isinstance(value, types) or isinstance(value, bool) or is_huge):
            shown = "beyond all numbers" if is_huge else shortened(repr(value), 40)
            raise InputError(f"{path}: {name!r} should be {kind}; it is {shown}; remove the run or restore the file")
    return content


def _described(runs: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """The runs with what a user's own loop need not say: arm, trial and learning rate."""
    logged = runs["run_id"].map(metrics.groupby("run_id")["lr"].max())
    return runs.assign(
        arm=runs["arm"].astype(object).fillna(runs["run_id"]),
        trial=runs["trial"].astype(object).fillna(0).astype(int),
        lr=runs["lr"].astype(float).fillna(logged.astype(float)),
    )


def _read_table(run: Path, name: str) -> pd.DataFrame:
    """A table of one run; of two rows with the same key the one written later counts."""
    return _to_pandas(read_table(run / name, SCHEMAS[name])).drop_duplicates(list(KEYS[name]), keep="last")


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted by step only: layers stay in the order of the forward pass, in which they were measured."""
    return frame.sort_values(["run_id", "step"], kind="stable", ignore_index=True)


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas()
    return frame.astype({"sample": "Int64"}) if "sample" in frame else frame
