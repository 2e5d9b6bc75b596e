"""Times the steps and evaluations of a run from a few of each, and computes the bytes that whole runs will leave.

A GPU works on after a call has returned: times are taken between two moments at which it is idle, and steps are timed
in blocks.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from skip_conditioning.diagnostics.monitoring.monitor import SpectrumMonitor
from skip_conditioning.diagnostics.tables import SCHEMAS
from skip_conditioning.experiments.data.batches import EvaluationBatches
from skip_conditioning.experiments.records.checkpoints import checkpoint_path, last_whole_step, training_state_path
from skip_conditioning.experiments.training.step_log import Block
from skip_conditioning.experiments.training.trainer import Trainer

#: Steps in a block on a GPU, where the first block is by far the longest; elsewhere each step is a block.
_BLOCK = 5
#: The first blocks, which are slower, are left out; then this many are timed, or as many as fit into the seconds.
_LEFT_OUT, _TIMED, _TIMED_AT_LEAST, _TIMED_SECONDS = 2, 20, 3, 3.0
#: Timing ends in any case when the blocks after the first, or an evaluation, have taken this many seconds.
_PATIENCE = 20.0

Result = TypeVar("Result")


def time_steps(trainer: Trainer) -> tuple[float, int]:
    """Take a few steps of a run without measurements; afterwards the trainer can only save and evaluate.

    Returns:
        Seconds of a step, and the number of steps timed: from the median block, or from the mean for streamed images,
        which come in bursts.
    """
    size = _BLOCK if trainer.device.type == "cuda" else 1
    total, lr = trainer.total_steps, trainer.lr
    ahead = 2 * _workers(trainer.batches)  # batches that may have been decoded before the first step
    clock = _Clock(size, -(-ahead // size))
    probe = trainer.monitor.x, trainer.monitor.y
    trainer.monitor = SpectrumMonitor(trainer.model, probe, trainer.directory, maps=(), max_overhead=None)
    trainer.config = trainer.config.changed(evaluate_epochs=None, checkpoints=sys.maxsize)
    trainer.total_steps, trainer.lr, trainer.block = sys.maxsize, 0.0, Block(size)
    with contextlib.suppress(_Enough):
        trainer.run(clock)
    trainer.total_steps, trainer.lr = total, lr
    # Written out, the learning rate of the last update takes some bytes of a checkpoint.
    trainer.optimizer.param_groups[0]["lr"] = trainer.lr_at(total - 1)
    blocks = clock.counted()
    middle = fmean(blocks) if ahead else median(blocks)
    return middle / size, len(blocks) * size


class _Enough(Exception):  # noqa: N818
    """Enough steps have been timed."""


class _Clock:
    """Times blocks of steps; called for every step when a block's numbers are there.

    Args:
        size: Steps in a block.
        ahead: Blocks whose images may have been decoded before: this many more are left out, and timed.
    """

    def __init__(self, size: int, ahead: int) -> None:
        self._size, self._ahead = size, ahead
        self._blocks: list[float] = []
        self._last = time.perf_counter()

    def __call__(self, step: int, *_: object) -> None:
        if (step + 1) % self._size:
            return
        now = time.perf_counter()
        self._blocks.append(now - self._last)
        self._last = now
        timed = self._blocks[_LEFT_OUT + self._ahead :]
        least = (_TIMED_AT_LEAST if sum(timed) > _TIMED_SECONDS else _TIMED) + self._ahead
        if len(timed) >= least or sum(self._blocks[1:]) > _PATIENCE:
            raise _Enough

    def counted(self) -> list[float]:
        """Seconds of the blocks that count; of all blocks if the run diverged at once."""
        blocks = self._blocks[_LEFT_OUT + self._ahead :] or self._blocks[1:] or self._blocks
        return blocks or [time.perf_counter() - self._last]


def time_evaluation(trainer: Trainer) -> float:
    """Seconds of an evaluation of all test images, from its first batch, or from several if they come in bursts."""
    whole, workers = trainer.test, _workers(trainer.test)
    for _ in range(1 if workers else 2):  # the first is slower, which matters little where many are timed
        some = _SomeBatches(whole, trainer.device, 2 * workers + 1)
        trainer.test = some
        start = time.perf_counter()
        trainer.evaluate(0)
    trainer.test = whole
    first, seen = some.ends[0] - start, sum(some.sizes)
    later = seen - some.sizes[0]
    each = (some.ends[-1] - some.ends[0]) / later if later else first / seen
    return first + (len(whole) - some.sizes[0]) * each


@dataclass(eq=False)
class _SomeBatches:
    """The first ``count`` batches of an evaluation: their sizes, and when each had been evaluated."""

    whole: EvaluationBatches
    device: torch.device
    count: int
    sizes: list[int] = field(default_factory=list, init=False)
    ends: list[float] = field(default_factory=list, init=False)

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.whole:
            yield images, labels
            _wait(self.device)
            self.sizes.append(len(labels))
            self.ends.append(time.perf_counter())
            if len(self.ends) == self.count or self.ends[-1] - self.ends[0] > _PATIENCE:
                return


def timed(do: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What a call returns, and the seconds until the device has done it."""
    _wait(device)
    start = time.perf_counter()
    result = do()
    _wait(device)
    return result, time.perf_counter() - start


def checkpoint_bytes(run: Path, saves: Iterable[int], kept: Callable[[int], bool]) -> tuple[int, int]:
    """Bytes of a run's weights and training states: of those left at the end, and the most at any time.

    Args:
        run: Directory of a run that was saved as if at its last step.
        saves: Steps at which the run will save, in order.
        kept: Whether the weights of a step stay when later ones have been saved.
    """
    step = last_whole_step(run)
    path, state = checkpoint_path(run, step), training_state_path(run, step).stat().st_size
    with path.open("rb") as file:
        padded = int.from_bytes(file.read(8), "little")
        header = len(file.read(padded).rstrip(b" ")) - len(str(step))
    tensors = path.stat().st_size - padded
    staying = passing = most = 0
    for at in saves:
        # The file's header holds the step, and is padded to a multiple of 8 bytes.
        weights = tensors + -(-(header + len(str(at))) // 8) * 8
        # What is older goes when the newer is whole.
        most = max(most, staying + passing + weights + state * (2 if staying + passing else 1))
        staying, passing = (staying + weights, 0) if kept(at) else (staying, weights)
    return staying + passing + state, most


def read_rows(directory: Path) -> pa.Table:
    """All rows of a table that was just written."""
    schema = SCHEMAS[directory.name]
    return pa.concat_tables([schema.empty_table(), *map(pq.read_table, directory.glob("part-*.parquet"))])


def table_bytes(table: pa.Table, rows: int, parts: int) -> int:
    """Bytes of a table, from the sizes of a part with one row and of a part with all rows given.

    Args:
        table: Some rows of the table.
        rows: Rows that it will have.
        parts: Parts that it will be written in.
    """
    if not len(table) or not rows or not parts:
        return 0
    first, whole = _part_bytes(table.slice(0, 1)), _part_bytes(table)
    later = (whole - first) / (len(table) - 1) if len(table) > 1 else first - _part_bytes(table.slice(0, 0))
    return round(parts * first + max(rows - parts, 0) * later)


def _part_bytes(table: pa.Table) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().size


def _workers(batches: object) -> int:
    """Processes that decode the images of batches; 0 for images held in memory."""
    return int(getattr(batches, "workers", 0))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
