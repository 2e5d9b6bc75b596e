"""Writes one table of one run: rows wait in memory and in a journal, and become a part when they are flushed."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables.files import clear_disk_errors, write_parquet
from skip_conditioning.diagnostics.tables.journal import Journal
from skip_conditioning.diagnostics.tables.parts import (
    Part,
    journal_path,
    journals_of,
    leftovers,
    parts_of,
    read_part,
    waiting_rows,
)
from skip_conditioning.diagnostics.tables.rows import RowCheck, fetched, is_on_device


class TableWriter:
    """Appends rows to one table of one run, as Parquet parts that a reader can open at any moment.

    One writer alone may write a table. Rows in the journal of a writer that was killed are kept: they go into the
    first part.

    Args:
        directory: The table's folder; made if missing.
        schema: Columns and types of every part. Missing columns are filled with nulls.

    Attributes:
        directory: As given.
        schema: As given.
        has_device_values: Whether rows wait whose numbers are to be fetched from a device.

    Raises:
        InputError: The folder cannot be written, the disk is full, or a file of the table is damaged.
    """

    def __init__(self, directory: Path, schema: pa.Schema) -> None:
        self.directory, self.schema, self._check = directory, schema, RowCheck(schema)
        with clear_disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            if not os.access(directory, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        waiting = waiting_rows(directory, schema)
        self._inherited: list[dict[str, Any]] = [row for table in waiting.values() for row in table.to_pylist()]
        self._rows: list[dict[str, Any]] = []
        self._saved = 0
        self.has_device_values = False
        self._number = max([*waiting, *(part.number + 1 for part in parts_of(directory))], default=0)
        self._journal = Journal(journal_path(directory, self._number))

    def append(self, row: Mapping[str, Any]) -> None:
        """Keep a row in memory until the next ``save`` or ``flush``.

        Raises:
            InputError: The table has no such column, or a value does not fit its column; the row is not kept.
        """
        checked = self._check(row)
        self._rows.append(checked)
        self.has_device_values = self.has_device_values or any(map(is_on_device, checked.values()))

    def save(self) -> None:
        """Write the rows that are in memory only to the journal, where they survive a kill.

        Raises:
            InputError: The disk does not take them; they stay in memory.
        """
        if len(self._rows) == self._saved:
            return
        if self._inherited:  # their journal is another's
            self.flush()
            return
        self._fetch()
        with clear_disk_errors(self._journal.path):
            self._journal.append(self._rows[self._saved :])
        self._saved = len(self._rows)

    def flush(self) -> None:
        """Write all rows that no part holds as one part.

        Raises:
            InputError: Something else has written to the folder, or it cannot be written; the rows stay.
        """
        if not (self._inherited or self._rows):
            return
        self._require_own()
        self._fetch()
        rows = [*self._inherited, *self._rows]
        part = Part.named(self.directory, self._number, [row["step"] for row in rows])
        write_parquet(pa.Table.from_pylist(rows, schema=self.schema), part.path)
        self._inherited, self._rows, self._saved = [], [], 0
        self._number += 1
        self._remove_journals()

    def rewind(self, step: int) -> None:
        """Delete every row after ``step``: those that a killed run logged after the checkpoint it resumes from."""
        self.flush()
        # Before their parts: without the part of the same number a journal would count again.
        self._remove_journals()
        for part in parts_of(self.directory):
            if part.first > step:
                part.path.unlink()
            elif part.last > step:
                self._shorten(part, step)
        for leftover in leftovers(self.directory):
            leftover.unlink()

    def _shorten(self, part: Part, step: int) -> None:
        """Delete the rows of a part after a step, and name it after those that are left."""
        table = read_part(part.path, self.schema).filter(pc.field("step") <= step)
        write_parquet(table, part.path)
        part.path.rename(Part.named(self.directory, part.number, table["step"].to_pylist()).path)

    def _fetch(self) -> None:
        """Wait for the numbers that are on a device; all at once, and not when they are logged."""
        if self.has_device_values:
            self._rows = [fetched(row) for row in self._rows]
            self.has_device_values = False

    def _remove_journals(self) -> None:
        self._journal.remove()
        for path in journals_of(self.directory).values():
            path.unlink()
        self._journal = Journal(journal_path(self.directory, self._number))

    def _require_own(self) -> None:
        """Check that nothing else writes to the folder, which would mix its rows with these."""
        others = [part.path.name for part in parts_of(self.directory) if part.number >= self._number]
        if others:
            raise InputError(
                f"something else writes to {self.directory} ({others[0]}); give each run a folder of its own"
            )
