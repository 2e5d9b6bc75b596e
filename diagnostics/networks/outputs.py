"""Tensors within what a module returns: a tensor, a tuple, a dictionary, a data class, or any of these in another."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors, in order."""
    if isinstance(output, Tensor):
        yield output
    else:
        for part in _parts(output):
            yield from tensors_in(part)


def _parts(output: Any) -> list[Any]:
    if isinstance(output, dict):
        return list(output.values())
    if isinstance(output, tuple | list):
        return list(output)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [getattr(output, field.name) for field in dataclasses.fields(output)]
    return []


def with_tensors(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with every tensor changed."""
    if isinstance(output, Tensor):
        return change(output)
    parts = [with_tensors(part, change) for part in _parts(output)]
    if isinstance(output, dict):
        return type(output)(dict(zip(output, parts, strict=True)))
    if isinstance(output, tuple | list):
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    if parts:
        names = [field.name for field in dataclasses.fields(output)]
        return dataclasses.replace(output, **dict(zip(names, parts, strict=True)))
    return output


def first_tensor(output: Any) -> Tensor | None:
    """The first of the tensors; None if there is none."""
    return next(tensors_in(output), None)


def floating_tensors(output: Any) -> list[Tensor]:
    """Those of the tensors that are floating."""
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


def with_floating(output: Any, replacements: dict[int, Tensor]) -> Any:
    """The same with some of ``floating_tensors`` replaced, by their index."""
    by_id = {id(tensor): replacements.get(index, tensor) for index, tensor in enumerate(floating_tensors(output))}
    return with_tensors(output, lambda tensor: by_id.get(id(tensor), tensor))
