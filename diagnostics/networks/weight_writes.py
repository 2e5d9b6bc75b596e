"""Finding out before it happens that a forward pass writes into weights: by ``no_grad``, ``.data`` or NumPy."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class WeightWriteError(BaseException):
    """A forward pass is about to write into a weight; no ``except Exception`` of the model's may hold it up."""


#: What gives a tensor other memory, or hands its memory to code that no mode sees.
_HANDS_OVER = frozenset(
    {
        *(Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr, Tensor.untyped_storage, Tensor.set_),
        Tensor.data.__set__,  # type: ignore[attr-defined]
    }
)


@contextlib.contextmanager
def weights_unwritten(weights: Iterable[Tensor]) -> Iterator[None]:
    """Inside, ``WeightWriteError`` is raised before an operator writes into the memory of a weight."""
    addresses = {address for weight in weights if (address := _address(weight))}
    with _HandedOver(addresses), _Written(addresses):
        yield


def _address(value: Any) -> int:
    """Where a tensor's memory begins; 0 if it has none of its own."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return 0
    try:
        return value.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor of a library, or one without data
        return 0


class _Written(TorchDispatchMode):
    """Sees the operators that write into an argument."""

    def __init__(self, addresses: set[int]) -> None:
        super().__init__()
        self._addresses = addresses

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for index, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = args[index] if index < len(args) else kwargs.get(argument.name)
                    self._check(written if isinstance(written, list | tuple) else [written])
        return func(*args, **kwargs)

    def _check(self, tensors: Iterable[Any]) -> None:
        if any(_address(tensor) in self._addresses for tensor in tensors):
            raise WeightWriteError


class _HandedOver(TorchFunctionMode):
    """Sees a weight whose memory is exchanged or handed to NumPy and the like."""

    def __init__(self, addresses: set[int]) -> None:
        super().__init__()
        self._addresses = addresses

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in _HANDS_OVER and args and _address(args[0]) in self._addresses:
            raise WeightWriteError
        return func(*args, **(kwargs or {}))
