"""Copies of objects that a forward pass may change: tensors, arrays, generators, iterators, and what holds them."""

import array
import collections
import copy
import enum
import functools
import io
import itertools
import random
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from skip_conditioning.diagnostics.errors import UnsupportedModelError

#: Types of objects that never change, or that a forward pass does not change.
ATOMS = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type(NotImplemented), object),
        *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
        *(types.ModuleType, types.CodeType, property, staticmethod, classmethod, weakref.ReferenceType),
    }
)
_CONTAINERS = (dict, list, set, collections.deque)
_NUMPY_RANDOM = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, np.random.SeedSequence)
#: Iterators whose copy needs no copy of anything else.
_FLAT_ITERATORS: tuple[type, ...] = (
    itertools.count,
    *(type(iter(kind())) for kind in (list, tuple, str, bytes, dict, set)),
    type(iter(range(0))),
)

#: Packages and modules whose objects are not walked: they own the training, or run beside it, or hold no state.
_CLOSED = frozenset(
    {
        *("lightning", "pytorch_lightning", "lightning_fabric", "accelerate", "transformers.trainer", "datasets"),
        *("tokenizers", "wandb", "tensorboard", "tensorboardX", "mlflow", "pandas", "pyarrow", "matplotlib", "tqdm"),
        *("logging", "threading", "multiprocessing", "concurrent", "asyncio", "socket", "subprocess", "io", "pathlib"),
        *("inspect", "importlib", "ctypes", "contextvars", "abc", "typing", "enum", "weakref"),
        *("torch.optim", "torch.utils.data", "torch.utils.tensorboard", "torch.distributed", "torch.fx", "torch.jit"),
        *("torch.cuda", "torch.autograd", "torch.export", "torch.multiprocessing", "torch.amp", "torch.storage"),
        *("torch._dynamo", "torch._inductor", "torch._functorch", "torch._C"),
        *("skip_conditioning.diagnostics", "skip_conditioning.experiments", "skip_conditioning.figures"),
    }
)


@functools.cache
def is_closed(module: str) -> bool:
    """Whether objects of the classes of a module (by its dotted name) are left alone."""
    parts = module.split(".")
    return any(".".join(parts[:length]) in _CLOSED for length in range(1, len(parts) + 1))


def is_left_alone(value: object) -> bool:
    """Whether an object is neither copied nor looked into."""
    kind = type(value)
    return kind in ATOMS or isinstance(value, type | enum.Enum) or is_closed(str(getattr(kind, "__module__", "")))


class _Refused:
    """Stands in for an iterator that cannot be copied: to advance it is an error, before it has been advanced."""

    def __init__(self, kind: str, name: str) -> None:
        self._message = (
            f"{name} is a {kind}, which cannot be copied and which the forward pass advances: measuring would change "
            "the training; use a random generator, a list with an index or itertools.count instead"
        )

    def __iter__(self) -> "_Refused":
        return self

    def __next__(self) -> Any:
        raise UnsupportedModelError(self._message)

    def send(self, value: Any) -> Any:
        """As for a generator."""
        raise UnsupportedModelError(self._message)


