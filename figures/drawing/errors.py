"""The error of a figure for which the tables at hand do not suffice."""

from skip_conditioning.diagnostics.errors import InputError


class NothingToDrawError(InputError):
    """Tables that lack what one figure needs; the command line then goes on with the other figures."""
