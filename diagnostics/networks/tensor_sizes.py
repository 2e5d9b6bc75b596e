"""Sizes of the tensors of a forward pass; memory is planned by them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary


class DependentSizes(TorchDispatchMode):
    """Records the number of entries of every tensor that is made from the inputs, and in which precisions they are."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.dtypes: set[torch.dtype] = set()
        # Weak references: keeping every activation alive would take the memory of a whole training step.
        self._dependent = WeakIdKeyDictionary(dict.fromkeys(inputs, True))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if any(tensor in self._dependent for tensor in _tensors(args)):
            for tensor in _tensors((result,)):
                self._dependent[tensor] = True
                self.sizes.append(tensor.numel())
                self.dtypes.add(tensor.dtype)
        return result


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operator's arguments or results, also within lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
