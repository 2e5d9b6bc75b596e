"""The jobs of a sweep: runs handed to a Slurm cluster by submitit, so many at a time, and a live table of them.

The table is redrawn in place on a terminal; elsewhere each change is a line.
"""

import importlib
import math
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.records.directory import clear_status, read_status
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.experiments.training.runs import Run

#: Seconds between two checks of the jobs.
_CHECK_EVERY = 2.0
#: How a run may stand, in the order in which a table too long for the terminal prefers them.
STATUSES = ("failed", "running", "diverged", "finished", "queued")


@dataclass(frozen=True)
class JobOptions:
    """How the runs of a sweep are handed to the cluster."""

    jobs: int | None = None
    """Jobs at a time; None for all."""

    retry: bool = False
    """Go on as with --resume, and train runs that failed again too."""

    partition: str | None = None
    """Partition of the cluster; None for its default."""

    hours: float = 24.0
    """Time limit of a job on the cluster; a run that reaches it has failed, and goes on by --retry."""

    def check(self) -> None:
        """Raise ``InputError`` for options that are out of range."""
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"--jobs must be at least 1; it is {self.jobs}")
        if not 0 < self.hours < math.inf:
            raise InputError(f"--hours must be a positive number; it is {self.hours:g}")


def check_cluster() -> None:
    """Raise ``InputError`` if submitit is missing, or the cluster."""
    try:
        importlib.import_module("submitit")
    except ImportError as error:
        raise InputError("a sweep needs submitit; install it by pip install skip-conditioning[sweep]") from error
    if shutil.which("srun") is None:
        raise InputError(
            "a sweep needs Slurm, whose srun is not found; run it on the cluster, or skip-conditioning train here, "
            "with --processes for several runs at once"
        )


@dataclass(frozen=True)
class RunState:
    """How a run stands.

    Attributes:
        run_id: Its name.
        status: One of ``STATUSES``.
        step: The latest step recorded while it runs.
        seconds: How long it has run, or took.
        reason: Why it failed.
    """

    run_id: str
    status: str
    step: int | None = None
    seconds: float | None = None
    reason: str = ""


class LiveTable:
    """Shows how runs stand.

    Args:
        stream: Where the table is written.
        total_steps: Steps of every run.
    """

    def __init__(self, stream: TextIO, total_steps: int) -> None:
        self.stream, self.total_steps = stream, total_steps
        self._drawn = 0
        self._before: dict[str, str] | None = None

    def show(self, states: Sequence[RunState]) -> None:
        """Redraw the table, or print what has changed since the last time."""
        if self.stream.isatty():
            self._redraw(states)
        else:
            self._print_changes(states)
        self.stream.flush()

    def _redraw(self, states: Sequence[RunState]) -> None:
        columns, height = shutil.get_terminal_size()
        lines = [count_line(states), *self._rows(states, height - 3)]
        # Up to the first line of the last table, then clear from there to the end of the screen.
        back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self.stream.write(back + "".join(f"{line[: columns - 1]}\n" for line in lines))
        self._drawn = len(lines)

    def _rows(self, states: Sequence[RunState], most: int) -> list[str]:
        shown = list(states)
        if len(shown) > most:
            preferred = sorted(shown, key=lambda state: STATUSES.index(state.status))[: max(most, 0)]
            shown = [state for state in shown if state in preferred]
        more = len(states) - len(shown)
        width = max((len(state.run_id) for state in shown), default=0)
        return [self._row(state, width) for state in shown] + ([f"… and {more} more"] if more else [])

    def _print_changes(self, states: Sequence[RunState]) -> None:
        if self._before is None:
            self.stream.write(f"{count_line(states)}\n")
        else:
            changed = (state for state in states if self._before[state.run_id] != state.status)
            self.stream.writelines(f"{self._row(state, 0)}\n" for state in changed)
        self._before = {state.run_id: state.status for state in states}

    def _row(self, state: RunState, width: int) -> str:
        step = "" if state.step is None else f"step {state.step}/{self.total_steps}"
        seconds = "" if state.seconds is None else f"{state.seconds:.1f} s"
        parts = [state.run_id.ljust(width), state.status.ljust(8 if width else 0), step, seconds, state.reason]
        return "  ".join(part for part in parts if part)


def count_line(states: Sequence[RunState]) -> str:
    """How many runs stand how, such as ``4 runs: 1 running, 3 queued``."""
    counts = Counter(state.status for state in states)
    listed = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    return f"{len(states)} runs: {listed}"


