"""The jobs of a sweep: cells handed to submitit, so many at a time, and how they stand."""

import contextlib
import importlib
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from diagnostics.errors import InputError
from experiments.config import TrainConfig
from experiments.experiment import Cell, Experiment
from experiments.locks import check_unlocked
from experiments.outputs import clear_status, read_status
from experiments.sweep_table import CellState, LiveTable

#: Seconds between two looks at the jobs.
_LOOK_EVERY = {"local": 0.2, "slurm": 2.0}
#: Seconds that cancelled jobs of this machine may take to end.
_PATIENCE = 15.0
#: Minutes that submitit lets a job of this machine run: for ever.
_NO_LIMIT = 60 * 24 * 365


@dataclass(frozen=True)
class JobOptions:
    """How the cells of a sweep are run."""

    executor: Literal["local", "slurm"] = "local"
    """local for processes on this machine, slurm for jobs of a cluster."""

    jobs: int | None = None
    """Jobs at a time; None for one on each core or, if it has any, GPU of this machine, and on a cluster for all."""

    retry: bool = False
    """Go on as with --resume, and also take up cells again that failed."""

    partition: str | None = None
    """Partition of the cluster; None for its default."""

    hours: float = 24.0
    """Time limit of a job on the cluster; a cell that reaches it has failed and can go on by --retry."""

    def check(self) -> None:
        """Raise ``InputError`` for options that make no sense."""
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"--jobs must be at least 1; it is {self.jobs}")
        if not 0 < self.hours < math.inf:
            raise InputError(f"--hours must be a positive number; it is {self.hours:g}")
        if self.executor == "local" and self.partition is not None:
            raise InputError(f"--partition {self.partition} is for a cluster; give --executor slurm")


def check_executor(name: str) -> None:
    """Raise ``InputError`` if submitit is missing, or the cluster."""
    try:
        submitit = importlib.import_module("submitit")
    except ImportError as error:
        raise InputError("a sweep needs submitit; install it by pip install skip-conditioning[sweep]") from error
    if name == "slurm" and submitit.SlurmExecutor.affinity() < 0:
        raise InputError("--executor slurm needs srun, which is not found; run this on the cluster, or locally")


