"""Judges the claims that train nothing, several at once: each measures for minutes, on one core.

They need no tables of experiments, so each is sent whole to another process.
"""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial, partialmethod
from pathlib import Path

from tqdm import tqdm

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.verdict.claim import Claim, ClaimInputs, Size
from skip_conditioning.experiments.claims.verdict.outcome import Judgement
from skip_conditioning.experiments.sweeps.workers import default_processes


@contextlib.contextmanager
def untrained_judgements(
    claims: Sequence[Claim], size: Size, out: Path, data_dir: Path | None, processes: int | None = None
) -> Iterator[Callable[[], dict[str, Judgement]]]:
    """Judge the claims that plan no experiment in processes of their own, during the ``with`` block.

    Args:
        claims: All claims; those that plan experiments are ignored.
        size: Of what is measured.
        out: The directory of the verdicts; each claim's own folder in it is made if missing.
        data_dir: Folder of the data sets.
        processes: Number of processes; None for one a core. With one process or one claim, this process judges, when
            the function yielded is called.

    Yields:
        A function that waits for the judgements and returns them, by the claim's id. It raises ``InputError`` if a
        claim cannot be judged or a process was killed.
    """
    untrained = [claim for claim in claims if not claim.plans(size)]
    inputs = {claim.id: ClaimInputs({}, out / claim.id, data_dir=data_dir) for claim in untrained}
    for each in inputs.values():
        each.directory.mkdir(parents=True, exist_ok=True)
    count = min(default_processes() if processes is None else processes, len(untrained))
    if count < 2:
        judges = {claim.id: partial(claim.judge, inputs[claim.id], size) for claim in untrained}
        yield lambda: _judgements(judges)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker) as pool:
        futures = {claim.id: pool.submit(claim.judge, inputs[claim.id], size) for claim in untrained}
        started = multiprocessing.active_children()
        try:
            yield lambda: _judgements({name: partial(_result, name, future) for name, future in futures.items()})
        except BaseException:
            for process in started:
                process.terminate()
            raise


def _judgements(judges: Mapping[str, Callable[[], Judgement]]) -> dict[str, Judgement]:
    """All judgements, with a progress bar that is cleared before an error is reported."""
    if not judges:
        return {}
    with tqdm(judges.items(), desc="measuring", unit="claim", dynamic_ncols=True, leave=False) as shown:
        return {name: judge() for name, judge in shown}


def _result(name: str, future: Future[Judgement]) -> Judgement:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise InputError(
            f"a process that measured for {name} or another claim was killed (out of memory?); repeat the command, "
            "if need be with --processes 1"
        ) from error


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process; show no progress bars, and avoid their lock, which a kill leaves behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    tqdm.set_lock(threading.RLock())
