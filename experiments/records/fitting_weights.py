"""Weights for a network, found in whatever a file holds by what fits the network's own names and shapes."""

import logging
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError, near_matches
from skip_conditioning.experiments.records.tensor_files import quoted
from skip_conditioning.experiments.records.weight_files import read_weight_file

_LOG = logging.getLogger(__name__)

#: What wrappers inside a network put into names; no module of anybody's is called so.
_WRAPPERS = frozenset(("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"))
#: A counter that weights saved by PyTorch before 0.4.1 lack, and which batch norm with a momentum does not use.
_COUNTER = "num_batches_tracked"
#: Names that a message lists of each kind of fault.
_NAMED = 3
#: Parts of a name after which no prefix is looked for.
_DEEPEST = 64

Name = tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Tensors of a file whose names have a prefix in common.

    Attributes:
        path: Where they are: keys of the containers they lie in, then the prefix, joined by dots.
        tensors: By the rest of their names, split at the dots.
    """

    path: str
    tensors: dict[Name, Tensor]


def load_into(model: nn.Module, path: Path, key: str | None = None) -> None:
    """Load weights that must fit the model exactly; on any error the model is left as it was.

    They may lie under any key of the file (``state_dict``, ``ema``, …) and their names have any prefix in common
    (``module.``, ``encoder_q.``) or a wrapper's name within: what fits the model's own names and shapes is taken, and
    cast to its dtypes. Tensors that the model ties need be there only once, and ``num_batches_tracked`` not at all.

    Args:
        model: The network; it may be inside DDP or ``torch.compile``.
        path: As for ``weight_files.read_weight_file``.
        key: Which weights to take where several of the file fit, such as ``ema``.

    Raises:
        InputError: The file cannot be read, nothing in it fits, several things fit and none is chosen, or a tensor is
            of a kind that cannot be loaded.
        NonFiniteError: A weight is NaN or infinite.
    """
    own = model.state_dict()
    expected = {_unwrapped(name): tensor for name, tensor in own.items()}
    ties = _ties(expected)
    chosen = _choose(path, key, expected, ties)
    values = {name: _cast(tensor, expected[name], f"{path}: {_quoted(name)}") for name, tensor in chosen.items()}
    by_tie = _by_tie(values, ties, path)
    model.load_state_dict({name: by_tie.get(ties[_unwrapped(name)], tensor) for name, tensor in own.items()})


def _choose(
    path: Path, key: str | None, expected: Mapping[Name, Tensor], ties: Mapping[Name, Name]
) -> dict[Name, Tensor]:
    """The tensors of a file that fit a network, by the network's names.

    Args:
        path: The file.
        key: Where in it to look; None for everywhere.
        expected: The network's own tensors.
        ties: As from `_ties`.

    Raises:
        InputError: None fit, or several do.
    """
    everywhere = list(_groups(read_weight_file(path)))
    groups = [group for group in everywhere if key is None or group.path == key or group.path.startswith(f"{key}.")]
    if not groups:
        places = {group.path for group in everywhere}
        there = "" if key is None else f" under {quoted(key)}"
        raise InputError(f"{path} holds no weights{there}; save model.state_dict().{near_matches(key, places)}")
    fits: dict[str, dict[Name, Tensor]] = {}
    for group in groups:
        matched = _matched(group, expected, ties)
        if matched is not None and not any(_is_part(matched, other) for other in fits.values()):
            fits[group.path] = matched
    if not fits:
        raise InputError(f"{path} does not fit the model of {len(expected)} tensors: {_faults(groups, expected, ties)}")
    if len(fits) > 1 and key not in fits:
        names = ", ".join(quoted(place) if place else "'' (the top level)" for place in fits)
        raise InputError(f"{path} holds several weights that fit: {names}; choose by --key {next(reversed(fits))}")
    place = key if key in fits else next(iter(fits))
    if place:
        _LOG.info("%s: weights are those under %s", path, quoted(place))
    return fits[place]


def _groups(content: Any) -> Iterator[Group]:
    """Every mapping of names to tensors in a file, whole and by each prefix; a container may hold itself."""
    waiting = deque([("", content)] if isinstance(content, dict | list | tuple) else [])
    visited: set[int] = set()
    while waiting:
        path, container = waiting.popleft()
        if id(container) in visited:
            continue
        visited.add(id(container))
        # dict.items, as a file may have put something else into the place of a dictionary's own method.
        items = dict.items(container) if isinstance(container, dict) else enumerate(container)
        tensors: dict[Name, Tensor] = {}
        for key, value in items:
            if isinstance(value, Tensor) and isinstance(key, str):
                name = _unwrapped(key)
                tensors[tuple(key.split(".")) if name in tensors else name] = value
            elif isinstance(value, dict | list | tuple) and isinstance(key, str | int):
                waiting.append((_joined(path, (str(key),)), value))
        yield from _by_prefix(path, tensors)


def _by_prefix(path: str, tensors: Mapping[Name, Tensor]) -> Iterator[Group]:
    prefixed: defaultdict[Name, dict[Name, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        for length in range(min(len(name), _DEEPEST)):
            prefixed[name[:length]][name[length:]] = tensor
    for prefix, members in sorted(prefixed.items(), key=lambda item: len(item[0])):
        yield Group(_joined(path, prefix), members)


def _joined(path: str, names: Name) -> str:
    return ".".join((*([path] if path else []), *names))


def _unwrapped(name: str) -> Name:
    return tuple(part for part in name.split(".") if part not in _WRAPPERS)


def _ties(expected: Mapping[Name, Tensor]) -> dict[Name, Name]:
    """For each tensor of a network the first that is the same memory; of one that is tied to none, itself."""
    first: dict[tuple[Any, ...], Name] = {}
    ties = {}
    for name, tensor in expected.items():
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        ties[name] = first.setdefault(memory if tensor.device.type != "meta" else (name,), name)
    return ties


def _renamings(names: Collection[Name], expected: Collection[Name]) -> Iterator[dict[Name, Name]]:
    """Ways to read the names of a file as those of a network, which are then compared.

    The names as they are; then without the inner parts that are no part of any of the network's names, as a wrapper
    adds them; then with the network's own leading parts that the file does not know, as where the network is wrapped.
    """
    theirs, ours = ({part for name in group for part in name} for group in (names, expected))
    yield {name: name for name in names}
    shorter = {name: (*(p for p in name[:-1] if p in ours or p.isdigit()), *name[-1:]) for name in names}
    if len(set(shorter.values())) == len(shorter):
        yield shorter
    own: dict[Name, Name] = {}
    for name in expected:
        own.setdefault(
            (*dropwhile(lambda part: part not in theirs and not part.isdigit(), name[:-1]), *name[-1:]), name
        )
    yield {name: own.get(name, name) for name in names}


def _matched(group: Group, expected: Mapping[Name, Tensor], ties: Mapping[Name, Name]) -> dict[Name, Tensor] | None:
    """The tensors of a group by the network's own names, if they are all that it needs and no more."""
    needed = {tie for name, tie in ties.items() if name[-1] != _COUNTER}
    if not len(needed) <= len(group.tensors) <= len(expected):
        return None
    for renaming in _renamings(group.tensors, expected):
        tensors = {renaming[name]: tensor for name, tensor in group.tensors.items()}
        fits = all(name in expected and tensor.shape == expected[name].shape for name, tensor in tensors.items())
        if fits and len(tensors) == len(group.tensors) and needed <= {ties[name] for name in tensors}:
            return tensors
    return None


