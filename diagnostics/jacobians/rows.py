"""Dense Jacobians, in chunks of rows: ``vmap`` over one ``vjp``, as many rows at a time as the budget allows."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.func import vjp, vmap

from skip_conditioning.diagnostics.errors import UnsupportedModelError
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.support.progress import Progress
from skip_conditioning.diagnostics.support.sharding import gathered_rows

#: Copies of the largest activation that the backward pass of one row keeps alive at a time.
_LIVE_COPIES = 6

#: Bytes near which the largest tensor of a chunk stays on a CPU: larger chunks fall out of the cache, and their memory
#: is returned to the system and allocated anew every time.
CACHE_BYTES = 3 * 2**20


class RowSource:
    """Rows of one map's Jacobian, any range of them, from a single forward pass.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        memory_budget: Bytes that the temporaries of a chunk may take.
        progress: Called after every chunk.
        group: Processes to share the rows among; all have to call for the same rows, and each gets all of them.

    Raises:
        UnsupportedModelError: An operator in the model cannot be differentiated by ``torch.func``.
    """

    def __init__(
        self,
        map: Map,
        memory_budget: int,
        *,
        progress: Progress | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.map, self._progress, self._group, self._done = map, progress, group, 0
        self.row_bytes = _LIVE_COPIES * map.widest * map.point.element_size()
        self.chunk = min(chunk_size(map, memory_budget), map.rows)
        with clear_autograd_errors(map):
            self._pullback: Callable[[Tensor], tuple[Tensor]] = vjp(map.function, map.point)[1]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the Jacobian, shape ``(stop - start, cols)``, row-major."""
        if self._group is None:
            return self._own_rows(start, stop)
        return gathered_rows(self._own_rows, start, stop, self._group)

    def _own_rows(self, start: int, stop: int) -> Tensor:
        block = self.map.point.new_empty(stop - start, self.map.cols)
        for first in range(start, stop, self.chunk):
            last = min(first + self.chunk, stop)
            self._write_rows(block[first - start : last - start], first, last)
            self._done += last - first
            if self._progress is not None:
                self._progress(self._done, max(self._done, self.map.rows))
        return block

    def blocks(self, size: int) -> Iterator[Tensor]:
        """All rows in order, ``size`` at a time."""
        for start in range(0, self.map.rows, size):
            yield self.rows(start, min(start + size, self.map.rows))

    def _write_rows(self, block: Tensor, first: int, last: int) -> None:
        cotangents = self.map.point.new_zeros(last - first, self.map.rows)
        cotangents[:, first:last].fill_diagonal_(1)
        with clear_autograd_errors(self.map):
            rows = self._pull_back(cotangents.view(-1, *self.map.output_shape))
        block.view(rows.shape).copy_(rows)

    def _pull_back(self, cotangents: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                return vmap(self._pullback)(cotangents)[0]
        except RuntimeError as error:
            if "memory_format" not in str(error):
                raise
            # Group norm's fused backward pass of a channels-last tensor cannot be batched; its differentiable one can.
            return vmap(self._pullback)(cotangents)[0]


def chunk_size(map: Map, memory_budget: int) -> int:
    """How many vectors to carry through a map at a time, at least one."""
    largest = map.widest * map.point.element_size()
    chunk = memory_budget // (_LIVE_COPIES * largest)
    if map.point.device.type == "cpu":
        chunk = min(chunk, CACHE_BYTES // largest)
    return max(int(chunk), 1)


def dense_jacobian(map: Map, memory_budget: int) -> Tensor:
    """The whole Jacobian of a map.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        memory_budget: Bytes that temporaries may take; the result comes on top.

    Returns:
        Shape ``(rows, cols)``, the point's dtype, on its device.
    """
    return RowSource(map, memory_budget).rows(0, map.rows)


@contextlib.contextmanager
def clear_autograd_errors(map: Map) -> Iterator[None]:
    """Turn autograd's error about an operator it cannot differentiate into one line that names the layer."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UnsupportedModelError(
            f"the {map.name} map of {map.layer!r} cannot be differentiated ({first_line}); turn gradient checkpointing "
            "off if the model uses it, or choose a layer behind the operator"
        ) from error
