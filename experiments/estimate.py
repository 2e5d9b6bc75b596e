"""What an experiment will take, before it starts: ``python -m experiments.train PRESET --out DIR --estimate``.

A run of each arm trains for a few steps in a temporary directory, with the trainer and the monitor of the real one.
The learning rate is 0 there, so that no run diverges; a step takes as long as any. Once each: a run's beginning, a
checkpoint, an evaluation (of one batch, if there are more) and a measurement, unless its forecast is too long. These
times are multiplied by how often each is due.
"""

import contextlib
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from diagnostics.forecast import Measurement, forecast, scheduled
from diagnostics.measure import GIB
from diagnostics.monitor import SpectrumMonitor
from diagnostics.schedule import as_schedule, log_spaced
from diagnostics.tables import SCHEMAS, SPECTRA
from experiments.checkpoints import checkpoint_path, training_state_path
from experiments.config import TrainConfig
from experiments.experiment import Cell, Experiment
from experiments.outputs import check_out
from experiments.training import Trainer

#: First steps, which are slower, are left out; then so many are timed, or as many as fit into the seconds.
_LEFT_OUT = 2
_TIMED, _TIMED_AT_LEAST, _TIMED_SECONDS = 20, 3, 3.0
#: Test images that are evaluated, one batch of an evaluation.
_EVALUATED = 500
#: A measurement is made if its forecast is no longer than this; otherwise the forecast stands.
_MEASURED_SECONDS = 5.0
#: Seconds between two parts of a table, as for the monitor.
_PART_SECONDS = 1.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class Estimate:
    """What an experiment will take; seconds and bytes are those of all its runs together.

    Attributes:
        runs: Arms × learning rates × trials.
        steps: Optimiser steps of each run.
        step_seconds: Median seconds of a step, averaged over the arms.
        timed: Steps timed of each arm (the fewest).
        start_seconds: Reading the data and trying every arm once, and the beginnings of all runs.
        training_seconds: Optimiser steps.
        evaluation_seconds: Evaluations on the test images.
        diagnostics_seconds: Measurements due, within ``max_overhead``.
        checkpoint_seconds: Writing checkpoints, and the table rows before each.
        forecast: Maps whose cost is the monitor's forecast because measuring them would take too long.
        peak_bytes: Most memory allocated on the GPU, or where there is none, used by this process.
        on_gpu: Which of these it is.
        checkpoint_bytes: Weights and optimiser states that are left at the end.
        checkpoint_bytes_peak: Most of them at any time: the older state of a run goes after the newer is whole.
        table_bytes: Parquet parts of all tables.
    """

    runs: int
    steps: int
    step_seconds: float
    timed: int
    start_seconds: float
    training_seconds: float
    evaluation_seconds: float
    diagnostics_seconds: float
    checkpoint_seconds: float
    forecast: tuple[str, ...]
    peak_bytes: int
    on_gpu: bool
    checkpoint_bytes: int
    checkpoint_bytes_peak: int
    table_bytes: int

    @property
    def seconds(self) -> dict[str, float]:
        """Contributions to the whole time, longest first."""
        parts = {
            "training": self.training_seconds,
            "diagnostics": self.diagnostics_seconds,
            "evaluation": self.evaluation_seconds,
            "checkpoints": self.checkpoint_seconds,
            "starting": self.start_seconds,
        }
        return dict(sorted(parts.items(), key=lambda part: -part[1]))

    @property
    def hours(self) -> float:
        """The whole time, of runs one after another."""
        return sum(self.seconds.values()) / 3600


#: What is summed over the runs.
_SUMMED = (
    *("runs", "start_seconds", "training_seconds", "evaluation_seconds", "diagnostics_seconds", "checkpoint_seconds"),
    *("checkpoint_bytes", "table_bytes"),
)


