"""Files that are written whole or not at all, and read with one clear line where they are damaged."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from skip_conditioning.diagnostics.errors import InputError

#: What the readers of damaged tables raise.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    pa.ArrowException,
)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table whole or not at all."""
    with _written_whole(path) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as one Parquet file, whole or not at all; its folder is made if missing.

    Raises:
        InputError: It cannot be written, or the disk is full.
    """
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(pa.Table.from_pandas(frame, preserve_index=False), path)


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
        InputError: It cannot be read, does not hold a JSON object, or holds text that cannot be written as UTF-8.
    """
    try:
        content = json.loads(regular(path).read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # fails for half a surrogate pair
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({shortened(error)}); remove the run or restore the file"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold a JSON object; remove the run or restore the file")
    return content


def read_parquet(path: Path, schema: pa.Schema, remedy: str) -> pd.DataFrame:
    """Read a Parquet file that has the columns of a schema, and others as they are.

    Args:
        path: The file.
        schema: Columns that it must have, and their types.
        remedy: How to make the file anew, for the message.

    Raises:
        InputError: It cannot be read, or lacks a column, or a column has another type.
    """
    try:
        table = pq.ParquetFile(regular(path)).read()
        for field in schema:
            table = table.set_column(table.column_names.index(field.name), field, table[field.name].cast(field.type))
        return table.to_pandas()
    except MemoryError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read as a table ({shortened(error)}); {remedy}") from error


def regular(path: Path) -> Path:
    """The path itself, of a file; a folder would be read as a data set, and a pipe never comes to its end.

    Raises:
        FileNotFoundError: There is nothing.
        OSError: It is no file, or a link to nothing.
    """
    if not path.is_file():
        if not os.path.lexists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        raise OSError("nothing is where the link points" if path.is_symlink() else "it is no file")
    return path


@contextlib.contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into one line that names the path and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write {path} ({reason}); free some space or choose another path") from error


def shortened(value: object, length: int = 120) -> str:
    """The text of a value or an error in one line of at most ``length`` characters, for messages."""
    try:
        line = " ".join(str(value).split())
    except ValueError:  # an integer of more than 4300 digits
        line = "a number of very many digits"
    return line if len(line) <= length else f"{line[: length - 1]}…"
