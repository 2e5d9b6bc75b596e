"""The Python side of a model while it is measured: whatever a forward pass changes besides weights and buffers.

Generators, lists, counters, caches, tensors that are no buffers, variables of closures and the like stay the user's own
objects: containers keep their place and hold what they held when the measurement began, with copies of generators and
tensors in place of the user's, made anew before every forward pass. At the end everything is put back.
"""

import contextlib
import functools
import random
import types
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from skip_conditioning.diagnostics.networks.copies import copied_leaf
from skip_conditioning.diagnostics.networks.reachable import Reachable
from skip_conditioning.diagnostics.networks.shells import Contents, holds

#: Entries up to which a tensor is compared with its copy, as a write through ``.data`` leaves no trace.
_COMPARED = 4096

#: Of the models being measured, the innermost measurement last.
_held: ContextVar[tuple["PythonState", ...]] = ContextVar("_held", default=())


class PythonState:
    """What the modules of a model hold and reach at one moment, to be put in place before a forward pass.

    Args:
        model: The unwrapped module.
        frozen: Whether to copy tensors, generators and the like now, as the pass under way goes on changing them.

    Attributes:
        modules: The model's modules.
        hidden: Parameters that forward passes may use though no module has registered them.
    """

    def __init__(self, model: nn.Module, *, frozen: bool = False) -> None:
        reachable = Reachable(model)
        self.modules, self.hidden = reachable.modules, list(reachable.hidden.values())
        self._shells, self._tables, self._leaves = reachable.shells, reachable.tables, reachable.leaves
        # What the shells of modules hold while the model is measured, where that is something else than before.
        self._attributes: dict[int, Contents] = {}
        self._shared_storage = _sharing(value for value, _ in self._leaves.values())
        # By the ids of the leaves: copies from which those for each pass are made.
        self._frozen: dict[int, Any] = {}
        if frozen:
            self._frozen = self._copies()
        self._in_place: list[tuple[Any, Contents]] | None = None
        self._copied: dict[int, Any] = {}

    def put_in_place(self, *, copy_hidden: bool = False) -> None:
        """Give a forward pass the state, with fresh copies of everything that is copied.

        Args:
            copy_hidden: Whether to copy ``hidden`` parameters too, as a pass writes into weights.
        """
        self._copied = self._copies()
        if copy_hidden:
            for parameter in self.hidden:
                copied_leaf(parameter, self._copied)
        in_place = []
        for index, (shell, before, bearing) in enumerate(self._shells):
            keys, values = self._attributes.get(index, before)
            if bearing:
                values = list(values)
                for position in bearing:
                    values[position] = self._stand_in(values[position])
            if not holds(shell, (keys, values)):
                shell.write((keys, values))
            in_place.append((shell, (keys, values)))
        self._in_place = in_place

    def put_back(self) -> None:
        """Give everything the very contents that it had at that moment."""
        for shell, contents, _ in self._shells:
            if not holds(shell, contents):
                shell.write(contents)
        for table, before in self._tables:
            if before is None:
                table.clear()
            elif list(map(id, table)) != list(map(id, before)) or not _holds_same(table, before):
                table.clear()
                table.update(before)

    def now(self, model: nn.Module) -> "PythonState":
        """The state that a pass under way has come to; this one itself if the pass has changed nothing yet."""
        if self._in_place is not None and all(holds(shell, contents) for shell, contents in self._in_place):
            pairs = ((self._original(key), twin) for key, twin in self._copied.items() if key in self._leaves)
            if all(_is_same(original, twin) for original, twin in pairs):
                return self
        return PythonState(model, frozen=True)

    def set_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        """Give a module of the model an attribute for the time of the measurement."""
        vars(module)[name] = value
        index = self.modules[module]
        before = self._attributes.get(index, self._shells[index][1])
        changed = {**dict(zip(*before, strict=True)), name: value}
        self._attributes[index] = list(changed), list(changed.values())

    def _original(self, key: int) -> Any:
        return self._frozen.get(key, self._leaves[key][0])

    def _copies(self) -> dict[int, Any]:
        """Copies of all leaves, by their ids; tensors that share memory do so among the copies too."""
        copies: dict[int, Any] = {}
        whole: dict[int, Tensor] = {}
        for key, (value, name) in self._leaves.items():
            source = self._frozen.get(key, value)
            if key in self._shared_storage:
                copies[key] = _view_of_copy(source, self._shared_storage[key], whole)
            elif key not in copies:
                twin = copied_leaf(source, copies, name)
                copies[key] = twin
        return copies

    def _stand_in(self, value: Any) -> Any:
        """What takes the place of a leaf, or of a tuple or the like with leaves in it."""
        if id(value) in self._copied:
            return self._copied[id(value)]
        twin: Any
        if isinstance(value, tuple):
            parts = [self._stand_in(part) for part in value]
            twin = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        elif isinstance(value, frozenset):
            twin = type(value)(map(self._stand_in, value))
        elif isinstance(value, functools.partial):
            twin = type(value)(self._stand_in(value.func), *map(self._stand_in, value.args))
            twin.__setstate__((twin.func, twin.args, value.keywords, vars(value)))
        elif isinstance(value, types.MethodType):
            twin = types.MethodType(value.__func__, self._stand_in(value.__self__))
        elif isinstance(value, types.BuiltinMethodType | types.MethodWrapperType):
            owner = self._stand_in(value.__self__)
            twin = value if owner is value.__self__ else getattr(owner, value.__name__)
        else:
            return value
        self._copied[id(value)] = twin
        return twin


