"""The errors a user can meet; each message is a line that names what is wrong and the way out."""

import difflib
import re
from collections.abc import Iterable

#: A word longer than any name of a file is a file's content, of which a message quotes the beginning.
_LONG = re.compile(r"[^\s/]{256,}")
_QUOTED = 60
#: What a terminal obeys or cannot show: control characters, marks of direction, halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


class InputError(ValueError):
    """Bad input by the user; command lines print the message and exit with code 2.

    Args:
        message: One line; what is quoted in it is cut short where it is longer than any name of a file.
    """

    def __init__(self, message: object = "") -> None:
        if not isinstance(message, str):
            super().__init__(message)
            return
        short = _LONG.sub(lambda match: f"{match[0][:_QUOTED]}…", message)
        super().__init__(_UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], short))


class UnknownLayerError(InputError):
    """A layer name that the model does not have, or a pattern that matches no module."""


class LayerCallError(InputError):
    """A layer without the map: never called, called several times with no call named, or without parameters."""


class NonFiniteError(InputError):
    """NaN or infinity in the probe, the weights or a Jacobian."""


class UnsupportedModelError(InputError):
    """A model whose output cannot be differentiated as the measurement needs, or that holds an operator that cannot."""


class ConstantMapError(UnsupportedModelError):
    """A map whose output does not depend on its point at all; among default layers it is left out."""


class MemoryBudgetError(InputError):
    """A measurement that does not fit the memory budget."""


def near_matches(name: object, candidates: Iterable[str]) -> str:
    """A hint such as ``" Did you mean 'block1'?"``, or the empty string when nothing is close."""
    close = difflib.get_close_matches(str(name)[:_QUOTED], list(candidates), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