def _is_part(tensors: Mapping[Name, Tensor], others: Mapping[Name, Tensor]) -> bool:
    return {id(tensor) for tensor in tensors.values()} <= {id(tensor) for tensor in others.values()}


def _faults(groups: list[Group], expected: Mapping[Name, Tensor], ties: Mapping[Name, Name]) -> str:
    """What keeps the group that has most in common with the network from fitting it."""
    best = max(groups, key=lambda group: len(group.tensors.keys() & expected.keys()))
    there, where = best.tensors, f" (under {quoted(best.path)})" if best.path else ""
    present = {ties[name] for name in there if name in expected}
    missing = [".".join(n) for n in expected if n not in there and n[-1] != _COUNTER and ties[n] not in present]
    unexpected = [".".join(name) for name in there if name not in expected]
    misshapen = [name for name in expected if name in there and there[name].shape != expected[name].shape]
    faults = []
    if missing:
        hint = near_matches(missing[0], unexpected) if len(unexpected) < 1000 else ""
        faults.append(f"{len(missing)} missing, first {_listed(missing)}.{hint}")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected, first {_listed(unexpected)}.")
    if misshapen:
        name = misshapen[0]
        shapes = f"{tuple(there[name].shape)} in the file, {tuple(expected[name].shape)} in the model"
        faults.append(f"{len(misshapen)} misshapen, first {_quoted(name)}: {shapes}.")
    return " ".join(faults) + where


def _listed(names: list[str]) -> str:
    return ", ".join(quoted(name) for name in names[:_NAMED])


def _quoted(name: Name) -> str:
    return quoted(".".join(name))


def _cast(tensor: Tensor, own: Tensor, what: str) -> Tensor:
    """A tensor in the dtype of the network's own.

    Raises:
        InputError: It is sparse, quantised or without values, or would lose more than precision.
        NonFiniteError: It is NaN or infinite.
    """
    if tensor.is_quantized:
        raise InputError(f"{what} is quantised; save it dequantised")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise InputError(f"{what} is not a dense tensor but {tensor.layout}; save it as a dense one")
    if tensor.device.type == "meta":
        raise InputError(f"{what} has no values (it is on the meta device); save it once it has been loaded")
    kind, here = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, own.dtype))
    if tensor.is_complex() and not own.is_complex():
        raise InputError(f"{what} is {kind}, and would lose its imaginary part in the model's {here}")
    is_real = own.is_floating_point() or own.is_complex()
    if is_real and not (tensor.is_floating_point() or tensor.is_complex()):
        raise InputError(f"{what} is {kind} where the model has {here}; save weights that are not quantised")
    with torch.no_grad():
        cast = tensor.detach().to(own.dtype)
        if is_real and not cast.isfinite().all():
            raise NonFiniteError(f"{what} holds NaN or infinity; use an earlier checkpoint")
        if not is_real and not torch.equal(cast.to(tensor.dtype), tensor):
            raise InputError(f"{what} is {kind}, and would be changed by the model's {here}")
    return cast


def _by_tie(values: Mapping[Name, Tensor], ties: Mapping[Name, Name], path: Path) -> dict[Name, Tensor]:
    """The tensors of a file, those that the network ties once.

    Raises:
        InputError: Some of these differ.
    """
    first: dict[Name, Name] = {}
    for name, value in values.items():
        other = first.setdefault(ties[name], name)
        if not torch.equal(values[other], value):
            raise InputError(f"{path}: {_quoted(other)} and {_quoted(name)}, which the model ties, differ there")
    return {tie: values[name] for tie, name in first.items()}
