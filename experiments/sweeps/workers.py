"""Runs of an experiment trained at once on a CPU, by processes of one thread that take one run after another.

For small networks, which gain nothing from more threads. The processes are spawned and import nothing of the program
that starts them, so that a script which calls ``run_in_processes`` needs no ``if __name__ == "__main__"``.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from tqdm import tqdm

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.presets import PRESETS
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.processes.machine import one_thread, usable_cores
from skip_conditioning.experiments.speed import write_speed
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.experiments.training.runs import Run

#: Fewer runs may be over before other processes have imported torch.
_FEWEST_RUNS = 4
#: Processes by default, where there are more cores: each takes some 400 MB.
_MOST = 16
#: Seconds that processes have to end by themselves.
_PATIENCE = 3.0


def run_in_processes(runner: Runner, processes: int | None = None) -> None:
    """Train every run that is not over yet, several at once on a CPU, then write the speed table.

    Tables and weights are those of ``runner.run_all()`` on one thread, to the bit. This process trains alone on a GPU;
    for a few runs, unless a number of processes is given; and for measurements that are not the preset's, as their
    schedules cannot be sent to other processes.

    Args:
        runner: Of the experiment, whose directory is not held yet.
        processes: How many; None for one a core, 16 at most.

    Raises:
        InputError: As ``runner.run_all()`` does; or a run failed, or a process was killed. Runs that are over are kept.
        KeyboardInterrupt: Interrupted meanwhile; all processes have ended.
    """
    if runner.device.type != "cpu":
        runner.run_all()
        return
    with one_thread():
        unfinished = runner.runs if runner.config.output.overwrite else runner.directory.unfinished(runner.runs)
        few = processes is None and len(unfinished) < _FEWEST_RUNS
        count = min(default_processes() if processes is None else processes, len(unfinished))
        if count < 2 or few or not _can_be_sent(runner.config):
            runner.run_all()
            return
        with runner.held():
            unfinished = runner.directory.unfinished(runner.runs)
            total = len(runner.runs)
            with (
                tqdm(total=total, initial=total - len(unfinished), unit="run", dynamic_ncols=True) as bar,
                _workers(runner.config, count) as workers,
            ):
                _train(runner, unfinished, workers, bar)
            write_speed(runner.config.output.out)


def default_processes() -> int:
    """One process a core, 16 at most."""
    return min(usable_cores(), _MOST)


def _can_be_sent(config: TrainConfig) -> bool:
    """Whether other processes can be sent the options: they take the measurements from the preset."""
    preset = PRESETS.get(config.output.experiment)
    return preset is not None and preset[1].diagnostics.measurements == config.diagnostics.measurements


class _Worker:
    """A process that trains runs."""

    def __init__(self, config: TrainConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(config, theirs))
        with theirs, _without_main():
            self.process.start()

    def begin(self, run: Run) -> None:
        """Let it train a run."""
        with contextlib.suppress(OSError):  # it has ended, which reading its reply shows
            self.connection.send(run.run_id)

    def reply(self) -> tuple[str, str] | None:
        """Why its run failed, in a line and as a traceback; None if it did not.

        Raises:
            EOFError: The process has ended.
        """
        try:
            if self.connection.poll():
                return self.connection.recv()
        except OSError as error:
            raise EOFError from error
        raise EOFError


@contextlib.contextmanager
def _workers(config: TrainConfig, count: int) -> Iterator[list[_Worker]]:
    """Processes that train runs; all have ended afterwards, whatever happens.

    Args:
        config: Their options.
        count: How many.
    """
    cores_each = max(default_processes() // count, 1)
    config = config.changed(
        measurements=(),
        resume=True,
        overwrite=False,
        workers=cores_each if config.data.workers is None else config.data.workers,
    )
    workers: list[_Worker] = []
    try:
        resource_tracker.ensure_running()  # its first start would unblock the signal
        with _interrupts_held():
            workers.extend(_Worker(config) for _ in range(count))
        yield workers
    finally:
        with _interrupts_held():
            _stop(workers)


def _train(runner: Runner, unfinished: Sequence[Run], workers: Sequence[_Worker], bar: tqdm) -> None:
    """Hand the runs to the workers, one after another, until all are over."""
    waiting, free = list(reversed(unfinished)), list(workers)
    busy: dict[_Worker, Run] = {}
    while waiting or busy:
        while waiting and free:
            worker, run = free.pop(), waiting.pop()
            worker.begin(run)
            busy[worker] = run
            bar.set_description(run.arm)
        ready = wait([handle for worker in busy for handle in (worker.connection, worker.process.sentinel)])
        answered = [worker for worker in busy if worker.connection in ready or worker.process.sentinel in ready]
        for worker in answered:
            try:
                failure = worker.reply()
            except EOFError:
                worker.process.join(_PATIENCE)
                raise _killed(runner, busy) from None
            run = busy.pop(worker)
            if failure is not None:
                reason, trace = failure
                error = InputError(f"run {run.run_id} failed: {reason}; runs that are over are kept")
                error.add_note(trace)
                raise error
            free.append(worker)
            bar.update()


def _killed(runner: Runner, busy: Mapping[_Worker, Run]) -> InputError:
    """The error for processes that ended without a reply; their runs are marked as failed."""
    ended = {run: worker.process.exitcode for worker, run in busy.items() if not worker.process.is_alive()}
    for run, code in ended.items():
        runner.record_failure(run, f"its process ended without a reply (exit code {code})")
    runs = ", ".join(sorted(f"{run.run_id} (exit code {code})" for run, code in ended.items()))
    return InputError(
        f"the processes that trained {runs} were killed, maybe for want of memory; repeat the command, if need be with "
        "fewer processes: runs that are over are kept"
    )


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
        worker.process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        worker.process.join(max(deadline - time.monotonic(), 0))
        worker.process.kill()
        worker.process.join()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C inside takes effect afterwards; in processes that are started inside it never does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Processes spawned inside do not import the program's main module, which may run anything."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(config: TrainConfig, connection: Connection) -> None:
    """What a process does: train each run whose id it receives, and reply after it."""
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, ConnectionError):  # the parent needs no more runs
        run_id = connection.recv()
        try:
            whole = config.changed(measurements=PRESETS[config.output.experiment][1].diagnostics.measurements)
            runner = Runner(whole, is_child=True)
            while True:
                runner.run_one(run_id)
                connection.send(None)
                run_id = connection.recv()
        except Exception as error:
            connection.send((_in_a_line(error), traceback.format_exc()))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # handlers at exit would report a SystemExit


def _leave(*_: object) -> None:
    """End the process as Ctrl-C would, with locks released, and without a message."""
    sys.exit(1)


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended, perhaps killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_a_line(error: Exception) -> str:
    """The message of an error in a line; of one that is no ``InputError`` with its type and line of code."""
    if isinstance(error, InputError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first} ({Path(frame.filename).name}, line {frame.lineno})"
