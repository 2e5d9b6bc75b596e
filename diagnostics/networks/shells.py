"""Mutable objects that stay in place while what they hold is exchanged: dictionaries, lists, cells, slots."""

import collections
import types
from collections.abc import Callable, Iterable, Sequence
from operator import is_
from typing import Any, Protocol

from skip_conditioning.diagnostics.networks.copies import slots_of

#: In place of a value that is not there.
_ABSENT = object()

#: Keys (or None, where there are none) and values.
Contents = tuple[Sequence[Any] | None, Sequence[Any]]


class Shell(Protocol):
    """A mutable object whose contents can be taken down and put back."""

    def read(self) -> Contents:
        """What it holds now."""

    def write(self, contents: Contents) -> None:
        """Make it hold this."""


def holds(shell: Shell, contents: Contents) -> bool:
    """Whether a shell holds just these objects, in this order."""
    (keys, values), (old_keys, old_values) = shell.read(), contents
    if len(values) != len(old_values) or not all(map(is_, values, old_values)):
        return False
    return keys is None or old_keys is None or all(map(is_, keys, old_keys))


class MappingShell:
    """A dictionary, of whatever subclass; its own methods are not called."""

    def __init__(self, mapping: dict[Any, Any]) -> None:
        self._mapping: Any = mapping
        self._type: Any = collections.OrderedDict if isinstance(mapping, collections.OrderedDict) else dict

    def read(self) -> Contents:
        """Keys and values in order."""
        return list(self._type.keys(self._mapping)), list(self._type.values(self._mapping))

    def write(self, contents: Contents) -> None:
        """Replace all items."""
        keys, values = contents
        self._type.clear(self._mapping)
        if self._type is dict:
            dict.update(self._mapping, zip(keys or (), values, strict=True))
            return
        for key, value in zip(keys or (), values, strict=True):
            self._type.__setitem__(self._mapping, key, value)


class ItemsShell:
    """Some keys of a dictionary, there or not."""

    def __init__(self, mapping: dict[Any, Any], keys: Iterable[Any]) -> None:
        self._mapping, self._keys = mapping, list(keys)

    def read(self) -> Contents:
        """The values of these keys."""
        return None, [self._mapping.get(key, _ABSENT) for key in self._keys]

    def write(self, contents: Contents) -> None:
        """Set or delete these keys."""
        for key, value in zip(self._keys, contents[1], strict=True):
            if value is _ABSENT:
                self._mapping.pop(key, None)
            else:
                self._mapping[key] = value


class SequenceShell:
    """A list, set or deque; its own methods are not called."""

    def __init__(self, container: Any) -> None:
        self._container = container
        kinds: tuple[Any, ...] = (list, set, collections.deque)
        self._type = next(kind for kind in kinds if isinstance(container, kind))
        self._add: Callable[[Any, Sequence[Any]], None] = self._type.update if self._type is set else self._type.extend

    def read(self) -> Contents:
        """Its elements in order."""
        return None, list(self._type.__iter__(self._container))

    def write(self, contents: Contents) -> None:
        """Replace all elements."""
        self._type.clear(self._container)
        self._add(self._container, contents[1])


class CellShell:
    """The variable of a closure."""

    def __init__(self, cell: types.CellType) -> None:
        self._cell = cell

    def read(self) -> Contents:
        """Its value, if it has one."""
        try:
            return None, [self._cell.cell_contents]
        except ValueError:
            return None, []

    def write(self, contents: Contents) -> None:
        """Set or delete it."""
        if contents[1]:
            self._cell.cell_contents = contents[1][0]
        elif self.read()[1]:
            del self._cell.cell_contents


class SlotsShell:
    """The slots of an object."""

    def __init__(self, owner: object) -> None:
        self._owner = owner

    def read(self) -> Contents:
        """The filled slots and their values."""
        slots = list(slots_of(self._owner))
        return slots, [slot.__get__(self._owner) for slot in slots]

    def write(self, contents: Contents) -> None:
        """Fill these slots, empty the others."""
        slots = contents[0] or ()
        for slot in slots_of(self._owner):
            if slot not in slots:
                slot.__delete__(self._owner)
        for slot, value in zip(slots, contents[1], strict=True):
            slot.__set__(self._owner, value)


class DefaultsShell:
    """The default values of a function's arguments."""

    def __init__(self, function: types.FunctionType) -> None:
        self._function = function

    def read(self) -> Contents:
        """The tuple of defaults, or None."""
        return None, [self._function.__defaults__]

    def write(self, contents: Contents) -> None:
        """Set it."""
        self._function.__defaults__ = contents[1][0]


class ClassShell:
    """The attributes of a class, but for those with names like ``__this__``."""

    def __init__(self, owner: type) -> None:
        self._owner = owner

    def read(self) -> Contents:
        """Names and values in order."""
        names = [name for name in vars(self._owner) if not name.startswith("__")]
        return names, [vars(self._owner)[name] for name in names]

    def write(self, contents: Contents) -> None:
        """Set what differs, delete what is new."""
        wanted = dict(zip(contents[0] or (), contents[1], strict=True))
        for name in self.read()[0] or ():
            if name not in wanted:
                type.__delattr__(self._owner, name)
        for name, value in wanted.items():
            if vars(self._owner).get(name, _ABSENT) is not value:
                type.__setattr__(self._owner, name, value)