def estimate(config: TrainConfig) -> Estimate:
    """Time a few steps of each arm, and what else a run does; nothing is written to ``--out``.

    Raises:
        InputError: Whatever would keep the experiment from starting.
    """
    config.check()
    check_out(replace(config, estimate=False))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        trial = replace(config, out=place / "out", log=(), resume=False, overwrite=False)
        started = time.perf_counter()
        experiment = Experiment(trial)
        start = time.perf_counter() - started
        cells = {cell.arm: replace(cell, lr=0.0) for cell in experiment.cells()}
        arms = [_estimate_run(experiment, cell, place / cell.arm) for cell in cells.values()]
    each = len(config.lr) * config.trials
    whole = {name: each * sum(getattr(arm, name) for arm in arms) for name in _SUMMED}
    whole["start_seconds"] += start
    return replace(
        arms[-1],
        **whole,
        step_seconds=fmean(arm.step_seconds for arm in arms),
        timed=min(arm.timed for arm in arms),
        forecast=tuple(dict.fromkeys(name for arm in arms for name in arm.forecast)),
        checkpoint_bytes_peak=whole["checkpoint_bytes"]
        + max(arm.checkpoint_bytes_peak - arm.checkpoint_bytes for arm in arms),
    )


def print_estimate(found: Estimate) -> None:
    """Print what an experiment will take, the largest contributions first, and how it was found."""
    total = 3600 * found.hours
    print(
        f"{found.runs} runs of {found.steps} steps, one after another: about {_time(total)} ({found.hours:.3g} hours)"
    )
    for name, seconds in found.seconds.items():
        if seconds:
            print(f"  {name:<12}{_time(seconds):>10}{seconds / total:>6.0%}")
    print(f"memory: {_size(found.peak_bytes)} at most {'allocated on the GPU' if found.on_gpu else 'on the host'}")
    peak = _size(found.checkpoint_bytes_peak)
    print(f"disk: {_size(found.checkpoint_bytes)} of checkpoints at the end ({peak} at most before)")
    print(f"      {_size(found.table_bytes)} of tables")
    print(
        f"A step takes {found.step_seconds:.3g} s: the median of {found.timed} of each arm after {_LEFT_OUT} left out. "
        "Starting, checkpoints, evaluation and diagnostics were timed too."
    )
    if found.forecast:
        print(f"Not timed but forecast, and not in the memory: measuring {', '.join(found.forecast)}.")


def _estimate_run(experiment: Experiment, cell: Cell, place: Path) -> Estimate:
    """What one run of an arm will take."""
    trainer, start = _timed(lambda: experiment._trainer(cell, place))
    every_step = range(trainer.total_steps + 1)
    saves, evaluations = (sum(map(due, every_step)) for due in (trainer._checkpoint_due, trainer._evaluation_due))
    # Only steps are to be timed: without measurements, and without checkpoints or evaluations after the first.
    trainer.monitor = SpectrumMonitor(trainer.model, experiment.probe, place, maps=())
    trainer.config = replace(experiment.config, evaluate_epochs=None, checkpoints=_LEFT_OUT + _TIMED + 1)
    steps = _time_steps(trainer)
    step = median(steps)
    _, save = _timed(lambda: trainer._save(trainer.total_steps))
    weights, state = (
        path(place, trainer.total_steps).stat().st_size for path in (checkpoint_path, training_state_path)
    )
    metrics = _read_rows(place / "metrics")
    evaluate = _time_evaluation(trainer) if evaluations else 0.0
    others = len(every_step) * step + saves * save + evaluations * evaluate
    measured = [_measure(experiment, trainer, item, place / str(i)) for i, item in enumerate(_items(experiment))]
    wanted = sum(one.seconds * one.times for one in measured)
    share = experiment.config.max_overhead
    made = 1.0 if share is None or not wanted else min(1.0, share * others / wanted)
    seconds = others + made * wanted
    # The monitor writes what waits at every checkpoint, and in between after each step that ends a second later.
    parts = saves * (1 + int(seconds / saves / max(_PART_SECONDS, step)))
    probe_rows = math.ceil(made * max((one.times for one in measured), default=0))
    table_bytes = _table_bytes(metrics, len(every_step) + evaluations + probe_rows, parts)
    for one in measured:
        times = math.ceil(made * one.times)
        table_bytes += _table_bytes(one.spectra, times * len(one.spectra), min(times, parts))
    left = saves * weights + state
    return Estimate(
        runs=1,
        steps=trainer.total_steps,
        step_seconds=step,
        timed=len(steps),
        start_seconds=start,
        training_seconds=len(every_step) * step,
        evaluation_seconds=evaluations * evaluate,
        diagnostics_seconds=made * wanted,
        checkpoint_seconds=saves * save,
        forecast=tuple(one.name for one in measured if one.forecast),
        peak_bytes=_peak(experiment.device),
        on_gpu=experiment.device.type == "cuda",
        checkpoint_bytes=left,
        checkpoint_bytes_peak=left + state,
        table_bytes=table_bytes,
    )


