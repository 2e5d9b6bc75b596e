"""Mutable objects that stay in place while what they hold is exchanged: dictionaries, lists, cells, slots."""

import collections
import types
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import is_
from typing import Any, Protocol

from skip_conditioning.diagnostics.networks.copies import slots_of

#: In place of a value that is not there.
_ABSENT = object()

#: Keys (none, where it has none) and values.
Contents = tuple[Sequence[Any], Sequence[Any]]
Views = tuple[Collection[Any], Collection[Any]]


class Shell(Protocol):
    """A mutable object whose contents can be taken down and put back."""

    def view(self) -> Views:
        """Keys and values that it holds now, in order."""

    def write(self, contents: Contents) -> None:
        """Make it hold this."""


def read(shell: Shell) -> Contents:
    """What a shell holds now."""
    keys, values = shell.view()
    return list(keys), list(values)


def holds(shell: Shell, contents: Contents) -> bool:
    """Whether a shell holds just these objects, in this order."""
    keys, values = shell.view()
    same = len(values) == len(contents[1]) and all(map(is_, values, contents[1]))
    return same and all(map(is_, keys, contents[0]))


class MappingShell:
    """A dictionary, of whatever subclass; its own methods are not called."""

    def __init__(self, mapping: dict[Any, Any]) -> None:
        self._mapping: Any = mapping
        self._type: Any = collections.OrderedDict if isinstance(mapping, collections.OrderedDict) else dict

    def view(self) -> Views:
        """Keys and values in order."""
        return self._type.keys(self._mapping), self._type.values(self._mapping)

    def write(self, contents: Contents) -> None:
        """Replace all items."""
        keys, values = contents
        self._type.clear(self._mapping)
        if self._type is dict:
            dict.update(self._mapping, zip(keys, values, strict=True))
            return
        for key, value in zip(keys, values, strict=True):
            self._type.__setitem__(self._mapping, key, value)


class ItemsShell:
    """Some keys of a dictionary, there or not."""

    def __init__(self, mapping: dict[Any, Any], keys: Iterable[Any]) -> None:
        self._mapping, self._keys = mapping, list(keys)

    def view(self) -> Views:
        """The values of these keys."""
        return (), [self._mapping.get(key, _ABSENT) for key in self._keys]

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

    def view(self) -> Views:
        """Its elements in order."""
        return (), list(self._type.__iter__(self._container))

    def write(self, contents: Contents) -> None:
        """Replace all elements."""
        self._type.clear(self._container)
        self._add(self._container, contents[1])


class CellShell:
    """The variable of a closure."""

    def __init__(self, cell: types.CellType) -> None:
        self._cell = cell

    def view(self) -> Views:
        """Its value, if it has one."""
        try:
            return (), [self._cell.cell_contents]
        except ValueError:
            return (), []

    def write(self, contents: Contents) -> None:
        """Set or delete it."""
        if contents[1]:
            self._cell.cell_contents = contents[1][0]
        elif self.view()[1]:
            del self._cell.cell_contents


class SlotsShell:
    """The slots of an object."""

    def __init__(self, owner: object) -> None:
        self._owner = owner

    def view(self) -> Views:
        """The filled slots and their values."""
        slots = list(slots_of(self._owner))
        return slots, [slot.__get__(self._owner) for slot in slots]

    def write(self, contents: Contents) -> None:
        """Fill these slots, empty the others."""
        for slot in list(slots_of(self._owner)):
            if slot not in contents[0]:
                slot.__delete__(self._owner)
        for slot, value in zip(*contents, strict=True):
            slot.__set__(self._owner, value)


class DefaultsShell:
    """The default values of a function's arguments."""

    def __init__(self, function: types.FunctionType) -> None:
        self._function = function

    def view(self) -> Views:
        """The tuple of defaults, or None."""
        return (), [self._function.__defaults__]

    def write(self, contents: Contents) -> None:
        """Set it."""
        self._function.__defaults__ = contents[1][0]


class ClassShell:
    """The attributes of a class, but for those with names like ``__this__``."""

    def __init__(self, owner: type) -> None:
        self._owner = owner

    def view(self) -> Views:
        """Names and values in order."""
        return vars(self._owner).keys(), vars(self._owner).values()

    def write(self, contents: Contents) -> None:
        """Set what differs, delete what is new."""
        wanted, attributes = dict(zip(*contents, strict=True)), vars(self._owner)
        names = [name for name in {**attributes, **wanted} if not name.startswith("__")]
        for name in names:
            if name not in wanted:
                type.__delattr__(self._owner, name)
            elif attributes.get(name, _ABSENT) is not wanted[name]:
                type.__setattr__(self._owner, name, wanted[name])
