"""The files of one table: numbered Parquet parts, and the journal of rows that are to become the next part.

The number counts the parts in the order in which they were written: of two rows with the same key the one in the part
with the higher number counts. A journal bears the number of its part-to-be; once there is a part of that number, it is
what a process left that was killed before it could remove it, and does not count.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables.files import UNREADABLE, regular, shortened

_PART = re.compile(r"part-(\d+)-(\d+)-(\d+)\.parquet")
_JOURNAL = re.compile(r"_part-(\d+)\.jsonl")


@dataclass(frozen=True, order=True)
class Part:
    """A Parquet file of a table, and what its name says.

    Attributes:
        number: Counts the parts of the table as they are written.
        first: The first step in it.
        last: The last step in it.
        path: The file.
    """

    number: int
    first: int
    last: int
    path: Path

    @classmethod
    def named(cls, directory: Path, number: int, steps: list[int]) -> "Part":
        """A part that is to be written."""
        first, last = min(steps), max(steps)
        return cls(number, first, last, directory / f"part-{number:06d}-{first:09d}-{last:09d}.parquet")


def parts_of(directory: Path) -> list[Part]:
    """The parts of a table, in the order in which they were written; empty if there is no such folder.

    Raises:
        InputError: A file with another name than this library gives to parts.
    """
    parts = []
    for path in directory.glob("part-*.parquet"):
        match = _PART.fullmatch(path.name)
        if match is None:
            raise InputError(f"{path} is no part of the {directory.name} table, by its name; remove it")
        number, first, last = map(int, match.groups())
        parts.append(Part(number, first, last, path))
    return sorted(parts)


def journals_of(directory: Path) -> dict[int, Path]:
    """The journals of a table by their number, in its order."""
    matches = [(_JOURNAL.fullmatch(path.name), path) for path in directory.glob("_part-*.jsonl")]
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def journal_path(directory: Path, number: int) -> Path:
    """The journal of the part with a number."""
    return directory / f"_part-{number:06d}.jsonl"


def read_table(directory: Path, schema: pa.Schema) -> pa.Table:
    """All rows of a table, in the order in which they were written, those in its journal too.

    Raises:
        InputError: A file of it cannot be read.
    """
    waiting = waiting_rows(directory, schema)
    tables = [read_part(part.path, schema) for part in parts_of(directory)]
    return pa.concat_tables([*tables, *waiting.values()]) if tables or waiting else schema.empty_table()


def read_part(path: Path, schema: pa.Schema) -> pa.Table:
    """The rows of a part.

    Raises:
        InputError: It cannot be read, or lacks a column, or a column has another type.
    """
    try:
        return pq.ParquetFile(regular(path)).read(columns=schema.names).select(schema.names).cast(schema)
    except MemoryError as error:
        raise InputError(f"there is not enough memory to read {path}; free some") from error
    except UNREADABLE as error:
        raise InputError(
            f"{path} is not a readable part of the {path.parent.name} table ({shortened(error)}); remove it"
        ) from error


def waiting_rows(directory: Path, schema: pa.Schema) -> dict[int, pa.Table]:
    """Rows of journals that no part holds, by the number of the part that they are to become.

    Raises:
        InputError: A journal cannot be read.
    """
    # Read before the parts are listed: a journal that its writer removes meanwhile has become one of them.
    journals = {number: _read_journal(path, schema) for number, path in journals_of(directory).items()}
    written = {part.number for part in parts_of(directory)}
    return {number: table for number, table in journals.items() if number not in written and table is not None}


def last_step(directory: Path, schema: pa.Schema) -> int | None:
    """The last step of a table on disk; None where it has no rows."""
    return _outermost(directory, schema, max)


def first_step(directory: Path, schema: pa.Schema) -> int | None:
    """The first step of a table on disk; None where it has no rows."""
    return _outermost(directory, schema, min)


def delete_table(directory: Path) -> None:
    """Delete the files of a table, and no others."""
    # Journals first: without the part of the same number one would count again.
    for path in [*journals_of(directory).values(), *(part.path for part in parts_of(directory)), *leftovers(directory)]:
        path.unlink()


def leftovers(directory: Path) -> list[Path]:
    """Parts that killed processes did not finish writing."""
    return [*directory.glob(".part-*.tmp")]


def _outermost(directory: Path, schema: pa.Schema, choose: Callable[..., int | None]) -> int | None:
    waiting = [step for table in waiting_rows(directory, schema).values() for step in table["step"].to_pylist()]
    written = [step for part in parts_of(directory) for step in (part.first, part.last)]
    return choose([*waiting, *written], default=None)


def _read_journal(path: Path, schema: pa.Schema) -> pa.Table | None:
    """The rows of a journal; a last line that a kill cut short is left out. None if it has none, or is gone by now."""
    try:
        lines = regular(path).read_bytes().split(b"\n")[:-1]
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        unknown = {name for row in rows for name in row} - set(schema.names)
        if unknown:
            raise KeyError(f"unknown column {min(unknown)}")
        return pa.Table.from_pylist(rows, schema=schema) if rows else None
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        raise InputError(
            f"{path} is not a readable journal of the {path.parent.name} table ({shortened(error)}); remove it"
        ) from error
