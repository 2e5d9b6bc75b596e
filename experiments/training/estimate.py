"""What an experiment will take, before it starts: ``python -m experiments.train PRESET --out DIR --estimate``.

A run of each arm trains for a few steps in a temporary directory, with the trainer and monitor of the real ones. The
learning rate is 0 there, so that no run diverges; a step takes as long as any. Once each: the beginning, a checkpoint,
the first batches of an evaluation and a measurement, unless its forecast is too long. These times are multiplied by how
often each is due.
"""

import math
import resource
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.measure import GIB
from skip_conditioning.diagnostics.monitoring.measurement import Measurement, scheduled
from skip_conditioning.diagnostics.monitoring.monitor import SpectrumMonitor
from skip_conditioning.diagnostics.monitoring.run_tables import longest_wait
from skip_conditioning.diagnostics.monitoring.schedule import as_schedule, log_spaced
from skip_conditioning.diagnostics.monitoring.time_budget import forecast
from skip_conditioning.diagnostics.tables import SKIPPED, SPECTRA
from skip_conditioning.experiments.config.train_config import TrainConfig, measurements, spectra_dtype
from skip_conditioning.experiments.processes.group import processes
from skip_conditioning.experiments.records.directory import check_out
from skip_conditioning.experiments.training.experiment import Experiment, clear_memory_errors
from skip_conditioning.experiments.training.runs import Cell
from skip_conditioning.experiments.training.timing import (
    checkpoint_bytes,
    read_rows,
    table_bytes,
    time_evaluation,
    time_steps,
    timed,
)
from skip_conditioning.experiments.training.trainer import Trainer

#: A measurement is made if its forecast is no longer than this, in seconds; otherwise the forecast stands.
_MEASURED_SECONDS = 5.0


@dataclass(frozen=True)
class Estimate:
    """What an experiment will take; seconds and bytes are those of all its runs together.

    Attributes:
        runs: Arms × learning rates × trials.
        steps: Optimiser steps of each run.
        step_seconds: Seconds of a step, averaged over the runs.
        timed: Steps timed of each arm (the fewest).
        start_seconds: Reading the data and trying every arm once, and the beginnings of all runs.
        training_seconds: Optimiser steps.
        evaluation_seconds: Evaluations on the test images.
        diagnostics_seconds: Measurements due, within ``max_overhead``.
        checkpoint_seconds: Writing checkpoints and table rows.
        forecast: Maps whose cost is the monitor's forecast because measuring them would take too long.
        peak_bytes: Most memory allocated on the GPU, or where there is none, used by this process.
        on_gpu: Which of these it is.
        checkpoint_bytes: Weights and optimiser states that are left at the end.
        checkpoint_bytes_peak: Most of them at any time: what is older of a run goes after the newer is whole.
        table_bytes: Parquet parts of all tables, without the spectra of the maps in ``forecast``.
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
        InputError: Whatever would keep the experiment from starting; or this is one of several processes.
    """
    config.check()
    if processes() > 1:
        raise InputError("--estimate times the steps of one process; give it without torchrun")
    check_out(config)
    with tempfile.TemporaryDirectory() as scratch:
        trial = config.changed(out=Path(scratch) / "out", log=(), resume=False, overwrite=False)
        experiment, start = timed(lambda: Experiment(trial), torch.device("cpu"))
        arms: dict[str, Estimate] = {}
        with clear_memory_errors():
            for cell in experiment.cells:
                if cell.arm not in arms:
                    arms[cell.arm] = _estimate_run(experiment, cell)
        found = [arms[cell.arm] for cell in experiment.cells]
    whole = {name: sum(getattr(one, name) for one in found) for name in _SUMMED}
    whole["start_seconds"] += start
    left = most = 0
    for one in found:
        most, left = max(most, left + one.checkpoint_bytes_peak), left + one.checkpoint_bytes
    return replace(
        found[-1],
        **whole,
        step_seconds=sum(one.step_seconds for one in found) / len(found),
        timed=min(one.timed for one in found),
        forecast=tuple(dict.fromkeys(name for one in found for name in one.forecast)),
        peak_bytes=max(one.peak_bytes for one in found),
        checkpoint_bytes_peak=most,
    )


def print_estimate(found: Estimate) -> None:
    """Print what an experiment will take, the largest contributions first, and how it was found."""
    total = 3600 * found.hours
    runs = f"{found.runs} runs of {found.steps} steps, one after another"
    print(f"{runs}: about {_time(total)} ({found.hours:.3g} hours)")
    for name, seconds in found.seconds.items():
        if seconds:
            print(f"  {name:<12}{_time(seconds):>10}{seconds / total:>6.0%}")
    print(f"memory: {_size(found.peak_bytes)} at most {'allocated on the GPU' if found.on_gpu else 'on the host'}")
    peak = _size(found.checkpoint_bytes_peak)
    print(f"disk: {_size(found.checkpoint_bytes)} of checkpoints at the end ({peak} at most before)")
    print(f"      {_size(found.table_bytes)} of tables")
    print(
        f"A step takes {found.step_seconds:.3g} s, by {found.timed} steps of each arm after the first ones. "
        "Starting, checkpoints, evaluation and diagnostics were timed too."
    )
    if found.forecast:
        print(f"Not timed but forecast, and not in the memory and the tables: measuring {', '.join(found.forecast)}.")


