"""The jobs of a sweep: cells handed to a Slurm cluster by submitit, so many at a time, and how they stand."""

import importlib
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.records.directory import clear_status, read_status
from skip_conditioning.experiments.sweeps.live_table import CellState, LiveTable
from skip_conditioning.experiments.training.experiment import Cell, Experiment

#: Seconds between two looks at the jobs.
_LOOK_EVERY = 2.0


@dataclass(frozen=True)
class JobOptions:
    """How the cells of a sweep are run."""

    jobs: int | None = None
    """Jobs at a time; None for all."""

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


def check_cluster() -> None:
    """Raise ``InputError`` if submitit is missing, or the cluster."""
    try:
        importlib.import_module("submitit")
    except ImportError as error:
        raise InputError("a sweep needs submitit; install it by pip install skip-conditioning[sweep]") from error
    if shutil.which("srun") is None:
        raise InputError(
            "a sweep needs Slurm, whose srun is not found; run it on the cluster, or experiments.train here, with "
            "--processes for several runs at once"
        )


class JobQueue:
    """Runs cells as jobs, so many at a time; one that fails does not stop the others.

    Args:
        experiment: Within its ``prepared()``.
        options: How to run them.
    """

    def __init__(self, experiment: Experiment, options: JobOptions) -> None:
        self.experiment, self.options = experiment, options
        self.cells = list(experiment.cells)
        self.limit = options.jobs or len(self.cells)
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
                time.sleep(_LOOK_EVERY)
                for cell in list(self.jobs):
                    self._look_at(cell)
                table.show(list(self.states.values()))
        except BaseException:
            for job in self.jobs.values():
                job.submitted.cancel(check=False)
            raise
        return list(self.states.values())

    def _found(self, cell: Cell) -> CellState:
        """How a cell stands before the sweep: what is over stays, and what failed waits for ``--retry``."""
        status = read_status(self.experiment.directory(cell))
        left = ("finished", "diverged") if self.options.retry else ("finished", "diverged", "failed")
        return _state(cell, status) if status.get("status") in left else CellState(cell.run_id, "queued")

    def _submit(self, cell: Cell) -> None:
        config = self.experiment.config.changed(
            arms=(cell.arm,),
            lr=(cell.lr,),
            trials=cell.trial + 1,
            resume=True,
            overwrite=False,
        )
        # What it tells from now on is this job's.
        clear_status(self.experiment.directory(cell))
        folder = config.output.out / "jobs" / cell.run_id  # for logs and submitit's own files
        try:
            executor = _slurm_executor(self.options, folder, gpus=0 if config.optimisation.device == "cpu" else 1)
            job = executor.submit(_train_cell, config, cell.run_id)
        except (RuntimeError, OSError) as error:  # what submitit raises for a submission refused is a RuntimeError
            raise InputError(f"the job of {cell.run_id} cannot be submitted: {error}") from error
        self.jobs[cell] = _Job(job)

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
        job.submitted.exception()  # waits until the files that the job wrote are seen here too
        if read_status(directory).get("status") not in ("finished", "diverged"):
            try:
                self.experiment.record_failure(cell, _last_words(job.submitted))
            except InputError as error:
                return CellState(cell.run_id, "failed", reason=str(error))
        return _state(cell, read_status(directory))


@dataclass
class _Job:
    """A job of submitit's, and when it was first seen to run."""

    submitted: Any
    began: float | None = None


def _slurm_executor(options: JobOptions, folder: Path, gpus: int) -> Any:
    """What submits a job of so many GPUs whose files go to a folder."""
    executor = importlib.import_module("submitit").SlurmExecutor(folder=folder)
    executor.update_parameters(
        time=math.ceil(60 * options.hours),
        gpus_per_node=gpus,
        **({"partition": options.partition} if options.partition else {}),
    )
    return executor


def _train_cell(config: TrainConfig, run_id: str) -> None:
    """What a job does, in a process of its own, on one thread."""
    torch.set_num_threads(1)
    Experiment(config, prepared=True).run_cell(run_id)


def _state(cell: Cell, status: dict[str, Any]) -> CellState:
    known = {name: status[name] for name in ("status", "step", "seconds", "reason") if name in status}
    return CellState(cell.run_id, **known)


def _last_words(job: Any) -> str:
    """Why a job has failed, as far as it said, in one line."""
    if job.paths.result_pickle.exists():
        return str(job.stderr() or "its log is empty").strip().rpartition("\n")[2]
    return f"its process ended without a result; it was killed or could not start ({job.state.lower()})"
