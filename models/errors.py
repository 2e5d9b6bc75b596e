"""The one error of this room, and the checks that raise it."""

import difflib
import math
import re
from collections.abc import Iterable

#: Of a longer name or value a message quotes the beginning.
_LONG = re.compile(r"[^\s/]{256,}")
_QUOTED = 60
#: What a terminal obeys or cannot show: control characters, marks of direction, halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
#: More units, layers or classes are a slip.
_MOST = 10**9


class ModelOptionError(ValueError):
    """A model, an arm, an option or an option's value that does not exist.

    Args:
        message: One line: the culprit, its near matches, and what is valid; long names are cut short.
    """

    def __init__(self, message: object = "") -> None:
        short = _LONG.sub(lambda match: f"{match[0][:_QUOTED]}…", str(message))
        super().__init__(_UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], short))


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
    near = difflib.get_close_matches(name[:_QUOTED], list(choices))
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def check_count(option: str, value: object) -> None:
    """Reject an option that is not a positive whole number, or more than anybody builds.

    Raises:
        ModelOptionError: ``value`` is not an ``int`` of at least 1, or above 10⁹.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelOptionError(f"option {option}: {value!r} is not a whole number of at least 1")
    if value > _MOST:
        raise ModelOptionError(f"option {option} must be at most {_MOST:,}")


def check_real(option: str, value: object, *, positive: bool = False) -> None:
    """Reject an option that is not a finite real number (a positive one, if asked).

    Raises:
        ModelOptionError: ``value`` is not a finite ``int`` or ``float``, or not positive where it must be.
    """
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not real or (positive and value <= 0):  # type: ignore[operator]
        raise ModelOptionError(f"option {option}: {value!r} is not a {'positive' if positive else 'finite'} number")
