"""What the first process of a group gives to the others: its results, and the buffers that all measure with."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.networks.isolation import stand_in_for_buffers, unwrap
from skip_conditioning.diagnostics.support.sharding import distribute, run_in_all

Result = TypeVar("Result")


def as_first(work: Callable[[], Result], group: ProcessGroup | None) -> Result:
    """The result that the first process of a group gets from some work which all of them do.

    Args:
        work: Done in every process; its results in the others are dropped.
        group: All its processes have to call; None for this process alone.

    Raises:
        Exception: What the work raised in any of them, in all of them.
    """
    if group is None:
        return work()

    def own(rank: int) -> Result | None:
        result = work()
        return result if rank == 0 else None  # nobody needs the others'

    return distribute(range(group.size()), own, group)[0]  # type: ignore[return-value]


@contextlib.contextmanager
def buffers_of_first(model: nn.Module, group: ProcessGroup | None) -> Iterator[None]:
    """Inside, a model has copies of the buffers that it has in the group's first process; outside, its own.

    Batch norm that sees another share of the data in each process has other running statistics in each.
    """
    if group is None:
        yield
        return
    model = unwrap(model)
    held = {module: module._buffers for module in model.modules()}
    try:
        sent = run_in_all(lambda: _copied_buffers(model), group)
        for tensor in sent:
            distributed.broadcast(tensor, distributed.get_global_rank(group, 0), group)
        with torch.no_grad():
            for buffer, tensor in zip(model.buffers(), sent, strict=True):
                buffer.copy_(tensor.view(buffer.dtype).view(buffer.shape))
        yield
    finally:
        for module, buffers in held.items():
            vars(module)["_buffers"] = buffers


def _copied_buffers(model: nn.Module) -> list[Tensor]:
    """Give a model copies of its buffers, and return what is in them as bytes: not every backend sends every type."""
    stand_in_for_buffers(model)
    return [buffer.reshape(-1).view(torch.uint8).clone() for buffer in model.buffers()]
