"""The one error of this room, and the checks that raise it."""

import difflib
import math
from collections.abc import Iterable


class ModelOptionError(ValueError):
    """A model, an arm, an option or an option's value that does not exist.

    The message is one line: the culprit, its near matches, and what is valid.
    """


def check_choice(kind: str, value: object, valid: Iterable[object]) -> None:
    """Reject a value that is not among the valid ones.

    Args:
        kind: What the value is, as the message should call it: ``"model"``, ``"arm of paper-mnist"``.
        value: The value given.
        valid: The valid values, in the order in which to list them.

    Raises:
        ModelOptionError: ``value`` is not valid; the message offers the near matches.
    """
    valid = list(valid)
    if value in valid:
        return
    choices = [str(choice) for choice in valid]
    hint = near_matches(str(value), choices)
    raise ModelOptionError(f"unknown {kind}: {value!r}{hint}; valid: {', '.join(choices) or 'none'}")


def near_matches(name: str, choices: Iterable[str]) -> str:
    """The closest choices as `` (did you mean a or b?)``, or nothing if none is close."""
    near = difflib.get_close_matches(name, list(choices))
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def check_count(option: str, value: object) -> None:
    """Reject an option that is not a positive whole number.

    Raises:
        ModelOptionError: ``value`` is not an ``int`` of at least 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelOptionError(f"option {option}: {value!r} is not a whole number of at least 1")


def check_real(option: str, value: object, *, positive: bool = False) -> None:
    """Reject an option that is not a finite real number (a positive one, if asked).

    Raises:
        ModelOptionError: ``value`` is not a finite ``int`` or ``float``, or not positive where it must be.
    """
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not real or (positive and value <= 0):  # type: ignore[operator]
        raise ModelOptionError(f"option {option}: {value!r} is not a {'positive' if positive else 'finite'} number")
