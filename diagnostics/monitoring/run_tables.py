"""The tables that a run writes while it trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import METRICS, SKIPPED, SPECTRA, TableWriter


class RunTables:
    """The tables ``metrics``, ``spectra`` and ``skipped`` of one run; rows wait in memory until they are flushed.

    Args:
        out: The run's directory.
        run_id: Name of the run, in every row.

    Raises:
        InputError: A directory that cannot be written.
    """

    def __init__(self, out: Path, run_id: str) -> None:
        schemas = {"metrics": METRICS, "spectra": SPECTRA, "skipped": SKIPPED}
        self._run_id = run_id
        self._writers = {name: TableWriter(out / name, schema) for name, schema in schemas.items()}

    @property
    def last_step(self) -> int | None:
        """The last step of the rows on disk; None where there are none."""
        steps = [writer.last_step for writer in self._writers.values()]
        return max((step for step in steps if step is not None), default=None)

    def append(self, table: str, step: int, row: Mapping[str, Any]) -> None:
        """Hold one row of a table.

        Args:
            table: ``metrics``, ``spectra`` or ``skipped``.
            step: Optimiser steps taken so far.
            row: The other columns, but for the run's name.

        Raises:
            InputError: A column that the table does not have.
        """
        self._writers[table].append({"run_id": self._run_id, "step": step, **row})

    def log(self, step: int, split: str, metrics: Mapping[str, float | Tensor | None]) -> None:
        """Keep a row of metrics in memory until the next ``flush``.

        Args:
            step: Optimiser steps taken so far.
            split: What the metrics were computed on.
            metrics: By column; tensors are fetched when the rows are written.

        Raises:
            InputError: A metric that is not a single number, or has no column.
        """
        scalars = {key: _scalar(key, value) for key, value in metrics.items()}
        self.append("metrics", step, {"split": split, **scalars})

    def flush(self) -> None:
        """Write the rows in memory; errors as for ``TableWriter.flush``."""
        for writer in self._writers.values():
            writer.flush()

    def rewind(self, step: int) -> None:
        """Delete every row on disk after ``step``."""
        for writer in self._writers.values():
            writer.rewind(step)


def longest_wait(elapsed: float, first: float = 1.0) -> float:
    """The most seconds that rows wait in memory, so that not every step makes a file, even slow steps of long runs.

    Args:
        elapsed: Seconds since the run began.
        first: The wait in the first hundred seconds; then it grows in proportion to ``elapsed``, up to sixty times.
    """
    return first * min(max(elapsed / 100, 1.0), 60.0)


def _scalar(name: str, value: float | Tensor | None) -> float | Tensor | None:
    """A metric's value as it will be written.

    Tensors are cloned and fetched later, so that the training loop never waits for a device.

    Raises:
        InputError: It is not a single number.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().clone()
    if value is None or (isinstance(value, int | float | np.number | np.ndarray) and np.size(value) == 1):
        return value
    kind = f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(f"metric {name!r} must be a single number; it is a {kind}")
