"""The first process of a group decides: all use its results, and measure with its buffers."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.networks.isolation import buffer_copies, unwrap
from skip_conditioning.diagnostics.support.sharding import distribute, run_in_all

Result = TypeVar("Result")


def as_first(work: Callable[[], Result], group: ProcessGroup | None) -> Result:
    """Do some work in every process of a group, and return in each the result of the first.

    Args:
        work: Its results in the other processes are dropped.
        group: All its processes have to call; None for this process alone.

    Raises:
        Exception: What the work raised in one process, raised in all.
    """
    if group is None:
        return work()

    def result_in_first(rank: int) -> Result | None:
        result = work()
        return result if rank == 0 else None

    return distribute(range(group.size()), result_in_first, group)[0]  # type: ignore[return-value]


@contextlib.contextmanager
def buffers_of_first(model: nn.Module, group: ProcessGroup | None) -> Iterator[None]:
    """Inside, a model has copies of the buffers that it has in the group's first process; outside, its own.

    Where each process trains on its own share of the data, running statistics of batch norm differ between them.
    """
    if group is None:
        yield
        return
    model = unwrap(model)
    own_buffers = {module: module._buffers for module in model.modules()}
    try:
        sent = run_in_all(lambda: _copied_buffers(model), group)
        for tensor in sent:
            distributed.broadcast(tensor, distributed.get_global_rank(group, 0), group)
        with torch.no_grad():
            for buffer, tensor in zip(model.buffers(), sent, strict=True):
                buffer.copy_(tensor.view(buffer.dtype).view(buffer.shape))
        yield
    finally:
        for module, buffers in own_buffers.items():
            vars(module)["_buffers"] = buffers


def _copied_buffers(model: nn.Module) -> list[Tensor]:
    """Give a model copies of its buffers, and return their contents as bytes: not every backend sends every type."""
    for module, buffers in buffer_copies(model).items():
        vars(module)["_buffers"] = buffers
    return [buffer.reshape(-1).view(torch.uint8).clone() for buffer in model.buffers()]