@contextlib.contextmanager
def held(model: nn.Module) -> Iterator[PythonState]:
    """Inside, forward passes may change the Python side of a model; at the end everything is as before.

    Caches of parametrisations are off inside, as weights that are measured with would stay in them.

    Args:
        model: The unwrapped module.
    """
    if (outer := state_of(model)) is not None:
        outer.put_in_place()
    state = PythonState(model)
    token = _held.set((*_held.get(), state))
    cache, enabled = parametrize._cache, parametrize._cache_enabled
    try:
        parametrize._cache, parametrize._cache_enabled = {}, 0
        yield state
    finally:
        parametrize._cache, parametrize._cache_enabled = cache, enabled
        _held.reset(token)
        state.put_back()


def state_of(module: nn.Module) -> PythonState | None:
    """The state, at its beginning, of the innermost measurement under way of a model with this module."""
    return next((state for state in reversed(_held.get()) if module in state.modules), None)


def _holds_same(table: Any, before: Any) -> bool:
    """Whether a dictionary with the same keys as another has the same objects as values; true for sets."""
    return isinstance(table, set) or all(map(is_, table.values(), before.values()))


def _sharing(values: Iterable[Any]) -> dict[int, int]:
    """Of those tensors that share memory with another one of their dtype, by id: the address of that memory."""
    groups: dict[int, list[Tensor]] = {}
    for value in values:
        if type(value) is Tensor and value.layout is torch.strided:
            with contextlib.suppress(RuntimeError, NotImplementedError):  # tensors of a library without memory
                groups.setdefault(value.untyped_storage().data_ptr(), []).append(value)
    groups.pop(0, None)
    return {
        id(tensor): address
        for address, tensors in groups.items()
        if len(tensors) > 1 and len({tensor.dtype for tensor in tensors}) == 1
        for tensor in tensors
    }


def _view_of_copy(tensor: Tensor, address: int, copies: dict[int, Tensor]) -> Tensor:
    """A tensor like another one, in a copy of all the memory that it lies in."""
    if address not in copies:
        entries = tensor.untyped_storage().nbytes() // tensor.element_size()
        copies[address] = tensor.detach().as_strided((entries,), (1,), 0).clone()
    return copies[address].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _is_same(original: Any, twin: Any) -> bool:
    """Whether a copy is known to have the state of its original still."""
    if isinstance(twin, Tensor):
        small = twin.layout is torch.strided and twin.numel() <= _COMPARED
        return twin._version == 0 and (not small or torch.equal(original, twin))
    if isinstance(twin, torch.Generator):
        return torch.equal(original.get_state(), twin.get_state())
    if isinstance(twin, random.Random):
        return bool(original.getstate() == twin.getstate())
    if isinstance(twin, functools._lru_cache_wrapper):
        return twin.cache_info().currsize == 0
    return isinstance(twin, np.ndarray) and twin.dtype != object and np.array_equal(original, twin)
