"""The errors a user can meet, each one line that names the culprit and the way out."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input by the user; command lines print the message and exit with code 2."""


class UnknownLayerError(InputError):
    """A layer name that the model does not have, or a pattern that matches no module."""


class LayerCallError(InputError):
    """A layer that the forward pass never calls, or calls more often than the map can express."""


class NonFiniteError(InputError):
    """NaN or infinity in the probe, the weights or a Jacobian."""


class UnsupportedModelError(InputError):
    """A model whose output, or an operator in it, cannot be differentiated as asked."""


class MemoryBudgetError(InputError):
    """A spectrum that cannot be computed exactly within the memory budget."""


def near_matches(name: object, candidates: Iterable[str]) -> str:
    """A hint such as ``" Did you mean 'block1'?"``, or the empty string when nothing is close."""
    close = difflib.get_close_matches(str(name), list(candidates), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
