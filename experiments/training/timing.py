"""Times what a run does: a few of its steps, an evaluation, each of its measurements.

A GPU works on after a call has returned: times are taken between two moments at which it is idle, and steps are timed
in blocks.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from skip_conditioning.diagnostics.monitoring.measurement import Measurement, scheduled
from skip_conditioning.diagnostics.monitoring.monitor import SpectrumMonitor
from skip_conditioning.diagnostics.monitoring.schedule import as_schedule, log_spaced
from skip_conditioning.diagnostics.monitoring.time_budget import forecast
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.diagnostics.support.memory import GIB
from skip_conditioning.diagnostics.tables import SCHEMAS, SKIPPED, SPECTRA
from skip_conditioning.experiments.config.train_config import measurements, spectra_dtype
from skip_conditioning.experiments.data.batches import EvaluationBatches
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.experiments.training.step_log import Block
from skip_conditioning.experiments.training.trainer import Trainer

#: Steps in a block on a GPU, where the first block is by far the longest; elsewhere each step is a block.
_BLOCK = 5
#: The first blocks, which are slower, are left out; then this many are timed, or as many as fit into the seconds.
_LEFT_OUT, _TIMED, _TIMED_AT_LEAST, _TIMED_SECONDS = 2, 20, 3, 3.0
#: Timing ends in any case when the blocks after the first, or an evaluation, have taken this many seconds.
_PATIENCE = 20.0
#: A measurement is made if its forecast is no longer than this, in seconds; otherwise the forecast stands.
_MEASURED_SECONDS = 5.0

Result = TypeVar("Result")


def time_steps(trainer: Trainer) -> tuple[float, int]:
    """Take a few steps of a run without measurements; afterwards the trainer can only save and evaluate.

    Returns:
        Seconds of a step, and the number of steps timed: from the median block, or from the mean for streamed images,
        which come in bursts.
    """
    size = _BLOCK if trainer.device.type == "cuda" else 1
    total = trainer.total_steps
    ahead = 2 * _workers(trainer.batches)  # batches that may have been decoded before the first step
    clock = _Clock(size, -(-ahead // size))
    probe = trainer.monitor.probe
    trainer.monitor.close()
    trainer.monitor = SpectrumMonitor(trainer.model, probe, trainer.directory, maps=(), max_overhead=None)
    trainer.config = trainer.config.changed(evaluate_epochs=None, checkpoints=sys.maxsize)
    trainer.total_steps, trainer.lr, trainer.block = sys.maxsize, 0.0, Block(size)
    with contextlib.suppress(_Enough):
        trainer.run(clock)
    trainer.total_steps = total
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


@dataclass(frozen=True, eq=False)
class MeasurementCost:
    """What one measurement of a run costs.

    Attributes:
        map: What is measured, or ``bounds``.
        seconds: Each time.
        is_forecast: Whether these are a forecast, because measuring would take too long.
        due: Steps at which it is due.
        spectra: Rows that it writes each time; none if it was not made.
        skipped: The row that it writes where it exceeds ``max_overhead``.
    """

    map: str
    seconds: float
    is_forecast: bool
    due: list[int]
    spectra: pa.Table
    skipped: pa.Table


def measurement_costs(runner: Runner, trainer: Trainer) -> list[MeasurementCost]:
    """The cost of everything that is measured in a run: each measurement is made twice, and the second is timed.

    Args:
        runner: Of the experiment.
        trainer: Of the run, which has taken a few steps.
    """
    bounds: list[Measurement | None] = [None] if runner.config.diagnostics.bounds else []
    return [
        _cost(runner, trainer, measurement, trainer.directory / str(number))
        for number, measurement in enumerate([*bounds, *measurements(runner.config)])
    ]


def _cost(runner: Runner, trainer: Trainer, measurement: Measurement | None, directory: Path) -> MeasurementCost:
    """The cost of a measurement, or of the bounds; a monitor writes to the directory."""
    model, probe, dtype = trainer.model, runner.probe, spectra_dtype(runner.config)
    named = scheduled(measurement or Measurement("bounds"), None, log_spaced())
    schedule = as_schedule(named.schedule)  # type: ignore[arg-type]
    due = [step for step in range(trainer.total_steps + 1) if schedule(step)]
    seconds = 0.0
    if measurement is not None:
        seconds = forecast(
            model, Probe(probe[0]), measurement, method="auto", tolerance=None, dtype=dtype, memory_budget=GIB
        )
    too_long = seconds > _MEASURED_SECONDS
    spectra = SPECTRA.empty_table()
    if not too_long:
        maps = () if measurement is None else (replace(measurement, schedule=1),)
        monitor = SpectrumMonitor(
            model, probe, directory, maps=maps, schedule=1, max_overhead=None, dtype=dtype, bounds=measurement is None
        )
        monitor.step(0)
        _, seconds = timed(lambda: monitor.step(1), runner.device)
        monitor.close()
        spectra = read_rows(directory / "spectra").filter(pc.field("step") == 0)
    reason = f"would exceed max_overhead={runner.config.diagnostics.max_overhead}"
    row = {"run_id": trainer.directory.name, "step": 0} | named.skipped(reason, seconds)
    return MeasurementCost(named.map, seconds, too_long, due, spectra, pa.Table.from_pylist([row], schema=SKIPPED))


def read_rows(directory: Path) -> pa.Table:
    """All rows of a table that was just written."""
    schema = SCHEMAS[directory.name]
    return pa.concat_tables([schema.empty_table(), *map(pq.read_table, directory.glob("part-*.parquet"))])


def _workers(batches: object) -> int:
    """Processes that decode the images of batches; 0 for images held in memory."""
    return int(getattr(batches, "workers", 0))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
