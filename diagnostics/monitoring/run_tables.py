"""The tables that a run writes while it trains."""

import os
import time
from collections.abc import Mapping
from typing import Any

from skip_conditioning.diagnostics.monitoring.run_folder import RunFolder
from skip_conditioning.diagnostics.tables import SCHEMAS, TableWriter

#: Rows with numbers on a device wait at most about so many seconds in memory.
_FETCH_SECONDS = 1.0


class RunTables:
    """The tables ``metrics``, ``spectra`` and ``skipped`` of one run.

    Rows go into a journal by ``save``, where they survive a kill, and into Parquet parts by ``flush``.

    Args:
        folder: The run's.
        description: What the run's ``config.json`` is to say, as for ``RunFolder.open``.

    Attributes:
        run_id: Name of the run, in every row.
        first_step: The first step of the rows on disk when this was made; None if there were none.

    Raises:
        InputError: As for ``RunFolder.open``.
    """

    def __init__(self, folder: RunFolder, description: Mapping[str, Any]) -> None:
        self._folder = folder
        self.run_id = folder.open(description)
        try:
            self.first_step = folder.first_step
            self._writers = self._new_writers()
        except BaseException:
            folder.unlock()
            raise
        self._fetched, self._process = time.perf_counter(), os.getpid()

    def append(self, table: str, step: int, row: Mapping[str, Any]) -> None:
        """Hold one row of a table.

        Args:
            table: ``metrics``, ``spectra`` or ``skipped``.
            step: Optimiser steps taken so far.
            row: The other columns, but for the run's name.

        Raises:
            InputError: A column that the table does not have, or a value that does not fit its column.
        """
        self._hold()
        self._writers[table].append({"run_id": self.run_id, "step": step, **row})

    @property
    def will_fetch(self) -> bool:
        """Whether ``save`` would wait for a device now: it fetches numbers from there about once a second."""
        if time.perf_counter() - self._fetched < _FETCH_SECONDS:
            return False
        return any(writer.has_device_values for writer in self._writers.values())

    def save(self) -> None:
        """Write rows to the journals; those with numbers on a device, and those after them, when they are fetched."""
        fetch = self.will_fetch
        for writer in self._writers.values():
            if fetch or not writer.has_device_values:
                writer.save()
        if fetch:
            self._fetched = time.perf_counter()

    def flush(self) -> None:
        """Write the rows as Parquet parts; errors as for ``TableWriter.flush``."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Write the rows as Parquet parts, and let others write the folder, until a row is appended again.

        Nothing is done in a process that was forked from this one's.
        """
        if os.getpid() == self._process:
            try:
                self.flush()
            finally:
                self._folder.unlock()

    def rewind(self, step: int) -> None:
        """Delete every row after ``step``."""
        self._hold()
        for writer in self._writers.values():
            writer.rewind(step)

    def _hold(self) -> None:
        """Hold the folder again after ``close``: others may have written it meanwhile."""
        if not self._folder.is_locked:
            self._folder.lock()
            self._writers = self._new_writers()

    def _new_writers(self) -> dict[str, TableWriter]:
        return {name: TableWriter(self._folder.path / name, schema) for name, schema in SCHEMAS.items()}


def longest_wait(elapsed: float, first: float = 1.0) -> float:
    """The most seconds that rows wait in memory, so that not every step makes a file, even slow steps of long runs.

    Args:
        elapsed: Seconds since the run began.
        first: The wait in the first hundred seconds; then it grows in proportion to ``elapsed``, up to sixty times.
    """
    return first * min(max(elapsed / 100, 1.0), 60.0)