def _estimate_run(experiment: Experiment, cell: Cell) -> Estimate:
    """What a run will take."""
    device = experiment.device
    trainer, start = timed(lambda: experiment._trainer(cell), device)
    every_step = range(trainer.total_steps + 1)
    saves = [step for step in every_step if trainer.checkpoint_due(step)]
    evaluations = sum(map(trainer.evaluation_due, every_step))
    fetched = trainer.block.size
    seconds, count = time_steps(trainer)
    _, flush = timed(trainer.monitor.flush, device)
    metrics = read_rows(trainer.directory / "metrics")
    _, save = timed(lambda: trainer.save(trainer.total_steps), device)
    left, most = checkpoint_bytes(trainer.directory, saves, trainer.kept)
    training = len(every_step) * seconds
    evaluation = evaluations * time_evaluation(trainer) if evaluations else 0.0

    def parts(seconds: float) -> int:
        # The monitor writes what waits at every checkpoint, and in between after a step that ends late enough.
        step, passed, written = max(fetched * seconds / len(every_step), 1e-9), 0.0, len(saves)
        while (passed := passed + step * math.ceil(longest_wait(passed) / step)) < seconds:
            written += 1
        return written

    writing = len(saves) * save
    writing += parts(training + writing) * flush
    others = training + evaluation + writing
    places = [trainer.directory / str(i) for i in range(len(_items(experiment)))]
    measured = [_measure(experiment, trainer, *pair) for pair in zip(_items(experiment), places, strict=True)]
    wanted = sum(one.seconds * len(one.due) for one in measured)
    share = experiment.config.diagnostics.max_overhead
    made = 1.0 if share is None or not wanted else min(1.0, share * others / wanted)
    probed = math.ceil(made * len({step for one in measured for step in one.due}))
    written = parts(training + writing + made * wanted)
    tables = table_bytes(metrics, len(every_step) + evaluations + probed, written)
    for one in measured:
        times = math.ceil(made * len(one.due))
        skipped = len(one.due) - times
        tables += table_bytes(one.spectra, times * len(one.spectra), min(times, written))
        tables += table_bytes(one.skipped, skipped, min(skipped, written))
    return Estimate(
        runs=1,
        steps=trainer.total_steps,
        step_seconds=seconds,
        timed=count,
        start_seconds=start,
        training_seconds=training,
        evaluation_seconds=evaluation,
        diagnostics_seconds=made * wanted,
        checkpoint_seconds=writing,
        forecast=tuple(one.name for one in measured if one.forecast),
        peak_bytes=_peak(device),
        on_gpu=device.type == "cuda",
        checkpoint_bytes=left,
        checkpoint_bytes_peak=most,
        table_bytes=tables,
    )


def _items(experiment: Experiment) -> list[Measurement | None]:
    """What is measured while training; None for the bounds."""
    config = experiment.config
    return [*([None] if config.diagnostics.bounds else []), *measurements(config)]


@dataclass(frozen=True, eq=False)
class _Measured:
    """A measurement: its map, its seconds (or their forecast), the steps at which it is due, and its rows.

    Attributes:
        spectra: Rows of one; none of one that was not made.
        skipped: The row of one that cannot be afforded.
    """

    name: str
    seconds: float
    forecast: bool
    due: list[int]
    spectra: pa.Table
    skipped: pa.Table


def _measure(experiment: Experiment, trainer: Trainer, item: Measurement | None, place: Path) -> _Measured:
    """Make a measurement twice and time the second; or only forecast it, if that says that it would be too long."""
    model, probe, dtype = trainer.model, experiment.probe, spectra_dtype(experiment.config)
    named = scheduled(item or Measurement("bounds"), None, log_spaced())
    schedule = as_schedule(named.schedule)  # type: ignore[arg-type]
    due = [step for step in range(trainer.total_steps + 1) if schedule(step)]
    row = {"run_id": trainer.directory.name, "step": 0}
    seconds = 0.0
    if item is not None:
        seconds = forecast(model, probe[0], item, method="auto", tolerance=None, dtype=dtype, memory_budget=GIB)
    late = seconds > _MEASURED_SECONDS
    spectra = SPECTRA.empty_table()
    if not late:
        maps = () if item is None else (replace(item, schedule=1),)
        monitor = SpectrumMonitor(
            model, probe, place, maps=maps, schedule=1, max_overhead=None, dtype=dtype, bounds=item is None
        )
        monitor.step(0)
        _, seconds = timed(lambda: monitor.step(1), experiment.device)
        monitor.close()
        spectra = read_rows(place / "spectra").filter(pc.field("step") == 0)
    reason = f"would exceed max_overhead={experiment.config.diagnostics.max_overhead}"
    skipped = pa.Table.from_pylist([row | named.skipped(reason, seconds)], schema=SKIPPED)
    return _Measured(named.map, seconds, late, due, spectra, skipped)


def _peak(device: torch.device) -> int:
    """Most memory allocated on a GPU so far, or else used by this process (macOS counts bytes, Linux KiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