def is_leaf(value: object) -> bool:
    """Whether an object with state is copied as a whole, by ``copied_leaf``."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, torch.Generator):
        shared = (torch.default_generator, *torch.cuda.default_generators)
        return not any(value is generator for generator in shared)
    if isinstance(value, np.ndarray):
        return value.flags.writeable
    if isinstance(value, random.Random):
        is_shared = value is getattr(random.seed, "__self__", None)
        return not isinstance(value, random.SystemRandom) and not is_shared
    if isinstance(value, _NUMPY_RANDOM):
        return value is not getattr(np.random.seed, "__self__", None)
    if isinstance(value, bytearray | array.array | io.StringIO | io.BytesIO | functools._lru_cache_wrapper):
        return True
    return hasattr(type(value), "__next__") and not hasattr(value, "__dict__")


def copied_leaf(value: Any, copies: dict[int, Any], name: str = "an object") -> Any:
    """A copy of a tensor, array, generator, buffer or iterator, with the same state.

    Args:
        value: The object.
        copies: Those made so far, by the id of what they are copies of; as ``memo`` of ``copy.deepcopy``.
        name: What to call it in the error of an iterator that cannot be copied, raised when it is advanced.
    """
    if id(value) in copies:
        return copies[id(value)]
    twin: Any
    if isinstance(value, Tensor):
        twin = _copied_tensor(value)
    elif isinstance(value, torch.Generator):
        twin = value.clone_state()
    elif isinstance(value, random.Random):
        twin = type(value).__new__(type(value))
        vars(twin).update(vars(value))
        twin.setstate(value.getstate())
    elif isinstance(value, _NUMPY_RANDOM):
        twin = copy.deepcopy(value, copies)
    elif isinstance(value, functools._lru_cache_wrapper):
        twin = functools.lru_cache(**value.cache_parameters())(value.__wrapped__)  # what it holds is found anew
    elif hasattr(type(value), "__next__") and not isinstance(value, io.IOBase):
        twin = _copied_iterator(value, copies, name)
    else:
        twin = copy.copy(value)
    copies[id(value)] = twin
    return twin


def _copied_tensor(tensor: Tensor) -> Tensor:
    twin = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(twin, tensor.requires_grad)
    return twin.requires_grad_() if tensor.is_leaf and tensor.requires_grad else twin


def _copied_iterator(value: Any, copies: dict[int, Any], name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a later Python copies no iterators of itertools
            return copy.copy(value) if isinstance(value, _FLAT_ITERATORS) else copy.deepcopy(value, copies)
    except Exception:  # whatever the parts of an iterator raise
        return _Refused(type(value).__name__, name)


def copied(value: Any, copies: dict[int, Any], clone: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """A copy of the arguments of a call: containers and objects with all tensors and other state within.

    Modules, classes, functions and what ``is_left_alone`` are shared. An object that occurs twice is copied once.

    Args:
        value: The arguments.
        copies: Those made so far, by id; what they are copies of has to live as long.
        clone: Makes the copy of a tensor; in autograd's graph.
    """
    kind: Any = type(value)
    if kind in ATOMS:
        return value
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, Tensor):
        return copies.setdefault(id(value), clone(value))
    if is_leaf(value):
        return copied_leaf(value, copies)
    if isinstance(value, tuple | frozenset):
        return _rebuilt(value, [copied(part, copies, clone) for part in value])
    if isinstance(value, nn.Module | types.FunctionType | types.MethodType | functools.partial) or is_left_alone(value):
        return value
    attributes = attributes_of(value)
    slots = list(slots_of(value))
    if attributes is None and not slots and not isinstance(value, _CONTAINERS):
        return value
    twin = copies[id(value)] = kind.__new__(kind) if isinstance(value, _CONTAINERS) else object.__new__(kind)
    _fill(twin, value, copies, clone)
    for slot in slots:
        slot.__set__(twin, copied(slot.__get__(value), copies, clone))
    if attributes is not None:
        vars(twin).update({name: copied(part, copies, clone) for name, part in attributes.items()})
    return twin


class CapturedArguments:
    """Copies of the arguments of the calls in a forward pass; a tensor that several calls get unchanged is copied once.

    As the keys and values of a cache, which are passed to every layer after they were made.
    """

    def __init__(self) -> None:
        # Weak references, so that no activation lives on because of its copy.
        self._clones = WeakIdKeyDictionary()

    def __call__(self, arguments: Any) -> Any:
        """A copy of the arguments of one call."""
        return copied(arguments, {}, self._clone)

    def _clone(self, tensor: Tensor) -> Tensor:
        version, clone = self._clones.get(tensor, (None, None))
        if clone is None or tensor.is_inference() or version != tensor._version:
            clone = tensor.detach().clone()  # the forward pass may differentiate something itself
            self._clones[tensor] = (None if tensor.is_inference() else tensor._version, clone)
        return clone


def _rebuilt(value: Any, parts: list[Any]) -> Any:
    """A tuple, named tuple or frozen set of the same type with other parts; itself if they are the same."""
    if all(map(lambda old, new: old is new, value, parts)):
        return value
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _fill(twin: Any, value: Any, copies: dict[int, Any], clone: Callable[[Tensor], Tensor]) -> None:
    """Copy the contents of a container into an empty one, by the methods of the plain types."""
    if isinstance(value, collections.defaultdict):
        twin.default_factory = value.default_factory
    if isinstance(value, collections.deque) and value.maxlen is not None:
        collections.deque.__init__(twin, maxlen=value.maxlen)
    if isinstance(value, dict):
        base = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
        for key, part in base.items(value):
            base.__setitem__(twin, key, copied(part, copies, clone))
    elif isinstance(value, list | collections.deque):
        twin.extend(copied(part, copies, clone) for part in value)
    elif isinstance(value, set):
        twin.update(copied(part, copies, clone) for part in value)


def attributes_of(value: object) -> dict[str, Any] | None:
    """The object's own ``__dict__``, without running code of its class; None if it has none."""
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return None
    return attributes if type(attributes) is dict else None


def slots_of(value: object) -> Iterator[Any]:
    """The descriptors of those slots of an object that are filled."""
    kind: Any = type(value)
    for slot in _slots(kind):
        try:
            slot.__get__(value)
        except AttributeError:
            continue
        yield slot


@functools.lru_cache(1024)
def _slots(kind: type) -> tuple[Any, ...]:
    return tuple(
        member
        for base in kind.__mro__
        if "__slots__" in vars(base)
        for member in vars(base).values()
        if isinstance(member, types.MemberDescriptorType)
    )


@functools.cache
def is_installed(module: str) -> bool:
    """Whether a module belongs to Python or to an installed package, rather than to the user's own code."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return True
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in path or "dist-packages" in path
