"""What rounding does to a network, seen by moving every operator's result by as much."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from skip_conditioning.diagnostics.networks.isolation import convert

#: Entries at least of the table from which noise is read.
_TABLE = 2**14


class RoundingNoise(TorchDispatchMode):
    """Moves the result of every operator by about its rounding: by one unit in the last place, up or down at random.

    Random numbers are drawn as in the measurement's precision, so that a dropout mask is the same.

    Args:
        measured: Precision of the measurement.
        wide: Whether the network is evaluated in float64 instead; float64 results are then left as they are.
    """

    def __init__(self, measured: torch.dtype, *, wide: bool) -> None:
        super().__init__()
        self._measured, self._wide = measured, wide
        self._generator, self._next = torch.Generator().manual_seed(0), 0
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and self._wide:
            return self._drawn(func, args, kwargs)
        result = func(*args, **kwargs)
        if func.is_view or func._schema.is_mutable:
            return result
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor) and self._is_rounded(part):
                part.mul_(self._factors(part))
        return result

    def _drawn(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of a random operator, drawn in the measurement's precision."""
        narrow = lambda value: convert(value, self._measured) if isinstance(value, Tensor) else value  # noqa: E731
        if kwargs.get("dtype") == torch.float64:
            kwargs = {**kwargs, "dtype": self._measured}
        result = func(*tree_map(narrow, args), **tree_map(narrow, kwargs))
        if func._schema.is_mutable:
            return args[0].copy_(result)
        wide = lambda value: convert(value, torch.float64) if isinstance(value, Tensor) else value  # noqa: E731
        return tree_map(wide, result)

    def moved(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor, moved if it is floating."""
        return tensor * self._factors(tensor) if tensor.is_floating_point() else tensor

    def _is_rounded(self, tensor: Tensor) -> bool:
        kept = self._wide and tensor.dtype == torch.float64
        return tensor.layout is torch.strided and tensor.is_floating_point() and not kept

    def _factors(self, tensor: Tensor) -> Tensor:
        """Factors near 1 for the entries of a tensor, read from a table wherever the last ones ended."""
        key, count = (tensor.device, tensor.dtype), tensor.numel()
        table = self._tables.get(key)
        if table is None or len(table) < 2 * count:
            signs = torch.randint(0, 2, (max(_TABLE, 2 * count),), generator=self._generator, dtype=torch.int8)
            table = self._tables[key] = (signs.to(tensor.device) * 2 - 1).to(tensor.dtype)
            table.mul_(torch.finfo(tensor.dtype).eps).add_(1)
        self._next = (self._next + count + 1) % (len(table) - count)
        return table[self._next : self._next + count].view(tensor.shape)
