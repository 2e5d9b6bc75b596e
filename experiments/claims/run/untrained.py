"""Judges the claims that train nothing, several at once: each measures for minutes, on one core.

Their judgements need no tables of experiments, so that they are sent to other processes whole.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from tqdm import tqdm

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.verdict.claim import Claim, Evidence, Judgement, Size
from skip_conditioning.experiments.sweeps.workers import usable_cores


@contextlib.contextmanager
def judging_alone(
    claims: Sequence[Claim], size: Size, out: Path, data_dir: Path | None, processes: int | None = None
) -> Iterator[Callable[[], dict[str, Judgement]]]:
    """Judge those claims that plan no experiment, in processes of their own while others are trained for inside.

    Args:
        claims: Any.
        size: Of what is measured.
        out: The directory of the verdicts; each claim's own folder in it is made if missing.
        data_dir: Folder of the data sets.
        processes: How many; None for one a core. With one, or one claim, this process judges, when it is asked.

    Yields:
        Waits for the judgements and returns them, by the claim's id.

    Raises:
        InputError: A claim cannot be judged, or a process was killed; when asked for the judgements.
    """
    alone = [claim for claim in claims if not claim.plans(size)]
    evidence = {claim.id: Evidence({}, out / claim.id, data_dir=data_dir) for claim in alone}
    for one in evidence.values():
        one.directory.mkdir(parents=True, exist_ok=True)
    count = min(usable_cores() if processes is None else processes, len(alone))
    if count < 2:
        judges = {claim.id: partial(claim.judge, evidence[claim.id], size) for claim in alone}
        yield lambda: _each(judges)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin) as pool:
        with _no_bars():
            waiting = {claim.id: pool.submit(claim.judge, evidence[claim.id], size) for claim in alone}
        started = multiprocessing.active_children()
        try:
            yield lambda: _each({name: partial(_result, name, one) for name, one in waiting.items()})
        except BaseException:
            for process in started:
                process.terminate()
            raise


def _each(judges: Mapping[str, Callable[[], Judgement]]) -> dict[str, Judgement]:
    """All judgements, with a bar that is gone before an error is told; without one if there are none."""
    if not judges:
        return {}
    with tqdm(judges.items(), desc="measuring", unit="claim", dynamic_ncols=True, leave=False) as shown:
        return {name: judge() for name, judge in shown}


def _result(name: str, waiting: Future[Judgement]) -> Judgement:
    try:
        return waiting.result()
    except BrokenProcessPool as error:
        raise InputError(
            f"a process that measured for {name} or another claim was killed (out of memory?); repeat the command, "
            "perhaps with --processes 1"
        ) from error


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Processes started inside show no progress bars of their own."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before


def _begin() -> None:
    """Leave Ctrl-C to the process that waits, and do without the bars' lock, which a process so ended would leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())
