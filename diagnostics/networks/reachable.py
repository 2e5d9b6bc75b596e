"""What a forward pass of a model can reach from its modules and may change: a walk that looks and changes nothing."""

import dis
import functools
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from skip_conditioning.diagnostics.networks import shells
from skip_conditioning.diagnostics.networks.copies import (
    ATOMS,
    attributes_of,
    is_closed,
    is_installed,
    is_leaf,
    is_left_alone,
    slots_of,
)

#: Objects after which, and depth at which, a walk goes no further.
_MOST, _DEEPEST = 20_000, 40

_SETS_GLOBALS = frozenset({dis.opmap["STORE_GLOBAL"], dis.opmap["DELETE_GLOBAL"]})

#: What every module has: parameters, buffers and modules by name, and hooks.
_TABLES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set))
_HOOKS = ("hooks", "hooks_with_kwargs", "hooks_always_called")


class Reachable:
    """The mutable objects that can be reached from the attributes of a model's modules.

    They are of two kinds. *Shells* (dictionaries, lists, objects with attributes, variables of closures, global
    variables and class attributes of the user's code, …) keep their place and have their contents exchanged. *Leaves*
    (tensors, generators, arrays, iterators) are exchanged as a whole, in the shells that hold them.

    Args:
        model: The unwrapped module.

    Attributes:
        modules: The model's modules, and at which index of ``shells`` their attributes are.
        shells: Each with what it holds, and the indices of those values in which there are leaves.
        tables: Hooks, parameters, buffers and modules by name, which the measurement itself changes: each dictionary
            or set with a copy of it, None for an empty one.
        leaves: By id, each with a name to call it by.
        hidden: Parameters that no module of the model has registered.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict.fromkeys(model.modules(), -1)
        self.shells: list[tuple[shells.Shell, shells.Contents, list[int]]] = []
        self.tables: list[tuple[Any, Any]] = []
        self.leaves: dict[int, tuple[Any, str]] = {}
        self.hidden: dict[int, nn.Parameter] = {}
        self._own = {id(parameter) for parameter in model.parameters()}
        self._seen: dict[int, tuple[Any, bool]] = {}  # objects, kept alive, and whether they hold leaves as tuples do
        self._depth, self._name = 0, ""
        for path, module in model.named_modules():
            self._walk_module(module, f"{path or type(model).__name__}")
        for name, hooks in vars(torch_module).items():
            if name.startswith("_global_") and isinstance(hooks, dict) and hooks:
                self.tables.append((hooks, type(hooks)(hooks)))
                self._walk_hooks(hooks)

    def _walk_module(self, module: nn.Module, path: str, *, hidden: bool = False) -> None:
        attributes = vars(module)
        bearing: list[int] = []
        for index, (name, value) in enumerate(attributes.items()):
            kind = type(value)
            if kind in ATOMS:
                continue
            self._name = f"{path}.{name}"
            if name in _TABLES and isinstance(value, dict | set):
                self.tables.append((value, kind(value) if value else None))
                if not value or not isinstance(value, dict):
                    continue
                if name.endswith(_HOOKS):
                    self._walk_hooks(value)
                elif hidden and name in ("_parameters", "_buffers"):
                    self._add(shells.MappingShell(value))
            elif self._bears(value):
                bearing.append(index)
        if not hidden:
            self.modules[module] = len(self.shells)
        self.shells.append((shells.MappingShell(attributes), (list(attributes), list(attributes.values())), bearing))
        for kind in type(module).__mro__:
            if kind is nn.Module:
                break
            self._walk_class(kind)

    def _walk_hooks(self, hooks: dict[Any, Any]) -> None:
        """Hooks, among which the measurement adds and removes its own."""
        if keys := [key for key, hook in hooks.items() if self._bears(hook)]:
            self._add(shells.ItemsShell(hooks, keys))

    def _add(self, shell: shells.Shell) -> None:
        """Note a shell, and walk what it holds."""
        contents = shells.read(shell)
        self.shells.append((shell, contents, self._bearing(contents[1])))

    def _bearing(self, values: Iterable[Any]) -> list[int]:
        """The indices of those values that are leaves, or tuples and the like with leaves in them."""
        values = list(values)
        if ATOMS.issuperset(map(type, values)):
            return []
        return [index for index, value in enumerate(values) if self._bears(value)]

    def _bears(self, value: Any) -> bool:
        """Walk an object; whether it is to be exchanged itself."""
        if type(value) in ATOMS or (type(value) is tuple and ATOMS.issuperset(map(type, value))):
            return False
        if (seen := self._seen.get(id(value))) is not None:
            return seen[1]
        if self._depth > _DEEPEST or len(self._seen) > _MOST:
            return False
        self._seen[id(value)] = (value, False)
        self._depth += 1
        bears = self._walk(value)
        self._depth -= 1
        self._seen[id(value)] = (value, bears)
        return bears

    def _walk(self, value: Any) -> bool:
        if isinstance(value, Tensor) and isinstance(value, nn.Parameter):
            if id(value) not in self._own:
                self.hidden[id(value)] = value
            return id(value) not in self._own
        if is_leaf(value):
            self.leaves[id(value)] = (value, self._name)
            return True
        if isinstance(value, nn.Module):
            if value not in self.modules:
                self._walk_hidden(value)
            return False
        if isinstance(value, tuple | frozenset):
            return bool(self._bearing(value))
        if isinstance(value, functools.partial):
            self._add(shells.MappingShell(value.keywords))
            return bool(self._bearing((value.func, *value.args)))
        if isinstance(value, types.MethodType):
            return bool(self._bearing((value.__func__, value.__self__)))
        if isinstance(value, types.BuiltinMethodType | types.MethodWrapperType):
            return self._bears(value.__self__)
        if isinstance(value, types.FunctionType):
            self._walk_function(value)
        elif isinstance(value, type):
            self._walk_class(value)
        elif not is_left_alone(value):
            self._walk_object(value)
        return False

    def _walk_hidden(self, module: nn.Module) -> None:
        """A module that is used without being registered; not one that holds the model, or a part of it."""
        parts = list(module.modules())
        if not any(part in self.modules for part in parts):
            for part in parts:
                self._seen[id(part)] = (part, False)
                self._walk_module(part, self._name, hidden=True)

    def _walk_object(self, value: Any) -> None:
        if isinstance(value, dict):
            self._add(shells.MappingShell(value))
        elif isinstance(value, list | set | deque):
            self._add(shells.SequenceShell(value))
        attributes = attributes_of(value)
        if attributes is not None:
            shell = shells.MappingShell(attributes)
            # Who holds an optimiser or the data owns the training: only its attributes themselves are put back.
            if any(isinstance(part, Optimizer | DataLoader) for part in attributes.values()):
                self.shells.append((shell, shells.read(shell), []))
                return
            self._add(shell)
        if any(True for _ in slots_of(value)):
            self._add(shells.SlotsShell(value))
        for kind in type(value).__mro__:
            self._walk_class(kind)

    def _walk_class(self, kind: type) -> None:
        """The attributes of a class of the user's, and its methods."""
        if not _is_users(kind.__module__) or id(kind) in self._seen:
            return
        self._seen[id(kind)] = (kind, False)
        self._add(shells.ClassShell(kind))
        for member in vars(kind).values():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(function, types.FunctionType):
                self._bears(function)

    def _walk_function(self, function: types.FunctionType) -> None:
        if is_closed(function.__module__ or ""):
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                self._add(shells.CellShell(cell))
        if function.__defaults__:
            self._add(shells.DefaultsShell(function))
        for mapping in (function.__kwdefaults__, function.__dict__):
            if mapping:
                self._add(shells.MappingShell(mapping))
        if not _is_users(function.__globals__.get("__name__", "")):
            return
        used, stored = _global_names(function.__code__)
        self._walk_namespace(function.__globals__, used, stored)
        for name in used:
            module = function.__globals__.get(name)
            if isinstance(module, types.ModuleType) and _is_users(module.__name__):
                self._walk_namespace(vars(module), used, used & vars(module).keys())

    def _walk_namespace(self, namespace: dict[str, Any], used: frozenset[str], stored: frozenset[str]) -> None:
        """Global variables that the user's code names; numbers and the like only where it sets them."""
        named = [name for name in used if name in namespace and self._bears(namespace[name])]
        named += [name for name in stored if name not in named]
        if named:
            self._add(shells.ItemsShell(namespace, named))


@functools.lru_cache(4096)
def _global_names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Names that code looks up (attributes among them), and global variables that it sets or deletes."""
    used, stored = set(code.co_names), set[str]()
    if not _SETS_GLOBALS.isdisjoint(code.co_code[::2]):
        stored = {step.argval for step in dis.get_instructions(code) if step.opcode in _SETS_GLOBALS}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner_used, inner_stored = _global_names(constant)
            used, stored = used | inner_used, stored | inner_stored
    return frozenset(used), frozenset(stored)


def _is_users(module: str) -> bool:
    return not is_installed(module) and not is_closed(module)
