"""What an experiment will take, before it starts: ``skip-conditioning train PRESET --out DIR --estimate``.

One run of each arm trains for a few steps in a temporary directory, with the trainer and monitor of the real runs. The
learning rate is 0 there, so that no run diverges; a step takes no less time for it. Timed once each: the beginning, a
checkpoint, the first batches of an evaluation, and each measurement, unless its forecast is too long. These times are
multiplied by how often each is due.
"""

import math
import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.run_tables import longest_wait
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.processes.group import processes
from skip_conditioning.experiments.records.directory import check_out
from skip_conditioning.experiments.training.measurement_costs import MeasurementCost, measurement_costs
from skip_conditioning.experiments.training.runner import Runner, clear_memory_errors
from skip_conditioning.experiments.training.runs import Run
from skip_conditioning.experiments.training.timing import (
    checkpoint_bytes,
    read_rows,
    table_bytes,
    time_evaluation,
    time_steps,
    timed,
)


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

    Args:
        config: The options.

    Returns:
        What all runs of the experiment will take.

    Raises:
        InputError: Whatever would keep the experiment from starting; or this is one of several processes.
    """
    config.check()
    if processes() > 1:
        raise InputError("--estimate times the steps of one process; give it without torchrun")
    check_out(config)
    with tempfile.TemporaryDirectory() as scratch:
        elsewhere = config.changed(out=Path(scratch) / "out", log=(), resume=False, overwrite=False)
        runner, start = timed(lambda: Runner(elsewhere), torch.device("cpu"))
        arms: dict[str, Estimate] = {}
        with clear_memory_errors():
            for run in runner.runs:
                if run.arm not in arms:
                    arms[run.arm] = _estimate_run(runner, run)
        return _sum([arms[run.arm] for run in runner.runs], start)


def in_words(estimate: Estimate) -> str:
    """What an experiment will take, the largest contributions first, and how it was estimated."""
    total = 3600 * estimate.hours
    runs = f"{estimate.runs} runs of {estimate.steps} steps, one after another"
    lines = [f"{runs}: about {_time(total)} ({estimate.hours:.3g} hours)"]
    lines += [
        f"  {name:<12}{_time(seconds):>10}{seconds / total:>6.0%}"
        for name, seconds in estimate.seconds.items()
        if seconds
    ]
    where = "allocated on the GPU" if estimate.on_gpu else "on the host"
    peak = _size(estimate.checkpoint_bytes_peak)
    lines += [
        f"memory: {_size(estimate.peak_bytes)} at most {where}",
        f"disk: {_size(estimate.checkpoint_bytes)} of checkpoints at the end ({peak} at most before)",
        f"      {_size(estimate.table_bytes)} of tables",
        f"A step takes {estimate.step_seconds:.3g} s, by {estimate.timed} steps of each arm after the first ones. "
        "Starting, checkpoints, evaluation and diagnostics were timed too.",
    ]
    if estimate.forecast:
        lines.append(
            f"Not timed but forecast, and not in the memory and the tables: measuring {', '.join(estimate.forecast)}."
        )
    return "\n".join(lines)


def _sum(runs: Sequence[Estimate], start: float) -> Estimate:
    """What several runs will take, one after another, and the seconds until the first starts."""
    whole = {name: sum(getattr(run, name) for run in runs) for name in _SUMMED}
    whole["start_seconds"] += start
    left = most = 0
    for run in runs:
        most, left = max(most, left + run.checkpoint_bytes_peak), left + run.checkpoint_bytes
    return replace(
        runs[-1],
        **whole,
        step_seconds=sum(run.step_seconds for run in runs) / len(runs),
        timed=min(run.timed for run in runs),
        forecast=tuple(dict.fromkeys(name for run in runs for name in run.forecast)),
        peak_bytes=max(run.peak_bytes for run in runs),
        checkpoint_bytes_peak=most,
    )


def _estimate_run(runner: Runner, run: Run) -> Estimate:
    """What a run will take."""
    device = runner.device
    trainer, start = timed(lambda: runner.factory.trainer(run, runner.directory.of(run)), device)
    every_step = range(trainer.total_steps + 1)
    saves = [step for step in every_step if trainer.checkpoint_due(step)]
    evaluations = sum(map(trainer.evaluation_due, every_step))
    block = trainer.block.size
    step_seconds, timed_steps = time_steps(trainer)
    _, flush_seconds = timed(trainer.monitor.flush, device)
    metrics = read_rows(trainer.directory / "metrics")
    _, save_seconds = timed(lambda: trainer.save(trainer.total_steps), device)
    bytes_left, bytes_peak = checkpoint_bytes(trainer.directory, saves, trainer.kept)
    training = len(every_step) * step_seconds
    evaluation = evaluations * time_evaluation(trainer) if evaluations else 0.0

    def parts(seconds: float) -> int:
        return len(saves) + _parts_between(seconds, block * seconds / len(every_step))

    writing = len(saves) * save_seconds
    writing += parts(training + writing) * flush_seconds
    costs = measurement_costs(runner, trainer)
    diagnostics = sum(cost.seconds * len(cost.due) for cost in costs)
    largest_share = runner.config.diagnostics.max_overhead
    made = 1.0
    if largest_share is not None and diagnostics:
        made = min(1.0, largest_share * (training + evaluation + writing) / diagnostics)
    written = parts(training + writing + made * diagnostics)
    probed = math.ceil(made * len({step for cost in costs for step in cost.due}))
    return Estimate(
        runs=1,
        steps=trainer.total_steps,
        step_seconds=step_seconds,
        timed=timed_steps,
        start_seconds=start,
        training_seconds=training,
        evaluation_seconds=evaluation,
        diagnostics_seconds=made * diagnostics,
        checkpoint_seconds=writing,
        forecast=tuple(cost.map for cost in costs if cost.is_forecast),
        peak_bytes=_peak(device),
        on_gpu=device.type == "cuda",
        checkpoint_bytes=bytes_left,
        checkpoint_bytes_peak=bytes_peak,
        table_bytes=_table_bytes(metrics, len(every_step) + evaluations + probed, costs, made, written),
    )


def _parts_between(seconds: float, block: float) -> int:
    """Parts that the monitor writes between checkpoints: after a block of steps that ends late enough.

    Args:
        seconds: Of the whole run.
        block: Seconds of steps whose numbers are fetched at once.
    """
    block, passed, written = max(block, 1e-9), 0.0, 0
    while (passed := passed + block * math.ceil(longest_wait(passed) / block)) < seconds:
        written += 1
    return written


def _table_bytes(metrics: pa.Table, rows: int, costs: Sequence[MeasurementCost], made: float, parts: int) -> int:
    """Bytes of all tables of a run.

    Args:
        metrics: Some rows of the table of metrics.
        rows: Rows that it will have.
        costs: What is measured.
        made: Share of the measurements due that ``max_overhead`` allows.
        parts: Parts that each table is written in, if each has a row.
    """
    size = table_bytes(metrics, rows, parts)
    for cost in costs:
        times = math.ceil(made * len(cost.due))
        skipped = len(cost.due) - times
        size += table_bytes(cost.spectra, times * len(cost.spectra), min(times, parts))
        size += table_bytes(cost.skipped, skipped, min(skipped, parts))
    return size


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
