"""Tables on disk: small Parquet parts, readable at any moment, and an experiment read as pandas frames.

A run directory holds ``config.json``, ``status.json``, ``metrics/``, ``spectra/``, ``skipped/`` and
``checkpoints/``; an experiment holds its runs under ``runs/``. A part is written under a temporary name (which
``pandas.read_parquet`` ignores, as it begins with a dot) and then renamed, so a reader never sees half of one.

This module does not import torch, so that figures can be drawn without it.
"""

import contextlib
import errno
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from skip_conditioning.diagnostics.errors import InputError

_TEXT, _INT, _REAL, _FLAG, _LIST = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.float64())

#: Statistics of a spectrum, in the order in which tables and printed summaries show them.
STATISTICS = (
    "sigma_max",
    "sigma_min",
    "sigma_mean",
    "sigma_gmean",
    "sigma_median",
    "sigma_rms",
    "condition_number",
    "rank",
    "effective_rank",
    "stable_rank",
)

SPECTRA = pa.schema(
    [
        ("run_id", _TEXT),
        ("step", _INT),
        ("map", _TEXT),
        ("layer", _TEXT),
        ("batch_mode", _TEXT),
        ("sample", _INT),
        *((name, _REAL) for name in STATISTICS),
        ("resolved", _FLAG),
        ("trace", _REAL),
        ("rayleigh", _REAL),
        ("rows", _INT),
        ("cols", _INT),
        ("method", _TEXT),
        ("dtype", _TEXT),
        ("floor", _REAL),
        ("witness", _REAL),
        *((f"{name}_se", _REAL) for name in STATISTICS),
        ("seconds", _REAL),
        ("peak_bytes", _INT),
        ("note", _TEXT),
        ("values", _LIST),
        ("nodes", _LIST),
        ("weights", _LIST),
    ]
)

#: The Polyak–Łojasiewicz chain of the loss on the probe, and how far one step lowered the loss: ``grad_squared`` is
#: ``|∇ℓ|²``, ``pl_floor`` and ``pl_ceiling`` bound it, and ``pl_verdict`` is ``holds``, ``violated: <statements>`` or
#: ``vacuous: <statements and causes>`` (``theory.pl_inequality``); the decreases are those of ``loss.descent``.
BOUNDS = (
    "grad_squared",
    "cost_grad_squared",
    "pl_floor",
    "pl_floor_centred",
    "rayleigh",
    "pl_ceiling",
    "predicted_decrease",
    "observed_decrease",
    "pl_verdict",
)

METRICS = pa.schema(
    [
        ("run_id", _TEXT),
        ("step", _INT),
        ("epoch", _REAL),
        ("split", _TEXT),
        ("loss", _REAL),
        ("accuracy", _REAL),
        ("lr", _REAL),
        ("grad_norm", _REAL),
        ("seconds", _REAL),
        *((name, _REAL) for name in BOUNDS[:-1]),
        (BOUNDS[-1], _TEXT),
    ]
)

#: Scheduled measurements that were not made, and why.
SKIPPED = pa.schema(
    [
        ("run_id", _TEXT),
        ("step", _INT),
        ("map", _TEXT),
        ("layers", _TEXT),
        ("batch_mode", _TEXT),
        ("reason", _TEXT),
        ("estimated_seconds", _REAL),
    ]
)

RUN_COLUMNS = (
    "run_id", "experiment", "dataset", "model", "arm", "trial", "seed", "lr",
    "status", "device", "versions", "git_revision",
)  # fmt: skip

#: Columns that identify a row within each table; of two rows with the same key the one written later counts.
KEYS = {
    "metrics": ("run_id", "step", "split"),
    "spectra": ("run_id", "step", "map", "layer", "batch_mode", "sample"),
    "skipped": ("run_id", "step", "map", "layers", "batch_mode"),
}
SCHEMAS = {"metrics": METRICS, "spectra": SPECTRA, "skipped": SKIPPED}


@dataclass(frozen=True)
class Experiment:
    """The tables of an experiment; ``run_id`` and ``step`` join them.

    Attributes:
        runs: One row per run, columns ``RUN_COLUMNS`` and whatever else the run's ``config.json`` holds.
        metrics: One row per run, step and split, columns of ``METRICS``.
        spectra: One row per run, step, map, layer (and sample), columns of ``SPECTRA``.
        skipped: One row per scheduled measurement that was not made, columns of ``SKIPPED``.
    """

    runs: pd.DataFrame
    metrics: pd.DataFrame
    spectra: pd.DataFrame
    skipped: pd.DataFrame