class _Enough(Exception):  # noqa: N818
    """Enough steps have been timed."""


def _time_steps(trainer: Trainer) -> list[float]:
    """Seconds of each step but the first ones, which are all there are of a very short run."""
    seconds, before = list[float](), time.perf_counter()

    def progress(*_: object) -> None:
        nonlocal before
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
        timed = len(seconds) - _LEFT_OUT
        late = timed >= _TIMED_AT_LEAST and sum(seconds[_LEFT_OUT:]) > _TIMED_SECONDS
        if timed >= _TIMED or late:
            raise _Enough

    with contextlib.suppress(_Enough):
        trainer.run(progress)
    return seconds[_LEFT_OUT:] or seconds


def _time_evaluation(trainer: Trainer) -> float:
    """Seconds of an evaluation of all test images, from a batch of them."""
    whole = len(trainer.test)
    part = min(_EVALUATED, whole)
    trainer.test = replace(trainer.test, images=trainer.test.images[:part], labels=trainer.test.labels[:part])
    trainer._evaluate(0)
    return _timed(lambda: trainer._evaluate(0))[1] * whole / part


def _items(experiment: Experiment) -> list[Measurement | None]:
    """What is measured while training; None for the bounds."""
    config = experiment.config
    items: list[Measurement | None] = [None] if config.bounds else []
    if config.diagnostics:
        for item in config.measurements:
            items.append(item if config.layers is None else replace(item, layers=config.layers))
    return items


@dataclass(frozen=True, eq=False)
class _Measured:
    """A measurement: its map, its seconds (or their forecast), how often it is due, and the rows of one."""

    name: str
    seconds: float
    forecast: bool
    times: int
    spectra: pa.Table


def _measure(experiment: Experiment, trainer: Trainer, item: Measurement | None, place: Path) -> _Measured:
    """Make a measurement twice and time the second; or only forecast it, if that says that it would be too long."""
    model, probe = trainer.model, experiment.probe
    named = scheduled(item or Measurement("bounds"), None, log_spaced())
    times = sum(map(as_schedule(named.schedule), range(trainer.total_steps + 1)))  # type: ignore[arg-type]
    if item is not None:
        seconds = forecast(model, probe[0], item, method="auto", tolerance=None, dtype=None, memory_budget=GIB)
        if seconds > _MEASURED_SECONDS:
            return _Measured(item.map, seconds, True, times, SPECTRA.empty_table())
    maps = () if item is None else (replace(item, schedule=1),)
    monitor = SpectrumMonitor(model, probe, place, maps=maps, schedule=1, max_overhead=None, bounds=item is None)
    monitor.step(0)
    _, seconds = _timed(lambda: monitor.step(1))
    monitor.close()
    return _Measured(named.map, seconds, False, times, _read_rows(place / "spectra").filter(pc.field("step") == 0))


def _read_rows(directory: Path) -> pa.Table:
    """All rows of a table that was just written."""
    schema = SCHEMAS[directory.name]
    return pa.concat_tables([schema.empty_table(), *map(pq.read_table, directory.glob("part-*.parquet"))])


def _table_bytes(table: pa.Table, rows: int, parts: int) -> int:
    """Bytes of so many rows in so many parts, from the sizes of a part with one row and with all rows there are."""
    if not len(table) or not parts:
        return 0
    one, most = _part_bytes(table.slice(0, 1)), _part_bytes(table)
    more = (most - one) / (len(table) - 1) if len(table) > 1 else one - _part_bytes(table.slice(0, 0))
    return round(parts * one + max(rows - parts, 0) * more)


def _part_bytes(table: pa.Table) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().size


def _peak(device: torch.device) -> int:
    """Most memory allocated on a GPU so far, or else used by this process (macOS counts bytes, Linux KiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _timed(do: Callable[[], Result]) -> tuple[Result, float]:
    """What a call returns, and the seconds it took."""
    start = time.perf_counter()
    result = do()
    return result, time.perf_counter() - start


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
