"""The live table of a sweep: how each run stands, redrawn in place on a terminal, else a line for each change."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

#: How a run may stand, in the order in which a table too long for the terminal prefers them.
STATUSES = ("failed", "running", "diverged", "finished", "queued")


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
