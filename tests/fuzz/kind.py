"""What a kind of input is: files that get damaged, or inputs that are made."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.fuzz.mutations import PLACES


class WrongDataError(Exception):
    """Something was read or written as what it is not, and not a word."""


class Kind(Protocol):
    """A kind of input.

    Attributes:
        name: In the table.
        share: How many inputs of this kind there are for each of the fastest.
    """

    name: str
    share: float

    @contextmanager
    def prepared(self, source: random.Random, number: int) -> Iterator[Any]:
        """An input, by its number; what is made for it is removed afterwards."""

    def read(self, given: Any) -> object:
        """Give it to what reads it, and raise an error for whatever comes of it but a refusal in one line."""


@dataclass(frozen=True)
class Damaged:
    """Files of which one at a time is damaged, and put back.

    Attributes:
        name: In the table.
        files: Of these one is damaged.
        mutate: How it is.
        read: Reads it, given its path.
        share: How many inputs of this kind there are for each of the fastest.
    """

    name: str
    files: Sequence[Path]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]
    share: float = 1.0

    @contextmanager
    def prepared(self, source: random.Random, number: int) -> Iterator[Path]:
        """A damaged file, or something else in its place."""
        path = self.files[number % len(self.files)]
        content = path.read_bytes()
        try:
            path.unlink()
            if number % 25 == 24:
                source.choice(PLACES)(path)
            else:
                path.write_bytes(self.mutate(content, source))
            yield path
        finally:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            path.write_bytes(content)


@dataclass(frozen=True)
class Made:
    """Inputs that are made anew each time.

    Attributes:
        name: In the table.
        make: Makes one, in an empty folder.
        read: Gives it to what reads it.
        share: How many inputs of this kind there are for each of the fastest.
    """

    name: str
    make: Callable[[Path, random.Random], Any]
    read: Callable[[Any], object]
    share: float = 1.0

    @contextmanager
    def prepared(self, source: random.Random, number: int) -> Iterator[Any]:
        """What is made, in a folder of its own."""
        with tempfile.TemporaryDirectory() as folder:
            yield self.make(Path(folder), source)