class TableWriter:
    """Appends rows to one table of one run, as Parquet parts that a reader can open at any moment.

    Parts that something else adds meanwhile are an error before the first part is written, later a warning.

    Args:
        directory: The table's folder; made if missing.
        schema: Columns and types of every part. Missing columns are filled with nulls.

    Raises:
        InputError: The folder cannot be written, or the disk is full.
    """

    def __init__(self, directory: Path, schema: pa.Schema) -> None:
        self.directory, self.schema = directory, schema
        self._rows: list[dict[str, Any]] = []
        with clear_disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            if not os.access(directory, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._known, self._has_written = self._parts(), False

    @property
    def last_step(self) -> int | None:
        """The last step that the parts on disk cover; None where there are none."""
        return max((_steps(part)[1] for part in self._parts()), default=None)

    def append(self, row: Mapping[str, Any]) -> None:
        """Keep a row in memory until the next ``flush``; a column the table does not have is an error."""
        unknown = set(row) - set(self.schema.names)
        if unknown:
            raise InputError(f"unknown column {sorted(unknown)[0]!r}; the table has {', '.join(self.schema.names)}")
        self._rows.append({name: row.get(name) for name in self.schema.names})

    def flush(self) -> None:
        """Write the rows in memory as one part, named after the steps it covers.

        Raises:
            InputError: Something else has written to the folder, or it cannot be written.
        """
        if not self._rows:
            return
        self._require_own()
        # Scalars still on a device are fetched here, all at once, and not when they are logged.
        rows = [{name: _number(value) for name, value in row.items()} for row in self._rows]
        steps = [row["step"] for row in self._rows]
        stem = f"part-{min(steps):09d}-{max(steps):09d}"
        number = sum(1 for _ in self.directory.glob(f"{stem}-*.parquet"))
        table = pa.Table.from_pylist(rows, schema=self.schema)
        part = self.directory / f"{stem}-{number:03d}.parquet"
        write_parquet(table, part)
        self._known.add(part)
        self._has_written = True
        self._rows.clear()

    def rewind(self, step: int) -> None:
        """Delete every row after ``step``: those that a killed run logged after the checkpoint it resumes from."""
        for part in sorted(self._parts()):
            first, last = _steps(part)
            if first > step:
                part.unlink()
            elif last > step:
                table = _read_part(part, self.schema)
                write_parquet(table.filter(pa.compute.field("step") <= step), part)
        for leftover in self.directory.glob(".*.tmp"):
            leftover.unlink()
        self._known = self._parts()

    def _parts(self) -> set[Path]:
        return set(self.directory.glob("part-*.parquet"))

    def _require_own(self) -> None:
        """Check that nothing else writes to the folder, which would mix its rows with these."""
        others = self._parts() - self._known
        if not others:
            return
        message = f"something else writes to {self.directory} ({min(others).name}); give each run a folder of its own"
        if not self._has_written:
            raise InputError(message)
        warnings.warn(message, stacklevel=3)
        self._known |= others


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table whole or not at all."""
    with _written_whole(path) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file whole or not at all."""
    with _written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes ``path`` at the end, or is removed if writing fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    with clear_disk_errors(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run or an experiment.

    Raises:
        InputError: It cannot be read, or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); remove the run or restore the file") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold a JSON object; remove the run or restore the file")
    return content


def run_directories(directory: Path) -> list[Path]:
    """The runs of an experiment, or the run itself when the directory is one.

    Raises:
        InputError: The directory does not exist, or holds no run.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; give an experiment or a run of skip-conditioning train")
    if any((directory / name).exists() for name in ("config.json", *SCHEMAS)):
        return [directory]
    runs = sorted(path for path in (directory / "runs").glob("*") if path.is_dir())
    if not runs:
        raise InputError(f"{directory} holds no runs; give an experiment or a run of skip-conditioning train")
    return runs


def read_experiment(directory: str | os.PathLike[str]) -> Experiment:
    """Read the tables of an experiment, or of a single run, as they are at this moment.

    Runs still in progress, diverged and failed ones are all included: see ``runs.status``.

    Args:
        directory: An experiment (which holds ``runs/``) or one run's directory.

    Raises:
        InputError: The directory does not exist or holds no run, or a file in it cannot be read.
    """
    runs = run_directories(Path(directory))
    return Experiment(
        runs=_read_runs(runs), **{name: _read_table(runs, name) for name in ("metrics", "spectra", "skipped")}
    )


def empty_frame(name: str) -> pd.DataFrame:
    """One of the tables of ``SCHEMAS`` without rows, with its columns and types."""
    return _to_pandas(SCHEMAS[name].empty_table())


def spectra_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of a spectra table as a frame with the columns and types of ``SPECTRA``."""
    return _to_pandas(pa.Table.from_pylist([dict(row) for row in rows], schema=SPECTRA))


def _read_runs(runs: list[Path]) -> pd.DataFrame:
    rows = []
    for run in runs:
        row: dict[str, Any] = {"run_id": run.name}
        for name in ("config.json", "status.json"):
            if (run / name).exists():
                row |= read_json(run / name)
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=[*RUN_COLUMNS, *(name for name in frame.columns if name not in RUN_COLUMNS)])


def _read_table(runs: list[Path], name: str) -> pd.DataFrame:
    schema = SCHEMAS[name]
    parts = [part for run in runs for part in sorted((run / name).glob("part-*.parquet"), key=_time_written)]
    tables = [_read_part(part, schema) for part in parts]
    frame = _to_pandas(pa.concat_tables(tables) if tables else schema.empty_table())
    keys = list(KEYS[name])
    # Sorted by step only: layers stay in the order of the forward pass, in which they were measured.
    frame = frame.drop_duplicates(keys, keep="last")
    return frame.sort_values(["run_id", "step"], kind="stable", ignore_index=True)


def _read_part(part: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.ParquetFile(part).read(columns=schema.names).select(schema.names).cast(schema)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        table = part.parent.name
        raise InputError(f"{part} is not a readable part of the {table} table ({error}); remove it") from error


def _steps(part: Path) -> tuple[int, int]:
    """The first and the last step of a part, by its name."""
    first, last = part.stem.split("-")[1:3]
    return int(first), int(last)


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _time_written(part: Path) -> tuple[int, str]:
    return part.stat().st_mtime_ns, part.name


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas()
    return frame.astype({"sample": "Int64"}) if "sample" in frame else frame


@contextlib.contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into one line that names the path and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write {path} ({reason}); free some space or choose another path") from error
