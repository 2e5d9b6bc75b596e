"""Counts what becomes of some thousand damaged files and odd inputs: ``make fuzz``, or ``python -m tests.fuzz``."""

import argparse
import contextlib
import faulthandler
import io
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.models import ModelOptionError
from tests.fuzz.kind import Kind
from tests.fuzz.kinds import make_kinds

#: What a message may have beside the paths in it, and a reader's time.
_LONGEST_MESSAGE, _SECONDS = 400, 10
REFUSED, SURVIVED, FAILED = "refused in one line", "survived", "failed"


def outcome(kind: Kind, number: int) -> tuple[str, str]:
    """What a reader does with an input, by its number, and its message or traceback."""
    source = random.Random(f"{kind.name} {number}")
    with kind.prepared(source, number) as given:
        home = str(given.parent) if isinstance(given, Path) else "\0"
        try:
            with _limited(), _quiet(), warnings.catch_warnings(action="ignore"):
                kind.read(given)
        except (InputError, ModelOptionError) as error:
            message = " ".join(str(error).splitlines())
            is_short = len(message.replace(home, "")) <= _LONGEST_MESSAGE and _is_printable(message)
            return REFUSED if is_short else FAILED, message
        except BaseException:
            return FAILED, traceback.format_exc()
    return SURVIVED, ""


def _is_printable(message: str) -> bool:
    """Whether a terminal can show a message."""
    try:
        message.encode()
    except UnicodeEncodeError:
        return False
    return "\x1b" not in message


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {_SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    faulthandler.dump_traceback_later(10 * _SECONDS, exit=True)  # of what waits, or no signal interrupts
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)  # its own time, whatever else the machine does
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def count(kinds: Sequence[Kind], inputs: int, first: int = 0) -> tuple[dict[str, Counter[str]], list[str]]:
    """Counts of outcomes by kind, and what is to be said of each failure.

    Args:
        kinds: From ``make_kinds``.
        inputs: Number of inputs of each kind whose reader is fast.
        first: Number of the first input: the seed.
    """
    counts, failures = {}, []
    for kind in kinds:
        counts[kind.name] = Counter[str]()
        for seed in range(first, first + max(1, round(inputs * kind.share))):
            result, text = outcome(kind, seed)
            counts[kind.name][result] += 1
            if result == FAILED:
                failures.append(f"{kind.name}, input {seed}:\n{text[-3000:]}")
                print(failures[-1], file=sys.stderr, flush=True)
    return counts, failures


def table(counts: dict[str, Counter[str]]) -> str:
    """The counts as Markdown."""
    lines = ["| kind | tried | refused in one line | survived | failed |", "|---|--:|--:|--:|--:|"]
    total = sum(counts.values(), Counter[str]())
    for name, row in [*counts.items(), ("**all**", total)]:
        cells = [row.total(), row[REFUSED], row[SURVIVED], row[FAILED]]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table, and the failures to stderr; the exit code is 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=150, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0, help="number of the first of them")
    parser.add_argument("--only", default="", help="kinds whose names contain this")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        with _quiet():
            kinds = make_kinds(Path(folder))
        chosen = [kind for kind in kinds if options.only in kind.name]
        counts, failures = count(chosen, options.inputs, options.seed)
    print(table(counts))
    print(f"\nseed {options.seed}, {time.monotonic() - started:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
