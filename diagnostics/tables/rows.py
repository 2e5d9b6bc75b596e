"""Values of a row, checked against the types of its table when it is logged, so that a bad row alone is refused."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables.files import shortened

_LARGEST_INT = 2**63 - 1


def checked_row(row: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """The values of a row as plain Python objects, without those that are None.

    Numbers may be NumPy's or torch's scalars. One that is on a device other than the CPU stays a tensor, a copy, so
    that nothing waits for the device; ``fetched`` gives the number.

    Args:
        row: By column.
        schema: Columns and types of the table.

    Raises:
        InputError: A column that the table does not have, no ``step``, or a value that does not fit its column.
    """
    unknown = set(row) - set(schema.names)
    if unknown:
        raise InputError(f"unknown column {sorted(unknown)[0]!r}; the table has {', '.join(schema.names)}")
    checked = {name: _checked(name, schema.field(name).type, value) for name, value in row.items() if value is not None}
    if checked.get("step", -1) < 0:
        raise InputError(f"column 'step' must be a whole number from 0; it is {row.get('step')}")
    return checked


def checked_step(step: Any) -> int:
    """A step as a Python integer; NumPy's and torch's whole numbers are steps too.

    Raises:
        InputError: It is no whole number from 0.
    """
    row = checked_row({"step": step}, pa.schema([("step", pa.int64())]))
    return int(row["step"])


def is_on_device(value: Any) -> bool:
    """Whether a value is a tensor on a device other than the CPU."""
    device = getattr(value, "device", None)
    return getattr(device, "type", "cpu") != "cpu"


def fetched(row: Mapping[str, Any]) -> dict[str, Any]:
    """A checked row without tensors; waits for their device."""
    return {name: float(value.item()) if is_on_device(value) else value for name, value in row.items()}


def _checked(name: str, type: pa.DataType, value: Any) -> Any:
    """A value as a plain Python object of the column's type."""
    convert, kind = _CONVERSIONS[type]
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is torch's, of a tensor with several values
        raise InputError(f"column {name!r} must be {kind}; it is {_shown(value)}") from None


def _real(value: Any) -> Any:
    if is_on_device(value):
        if value.numel() != 1 or value.is_complex():
            raise TypeError
        return value.detach().clone()
    value = _scalar(value)
    if not isinstance(value, numbers.Real):
        raise TypeError
    return float(value)


def _whole(value: Any) -> int:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != math.floor(value):
        raise TypeError
    if abs(int(value)) > _LARGEST_INT:
        raise OverflowError
    return int(value)


def _flag(value: Any) -> bool:
    value = _scalar(value)
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # fails for half a surrogate pair
    return str(value)


def _numbers(values: Any) -> list[float]:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise TypeError
    numbers: list[float] = array.astype(float).tolist()
    return numbers


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _shown(value: Any) -> str:
    """A value for a message: what it is, and what it holds if that is short."""
    kind = type(value).__name__
    shape = tuple(getattr(value, "shape", ()))
    return f"a {kind} of shape {shape}" if shape else f"{shortened(value, 40)} ({kind})"


_CONVERSIONS = {
    pa.float64(): (_real, "a single number"),
    pa.int64(): (_whole, "a whole number"),
    pa.bool_(): (_flag, "True or False"),
    pa.string(): (_text, "text"),
    pa.list_(pa.float64()): (_numbers, "a list of numbers"),
}
