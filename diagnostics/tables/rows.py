"""Values of a row, checked against the types of its table when it is logged, so that a bad row alone is refused."""

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables.files import shortened

_LARGEST_INT = 2**63 - 1

#: Makes a plain Python object of a value or raises an error, and what the value must be, for the message.
Conversion = tuple[Callable[[Any], Any], str]


class RowCheck:
    """Checks rows of one table.

    Args:
        schema: Columns and types of the table.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = {field.name: _CONVERSIONS[field.type] for field in schema} | {"step": _STEP}

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a row as plain Python objects, without those that are None.

        Numbers may be NumPy's or torch's scalars. One that is on a device other than the CPU stays a tensor, a copy, so
        that nothing waits for the device; ``fetched`` gives the number.

        Args:
            row: By column.

        Raises:
            InputError: A column that the table does not have, no ``step``, or a value that does not fit its column.
        """
        unknown = next((name for name in row if name not in self._columns), row)
        if unknown is not row:
            columns = shortened(", ".join(self._columns), 200)
            raise InputError(f"unknown column {shortened(repr(unknown), 40)}; the table has {columns}")
        row = {name: value for name, value in row.items() if value is not None or name == "step"}
        return {name: _checked(name, self._columns[name], value) for name, value in {"step": None, **row}.items()}


def checked_step(step: Any) -> int:
    """A step as a Python integer; NumPy's and torch's whole numbers are steps too.

    Raises:
        InputError: It is no whole number from 0.
    """
    checked: int = _checked("step", _STEP, step)
    return checked


def is_on_device(value: Any) -> bool:
    """Whether a value is a tensor on a device other than the CPU."""
    device = getattr(value, "device", None)
    return getattr(device, "type", "cpu") != "cpu"


def fetched(row: Mapping[str, Any]) -> dict[str, Any]:
    """A checked row without tensors; waits for their device."""
    return {name: float(value.item()) if is_on_device(value) else value for name, value in row.items()}


def _checked(name: str, conversion: Conversion, value: Any) -> Any:
    """A value as a plain Python object of its column's type."""
    convert, kind = conversion
    try:
        return convert(value)
    except Exception:  # whatever the conversions of foreign objects raise
        raise InputError(f"column {name!r} must be {kind}; it is {_shown(value)}") from None


def _real(value: Any) -> Any:
    if type(value) is float:
        return value
    if is_on_device(value):
        if value.numel() != 1 or value.is_complex() or value.is_meta:
            raise TypeError
        return value.detach().clone()
    value = _scalar(value)
    if not isinstance(value, numbers.Real):
        raise TypeError
    return float(value)


def _whole(value: Any) -> int:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise TypeError
    whole = int(value)
    if whole != value or abs(whole) > _LARGEST_INT:
        raise ValueError
    return whole


def _step(value: Any) -> int:
    step = _whole(value)
    if step < 0:
        raise ValueError
    return step


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


_STEP: Conversion = (_step, "a whole number from 0")
_CONVERSIONS: dict[pa.DataType, Conversion] = {
    pa.float64(): (_real, "a single number"),
    pa.int64(): (_whole, "a whole number"),
    pa.bool_(): (_flag, "True or False"),
    pa.string(): (_text, "text"),
    pa.list_(pa.float64()): (_numbers, "a list of numbers"),
}