class JobQueue:
    """Runs cells as jobs, so many at a time; one that fails does not stop the others.

    Args:
        experiment: Within its ``prepared()``.
        options: How to run them.
    """

    def __init__(self, experiment: Experiment, options: JobOptions) -> None:
        self.experiment, self.options = experiment, options
        self.cells = list(experiment.cells)
        self.gpus = torch.cuda.device_count() if experiment.device.type == "cuda" else 0
        here = self.gpus or len(os.sched_getaffinity(0))
        self.limit = options.jobs or (here if options.executor == "local" else len(self.cells))
        self.states = {cell.run_id: self._found(cell) for cell in self.cells}
        self.waiting = [cell for cell in self.cells if self.states[cell.run_id].status == "queued"]
        self.jobs: dict[Cell, _Job] = {}

    def run(self, table: LiveTable) -> list[CellState]:
        """Run all cells to their ends, showing how they stand; return how they stand then.

        Raises:
            InputError: A job cannot be submitted; those that were are cancelled, as they are by Ctrl-C.
        """
        table.show(list(self.states.values()))
        try:
            while self.waiting or self.jobs:
                while self.waiting and len(self.jobs) < self.limit:
                    self._submit(self.waiting.pop(0))
                time.sleep(_LOOK_EVERY[self.options.executor])
                for cell in list(self.jobs):
                    self._look_at(cell)
                table.show(list(self.states.values()))
        except BaseException:
            self._cancel()
            raise
        return list(self.states.values())

    def _found(self, cell: Cell) -> CellState:
        """How a cell stands before the sweep: what is over stays, and what failed waits for ``--retry``."""
        status = read_status(self.experiment.directory(cell))
        left = ("finished", "diverged") if self.options.retry else ("finished", "diverged", "failed")
        return _state(cell, status) if status.get("status") in left else CellState(cell.run_id, "queued")

    def _submit(self, cell: Cell) -> None:
        directory, folder, device = self.experiment.directory(cell), self._folder(cell), self._device()
        config = replace(
            self.experiment.config,
            arms=(cell.arm,),
            lr=(cell.lr,),
            trials=cell.trial + 1,
            device=device,
            resume=True,
            overwrite=False,
        )
        # What it tells from now on is this job's.
        clear_status(directory)
        visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES") if self.options.executor == "local" else None
        try:
            with _stderr_to(folder / "submitit.err"):
                job = self._executor(folder).submit(_train_cell, config, cell.run_id, visible_gpus)
        except (RuntimeError, OSError) as error:  # what submitit raises for a submission refused is a RuntimeError
            raise InputError(f"the job of {cell.run_id} cannot be submitted: {error}") from error
        self.jobs[cell] = _Job(job, device)

    def _folder(self, cell: Cell) -> Path:
        """Where submitit keeps a cell's logs and its own files."""
        return self.experiment.config.out / "jobs" / cell.run_id

    def _executor(self, folder: Path) -> Any:
        submitit = importlib.import_module("submitit")
        executor = submitit.AutoExecutor(folder=folder, cluster=self.options.executor)
        if self.options.executor == "local":
            executor.update_parameters(timeout_min=_NO_LIMIT)
        else:
            executor.update_parameters(
                timeout_min=math.ceil(60 * self.options.hours),
                gpus_per_node=0 if self.experiment.config.device == "cpu" else 1,
                **({"slurm_partition": self.options.partition} if self.options.partition else {}),
            )
        return executor

    def _device(self) -> str:
        """The device for the next job: of this machine's GPUs the one that fewest jobs use."""
        name = self.experiment.config.device
        if self.options.executor == "slurm" or not self.gpus or name not in ("auto", "cuda"):
            return name
        used = [job.device for job in self.jobs.values()]
        return min((f"cuda:{index}" for index in range(self.gpus)), key=used.count)

    def _look_at(self, cell: Cell) -> None:
        """See how a cell that has a job stands now."""
        job, status = self.jobs[cell], read_status(self.experiment.directory(cell))
        if job.submitted.done():
            self.states[cell.run_id] = self._ended(cell, job)
            del self.jobs[cell]
        elif status.get("status") == "running":
            job.began = job.began or time.monotonic()
            self.states[cell.run_id] = _state(cell, {**status, "seconds": time.monotonic() - job.began})

    def _ended(self, cell: Cell, job: "_Job") -> CellState:
        directory = self.experiment.directory(cell)
        if self.options.executor == "slurm":
            job.submitted.exception()  # waits until the files that the job wrote are seen here too
        if read_status(directory).get("status") not in ("finished", "diverged"):
            try:
                self.experiment.record_failure(cell, _last_words(job.submitted))
            except InputError as error:
                return CellState(cell.run_id, "failed", reason=str(error))
        return _state(cell, read_status(directory))

    def _cancel(self) -> None:
        """End all jobs, and wait for those of this machine to be gone."""
        for job in self.jobs.values():
            job.submitted.cancel(check=False)
        deadline = time.monotonic() + (_PATIENCE if self.options.executor == "local" else 0)
        while time.monotonic() < deadline and not self._all_gone():
            time.sleep(0.05)

    def _all_gone(self) -> bool:
        try:
            check_unlocked(self.experiment.directory(cell) for cell in self.jobs)
        except InputError:
            return False
        return all(job.submitted.done() for job in self.jobs.values())


@dataclass
class _Job:
    """A job of submitit's, the device it was given, and when it was first seen to run."""

    submitted: Any
    device: str
    began: float | None = None


def _train_cell(config: TrainConfig, run_id: str, visible_gpus: str | None) -> None:
    """What a job does, in a process of its own, on one thread."""
    torch.set_num_threads(1)
    if os.environ["SUBMITIT_EXECUTOR"] == "local":
        # submitit hides all GPUs from the jobs of this machine.
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        os.environ.update({} if visible_gpus is None else {"CUDA_VISIBLE_DEVICES": visible_gpus})
    Experiment(config, prepared=True).run_cell(run_id)


def _state(cell: Cell, status: dict[str, Any]) -> CellState:
    known = {name: status[name] for name in ("status", "step", "seconds", "reason") if name in status}
    return CellState(cell.run_id, **known)


def _last_words(job: Any) -> str:
    """Why a job has failed, as far as it said, in one line."""
    if job.paths.result_pickle.exists():
        return str(job.stderr() or "its log is empty").strip().rpartition("\n")[2]
    return f"its process ended without a result; it was killed or could not start ({job.state.lower()})"


@contextlib.contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Let processes started inside have a file as their stderr, where Ctrl-C would print a traceback of each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
