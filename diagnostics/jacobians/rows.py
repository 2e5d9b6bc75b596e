"""Dense Jacobians, in chunks of rows: as many at a time through one backward graph as the budget allows."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.jacobians.pullback import LIVE_COPIES
from skip_conditioning.diagnostics.jacobians.witness import witness_of, witnessed_pullback
from skip_conditioning.diagnostics.linalg.gram import CONVERTED_COLUMNS
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.support.progress import Progress
from skip_conditioning.diagnostics.support.sharding import gathered_rows


class RowSource:
    """Rows of one map's Jacobian, any range of them, from a single forward pass.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        memory_budget: Bytes that the temporaries of a chunk may take.
        progress: Called after every chunk.
        group: Processes to share the rows among; all have to call for the same rows, and each gets all of them.

    Raises:
        UnsupportedModelError: An operator in the model cannot be differentiated.
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
        self.row_bytes = LIVE_COPIES * map.widest * map.point.element_size()
        self.witness = witness_of(map)
        self.pullback, _ = witnessed_pullback(map, memory_budget, self.witness)
        self.chunk = min(self.pullback.chunk, map.rows)
        self._witnessed = 0
        self._products = map.point.new_zeros(
            0 if self.witness is None else len(self.witness.cotangents), map.cols, dtype=torch.float64
        )

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the Jacobian, shape ``(stop - start, cols)``, row-major."""
        block = (
            self._own_rows(start, stop)
            if self._group is None
            else gathered_rows(self._own_rows, start, stop, self._group)
        )
        if self.witness is not None and start == self._witnessed < stop:
            cotangents = self.witness.cotangents[:, start:stop]
            for first in range(0, self.map.cols, CONVERTED_COLUMNS):
                chosen = slice(first, first + CONVERTED_COLUMNS)
                self._products[:, chosen] += cotangents @ block[:, chosen].double()
            self._witnessed = stop
        return block

    def judged(self) -> tuple[float, float] | None:
        """How far the rows differ from plain autograd's, and the floor that this gives; None without a witness.

        To be called when all rows have been computed.

        Raises:
            UnsupportedModelError: They differ by more than rounding.
        """
        if self.witness is None:
            return None
        assert self._witnessed == self.map.rows
        if not self.witness.accepts(self._products):
            raise self.witness.refuse("its Jacobian", self._products)
        return self.witness.difference(self._products), self.witness.floor(self._products)

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
        block.copy_(self.pullback(cotangents))


def dense_jacobian(map: Map, memory_budget: int) -> Tensor:
    """The whole Jacobian of a map.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        memory_budget: Bytes that temporaries may take; the result comes on top.

    Returns:
        Shape ``(rows, cols)``, the point's dtype, on its device.

    Raises:
        UnsupportedModelError: An operator cannot be differentiated, or the rows differ from plain autograd's.
    """
    source = RowSource(map, memory_budget)
    rows = source.rows(0, map.rows)
    source.judged()
    return rows
