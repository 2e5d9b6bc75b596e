"""Rows with odd values among good ones: a bad row is refused alone, and what was accepted is what is read."""

import math
import random
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import METRICS, SKIPPED, SPECTRA
from skip_conditioning.diagnostics.tables.parts import parts_of, read_part, waiting_rows
from skip_conditioning.diagnostics.tables.writer import TableWriter
from tests.fuzz.kind import WrongDataError


class _Awkward:
    """Something whose conversions raise errors of their own."""

    def __float__(self) -> float:
        raise ZeroDivisionError

    def __int__(self) -> int:
        raise KeyError

    def item(self) -> Any:
        """Nothing."""
        raise AttributeError


def _cycle() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


_ODD: tuple[Callable[[], Any], ...] = (
    *(lambda value=value: value for value in (True, False, -1, 0, 2.0, 1.5, 2**63, 10**400, -(10**5000), 1e308)),
    *(
        lambda value=value: value
        for value in (math.nan, math.inf, "x", "", "1", "\ud800", "x" * 10**6, b"x", "\0\n", 1j)
    ),
    *(
        lambda value=value: value
        for value in ([], [1.0], [[1.0]], ["x"], [None], {}, {"a": 1}, (1, 2), {1.0}, [10**400])
    ),
    *(lambda value=value: value for value in (Decimal("1e500"), Decimal("NaN"), Fraction(1, 3), Fraction(10**400, 3))),
    *(lambda value=value: value for value in (pd.NA, pd.NaT, pd.Timestamp(0), object(), type, print, range(3), ...)),
    *(lambda value=value: value for value in (np.bool_(True), np.float16(1), np.int8(-1), np.uint64(2**64 - 1))),
    *(
        lambda value=value: value
        for value in (np.longdouble("1e4000"), np.datetime64("now"), np.str_("x"), np.array(1))
    ),
    lambda: np.array([1.0]),
    lambda: np.array([], dtype="U3"),
    lambda: np.ma.masked,
    lambda: np.array([None]),
    lambda: np.zeros((2, 2)),
    lambda: iter([1.0]),
    lambda: torch.tensor(1.0, requires_grad=True),
    lambda: torch.tensor([1.0]),
    lambda: torch.tensor([1.0, 2.0], requires_grad=True),
    lambda: torch.tensor(True),
    lambda: torch.tensor(1j),
    lambda: torch.tensor(1, dtype=torch.bfloat16),
    lambda: torch.tensor([1.0]).to_sparse(),
    lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    lambda: torch.empty((), device="meta"),
    lambda: torch.empty(0),
    _Awkward,
    _cycle,
)


def make(folder: Path, source: random.Random) -> tuple[TableWriter, random.Random]:
    """A table to be written."""
    return TableWriter(folder / "table", source.choice((METRICS, SPECTRA, SKIPPED))), source


def read(given: tuple[TableWriter, random.Random]) -> None:
    """Append rows of which some are odd, save and flush in between, and read the table.

    Raises:
        InputError: The first refusal, if nothing else went wrong.
        WrongDataError: Rows are missing, doubled or other than given.
    """
    writer, source = given
    accepted: list[dict[str, Any]] = []
    refusal = None
    for step in range(12):
        row: dict[Any, Any] = {"step": step, "run_id": "a"}
        if source.random() < 0.6:
            name = source.choice((*writer.schema.names, "step", "nosuch", "", 3, None))
            row[name] = source.choice(_ODD)()
        try:
            writer.append(row)
            accepted.append(row)
        except InputError as error:
            refusal = refusal or error
        if source.random() < 0.3:
            source.choice((writer.save, writer.flush))()
    writer.save()
    if source.random() < 0.5:
        writer.flush()
    tables = [read_part(part.path, writer.schema) for part in parts_of(writer.directory)]
    tables += waiting_rows(writer.directory, writer.schema).values()
    rows = [row for table in tables for row in table.to_pylist()]
    if len(rows) != len(accepted):
        raise WrongDataError(f"{len(rows)} rows of {len(accepted)}")
    for row, given_row in zip(rows, accepted, strict=True):
        for name, value in given_row.items():
            if not _is_same(row[name], value, writer.schema.field(name).type):
                raise WrongDataError(f"{name}: {value!r} became {row[name]!r}")
    if refusal:
        raise refusal


def _is_same(stored: Any, value: Any, kind: pa.DataType) -> bool:
    """Whether what is stored stands for a value, which was accepted."""
    if value is None:
        return stored is None
    if kind == pa.string():
        return bool(stored == value)
    if kind == pa.bool_():
        return stored is bool(value)
    plain = value.detach().float().to_dense() if isinstance(value, torch.Tensor) else value
    given = np.atleast_1d(np.asarray(plain, dtype=float))
    got = np.atleast_1d(np.asarray(stored, dtype=float))
    is_number = kind == pa.list_(pa.float64()) or not isinstance(value, str | bytes | list | tuple | dict | set)
    return is_number and np.array_equal(got.ravel(), given.ravel(), equal_nan=True)
