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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.run_tables import longest_wait
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.processes.group import processes
from skip_conditioning.experiments.processes.machine import clear_memory_errors
from skip_conditioning.experiments.records.checkpoints import checkpoint_path, last_whole_step, training_state_path
from skip_conditioning.experiments.records.directory import check_out
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.experiments.training.runs import Run
from skip_conditioning.experiments.training.timing import (
    MeasurementCost,
    measurement_costs,
    read_rows,
    time_evaluation,
    time_steps,
    timed,
)


@dataclass(frozen=True)
class Requirements:
    """What an experiment will take; seconds and bytes are those of all its runs together.

    Attributes:
        runs: Arms × learning rates × trials.
        steps: Optimiser steps of each run.
        step_seconds: Seconds of a step, averaged over the runs.
        timed: Steps timed of each arm (the fewest).
        seconds: By part, runs one after another: ``training`` (optimiser steps), ``diagnostics`` (measurements due,
            within ``max_overhead``), ``evaluation`` (on the test images), ``checkpoints`` (writing them and table
            rows), ``starting`` (reading the data, trying every arm once, and the beginnings of all runs).
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
    seconds: dict[str, float]
    forecast: tuple[str, ...]
    peak_bytes: int
    on_gpu: bool
    checkpoint_bytes: int
    checkpoint_bytes_peak: int
    table_bytes: int


def estimate(config: TrainConfig) -> Requirements:
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
        arms: dict[str, Requirements] = {}
        with clear_memory_errors():
            for run in runner.runs:
                if run.arm not in arms:
                    arms[run.arm] = _estimate_run(runner, run)
        return _sum([arms[run.arm] for run in runner.runs], start)


def in_words(needs: Requirements) -> str:
    """What an experiment will take, the largest contributions first, and how it was estimated."""
    total = sum(needs.seconds.values())
    runs = f"{needs.runs} runs of {needs.steps} steps, one after another"
    lines = [f"{runs}: about {_time(total)} ({total / 3600:.3g} hours)"]
    lines += [
        f"  {name:<12}{_time(seconds):>10}{seconds / total:>6.0%}"
        for name, seconds in sorted(needs.seconds.items(), key=lambda part: -part[1])
        if seconds
    ]
    where = "allocated on the GPU" if needs.on_gpu else "on the host"
    peak = _size(needs.checkpoint_bytes_peak)
    lines += [
        f"memory: {_size(needs.peak_bytes)} at most {where}",
        f"disk: {_size(needs.checkpoint_bytes)} of checkpoints at the end ({peak} at most before)",
        f"      {_size(needs.table_bytes)} of tables",
        f"A step takes {needs.step_seconds:.3g} s, by {needs.timed} steps of each arm after the first ones. "
        "Starting, checkpoints, evaluation and diagnostics were timed too.",
    ]
    if needs.forecast:
        lines.append(
            f"Not timed but forecast, and not in the memory and the tables: measuring {', '.join(needs.forecast)}."
        )
    return "\n".join(lines)


def _sum(runs: Sequence[Requirements], start: float) -> Requirements:
    """What several runs will take, one after another, and the seconds until the first starts."""
    seconds = {part: sum(run.seconds[part] for run in runs) for part in runs[0].seconds}
    left = most = 0
    for run in runs:
        most, left = max(most, left + run.checkpoint_bytes_peak), left + run.checkpoint_bytes
    return replace(
        runs[-1],
        runs=len(runs),
        step_seconds=sum(run.step_seconds for run in runs) / len(runs),
        timed=min(run.timed for run in runs),
        seconds=seconds | {"starting": seconds["starting"] + start},
        forecast=tuple(dict.fromkeys(name for run in runs for name in run.forecast)),
        peak_bytes=max(run.peak_bytes for run in runs),
        checkpoint_bytes=left,
        checkpoint_bytes_peak=most,
        table_bytes=sum(run.table_bytes for run in runs),
    )


def _estimate_run(runner: Runner, run: Run) -> Requirements:
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
    bytes_left, bytes_peak = _checkpoint_bytes(trainer.directory, saves, trainer.kept)
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
    return Requirements(
        runs=1,
        steps=trainer.total_steps,
        step_seconds=step_seconds,
        timed=timed_steps,
        seconds={
            "training": training,
            "diagnostics": made * diagnostics,
            "evaluation": evaluation,
            "checkpoints": writing,
            "starting": start,
        },
        forecast=tuple(cost.map for cost in costs if cost.is_forecast),
        peak_bytes=_peak(device),
        on_gpu=device.type == "cuda",
        checkpoint_bytes=bytes_left,
        checkpoint_bytes_peak=bytes_peak,
        table_bytes=_tables_bytes(metrics, len(every_step) + evaluations + probed, costs, made, written),
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


def _tables_bytes(metrics: pa.Table, rows: int, costs: Sequence[MeasurementCost], made: float, parts: int) -> int:
    """Bytes of all tables of a run.

    Args:
        metrics: Some rows of the table of metrics.
        rows: Rows that it will have.
        costs: What is measured.
        made: Share of the measurements due that ``max_overhead`` allows.
        parts: Parts that each table is written in, if each has a row.
    """
    size = _table_bytes(metrics, rows, parts)
    for cost in costs:
        times = math.ceil(made * len(cost.due))
        skipped = len(cost.due) - times
        size += _table_bytes(cost.spectra, times * len(cost.spectra), min(times, parts))
        size += _table_bytes(cost.skipped, skipped, min(skipped, parts))
    return size


def _table_bytes(table: pa.Table, rows: int, parts: int) -> int:
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


def _checkpoint_bytes(run: Path, saves: Iterable[int], kept: Callable[[int], bool]) -> tuple[int, int]:
    """Bytes of a run's weights and training states: of those left at the end, and the most at any time.

    Args:
        run: Directory of a run that was saved as if at its last step.
        saves: Steps at which the run will save, in order.
        kept: Whether the weights of a step stay when later ones have been saved.
    """
    step = last_whole_step(run)
    weights, state = (path(run, step).stat().st_size for path in (checkpoint_path, training_state_path))
    staying = passing = most = 0
    for at in saves:
        # What is older goes when the newer is whole.
        most = max(most, staying + passing + weights + state * (2 if staying + passing else 1))
        staying, passing = (staying + weights, 0) if kept(at) else (staying, weights)
    return staying + passing + state, most


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
