"""What the commands of all rooms share: a bad option becomes one line."""

import contextlib
import io
import re
from collections.abc import Callable
from typing import TypeVar

from skip_conditioning.diagnostics.errors import InputError

Options = TypeVar("Options")


def in_one_line(parse: Callable[[], Options]) -> Options:
    """Let tyro parse; what it says in a box when it refuses becomes the message of an ``InputError``.

    Raises:
        InputError: An option or a value that does not exist, in one line.
    """
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return parse()
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        after_title = stderr.getvalue().partition("\n")[2]
        first_part = re.split(r"─{5,}|For full helptext", after_title)[0]
        words = re.sub(r"[│╭╮╰╯\s]+", " ", first_part).strip().rstrip(".")
        raise InputError(f"{words or 'the options cannot be read'}; see --help") from None
