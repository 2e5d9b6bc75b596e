"""Judges the claims that train nothing, several at once: each measures for minutes, on one core.

Their judgements need no tables of experiments, so that they are sent to other processes whole.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from diagnostics.errors import InputError
from experiments.claims.claim import Claim, Judgement, Size
from experiments.claims.evidence import Evidence
from experiments.parallel import usable_cores


def judge_alone(
    claims: Sequence[Claim], size: Size, out: Path, data_dir: Path | None, processes: int | None = None
) -> dict[str, Judgement]:
    """Judgements of those claims that plan no experiment, by the claim's id.

    Args:
        claims: Any.
        size: Of what is measured.
        out: The directory of the verdicts; each claim's own folder in it is made if missing.
        data_dir: Folder of the data sets.
        processes: How many; None for one a core. With one, or one claim, this process judges.

    Raises:
        InputError: A claim cannot be judged, or a process was killed.
        KeyboardInterrupt: Like that meanwhile, when all processes have ended.
    """
    alone = [claim for claim in claims if not claim.plans(size)]
    evidence = {claim.id: Evidence({}, out / claim.id, data_dir=data_dir) for claim in alone}
    for one in evidence.values():
        one.directory.mkdir(parents=True, exist_ok=True)
    count = min(usable_cores() if processes is None else processes, len(alone))
    bar = tqdm(total=len(alone), desc="measuring", unit="claim", dynamic_ncols=True, leave=False)
    found: dict[str, Judgement] = {}
    with bar:
        if count < 2:
            for claim in alone:
                found[claim.id] = claim.judge(evidence[claim.id], size)
                bar.update()
            return found
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, mp_context=context, initializer=_leave_interrupts) as pool:
            with _no_bars():
                waiting = {pool.submit(claim.judge, evidence[claim.id], size): claim.id for claim in alone}
            try:
                for done in as_completed(waiting):
                    found[waiting[done]] = done.result()
                    bar.update()
            except BaseException as error:
                for process in multiprocessing.active_children():
                    process.terminate()
                if isinstance(error, BrokenProcessPool):
                    left = ", ".join(sorted(set(waiting.values()) - set(found)))
                    raise InputError(
                        f"a process that measured for {left} was killed (out of memory?); repeat the command, perhaps "
                        "with --processes 1"
                    ) from error
                raise
    return found


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


def _leave_interrupts() -> None:
    """Leave Ctrl-C to the process that waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