class JobQueue:
    """Trains runs as jobs, so many at a time; one that fails does not stop the others.

    Args:
        runner: Of the experiment, whose directory it holds.
        options: How to hand the runs to the cluster.
    """

    def __init__(self, runner: Runner, options: JobOptions) -> None:
        self.runner, self.options = runner, options
        self.limit = options.jobs or len(runner.runs)
        self.states = {run.run_id: self._state_before(run) for run in runner.runs}
        self.waiting = [run for run in runner.runs if self.states[run.run_id].status == "queued"]
        self.jobs: dict[Run, _Job] = {}

    def run(self, table: LiveTable) -> list[RunState]:
        """Train all runs to their ends, showing how they stand; return how they stand then.

        Raises:
            InputError: A job cannot be submitted; those that were are cancelled, as they are by Ctrl-C.
        """
        table.show(list(self.states.values()))
        try:
            while self.waiting or self.jobs:
                while self.waiting and len(self.jobs) < self.limit:
                    self._submit(self.waiting.pop(0))
                time.sleep(_CHECK_EVERY)
                for run in list(self.jobs):
                    self._update(run)
                table.show(list(self.states.values()))
        except BaseException:
            for job in self.jobs.values():
                job.submitted.cancel(check=False)
            raise
        return list(self.states.values())

    def _state_before(self, run: Run) -> RunState:
        """How a run stands before the sweep: what is over stays, and what failed waits for ``--retry``."""
        status = read_status(self.runner.directory.of(run))
        left = ("finished", "diverged") if self.options.retry else ("finished", "diverged", "failed")
        return _state(run, status) if status.get("status") in left else RunState(run.run_id, "queued")

    def _submit(self, run: Run) -> None:
        config = self.runner.config.changed(
            arms=(run.arm,),
            lr=(run.lr,),
            arm_lr=(),
            trials=run.trial + 1,
            resume=True,
            overwrite=False,
        )
        # From now on its status is written by this job.
        clear_status(self.runner.directory.of(run))
        folder = config.output.out / "jobs" / run.run_id  # for logs and submitit's own files
        try:
            executor = _slurm_executor(self.options, folder, gpus=0 if config.optimisation.device == "cpu" else 1)
            job = executor.submit(_train_run, config, run.run_id)
        except (RuntimeError, OSError) as error:  # what submitit raises for a submission refused is a RuntimeError
            raise InputError(f"the job of {run.run_id} cannot be submitted: {error}") from error
        self.jobs[run] = _Job(job)

    def _update(self, run: Run) -> None:
        """Record how a run that has a job stands now."""
        job, status = self.jobs[run], read_status(self.runner.directory.of(run))
        if job.submitted.done():
            self.states[run.run_id] = self._ended(run, job)
            del self.jobs[run]
        elif status.get("status") == "running":
            job.began = job.began or time.monotonic()
            self.states[run.run_id] = _state(run, {**status, "seconds": time.monotonic() - job.began})

    def _ended(self, run: Run, job: "_Job") -> RunState:
        directory = self.runner.directory.of(run)
        job.submitted.exception()  # waits until the files that the job wrote are seen here too
        if read_status(directory).get("status") not in ("finished", "diverged"):
            try:
                self.runner.record_failure(run, _last_words(job.submitted))
            except InputError as error:
                return RunState(run.run_id, "failed", reason=str(error))
        return _state(run, read_status(directory))


@dataclass
class _Job:
    """A job of submitit's, and when it was first known to run."""

    submitted: Any
    began: float | None = None


def _slurm_executor(options: JobOptions, folder: Path, gpus: int) -> Any:
    """A submitter of jobs with this many GPUs each, whose files go to a folder."""
    executor = importlib.import_module("submitit").SlurmExecutor(folder=folder)
    executor.update_parameters(
        time=math.ceil(60 * options.hours),
        gpus_per_node=gpus,
        **({"partition": options.partition} if options.partition else {}),
    )
    return executor


def _train_run(config: TrainConfig, run_id: str) -> None:
    """What a job does, in a process of its own, on one thread."""
    torch.set_num_threads(1)
    Runner(config, is_child=True).run_one(run_id)


def _state(run: Run, status: dict[str, Any]) -> RunState:
    known = {name: status[name] for name in ("status", "step", "seconds", "reason") if name in status}
    return RunState(run.run_id, **known)


def _last_words(job: Any) -> str:
    """Why a job has failed, in one line: the last line of its log, if there is one."""
    if job.paths.result_pickle.exists():
        return str(job.stderr() or "its log is empty").strip().rpartition("\n")[2]
    return f"its process ended without a result; it was killed or could not start ({job.state.lower()})"
