"""What the commands of all rooms share: a bad option becomes one line, and so does what the surroundings refuse."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from skip_conditioning.diagnostics.errors import InputError

Options = TypeVar("Options")

#: As a shell reports a program that writes to a closed pipe: 128 and the number of the signal.
_BROKEN_PIPE = 141
#: Bytes that file systems take for a name.
_LONGEST_NAME = 255


def in_one_line(parse: Callable[[], Options], args: Sequence[str] | None) -> Options:
    """Let tyro parse; what it says in a box when it refuses becomes the message of an ``InputError``.

    Args:
        parse: Calls tyro.
        args: The words of the command line; None for those of this process.

    Raises:
        InputError: An option or a value that does not exist, an empty value or one too long to name a file, in one
            line.
    """
    words = sys.argv[1:] if args is None else [*args]
    for before, word in zip(["", *words], words, strict=False):
        if not word.strip():
            raise InputError(f"the value after {before or 'the command'} is empty; give one, such as . for this folder")
        if reason := _no_name(word):
            raise InputError(f"the value after {before or 'the command'} has {reason}, which no file can have")
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return parse()
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        after_title = stderr.getvalue().partition("\n")[2]
        # The rules of the box; of hyphens where the terminal has no others.
        parts = (
            re.sub(r"[│╭╮╰╯\s]+", " ", part).strip() for part in re.split(r"─{5,}|-{20,}|For full help", after_title)
        )
        refusal = next(filter(None, parts), "").partition(" Got errors:")[0].rstrip(".")
        raise InputError(f"{refusal or 'the options cannot be read'}; see --help") from None


def _no_name(word: str) -> str | None:
    """What a word has that no name of a file can have."""
    try:
        longest = max(map(len, map(os.fsencode, word.split("/"))))
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return "a NUL character" if "\0" in word else f"a name of {longest} bytes" if longest > _LONGEST_NAME else None


def with_plain_ends(run: Callable[[], int]) -> int:
    """Run a command and return its exit code; a closed pipe, a full disk or too little memory are a line at most.

    Raises:
        SystemExit: After ``--help``.
    """
    try:
        try:
            return run()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return _BROKEN_PIPE
    except MemoryError:
        print("error: there is too little memory; close other programs, or measure less at a time", file=sys.stderr)
    except InterruptedError:
        raise  # of a signal
    except OSError as error:
        _drop_output()
        where = error.filename or "the output"
        print(f"error: cannot read or write {where} ({error.strerror or error})", file=sys.stderr)
    return 2


def _drop_output() -> None:
    """Let what is not printed yet go nowhere: Python would try once more at its end, and complain."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
