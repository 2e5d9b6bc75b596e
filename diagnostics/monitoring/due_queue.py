"""Which measurements are made at a step: those that are due, or were postponed, and can be afforded."""

from collections.abc import Iterator, Sequence

from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.monitoring.measurement import Measurement
from skip_conditioning.diagnostics.monitoring.schedule import as_schedule
from skip_conditioning.diagnostics.monitoring.time_budget import TimeBudget
from skip_conditioning.diagnostics.support.sharding import distribute

#: In a group the first process is asked again whether a postponed measurement can be afforded after so large a share
#: of the steps that it has waited already.
_PATIENCE = 0.1


class DueQueue:
    """Decides what is measured at a step; what cannot be afforded when it is due is postponed until it can be.

    In a group the first process decides by its clock and the others follow. Each decision costs a round of messages,
    so for a measurement postponed k steps ago the next one is made ``k / 10`` steps later: it is delayed by no more.

    Args:
        measurements: With their schedules; the same in all processes of the group.
        estimates: Seconds that each is expected to take.
        budget: Says what can be afforded.
        group: Processes that have to decide alike; None for this one alone.

    Attributes:
        estimates: As given, to be replaced by what each took; only the first process's count.
    """

    def __init__(
        self,
        measurements: Sequence[Measurement],
        estimates: Sequence[float],
        budget: TimeBudget,
        group: ProcessGroup | None,
    ) -> None:
        self.estimates = [*estimates]
        self._measurements, self._budget, self._group = measurements, budget, group
        self._calls = 0
        #: Of each postponed measurement: the call at which it was first due, and the one at which to decide again.
        self._postponed: dict[int, tuple[int, int]] = {}

    def due(self, step: int, *, always: bool = False) -> Iterator[tuple[int, bool]]:
        """Indices of the measurements to make now (True), and of those that are due but cannot be afforded (False).

        Each is decided when it is reached, as those before it take time too. In a group every process has to go
        through all of them.

        Args:
            step: Optimiser steps taken so far.
            always: Make all of them, due and affordable or not.
        """
        self._calls += 1
        for index, item in enumerate(self._measurements):
            if always:
                yield index, True
                continue
            due = as_schedule(item.schedule)(step)  # type: ignore[arg-type]
            if not due and index not in self._postponed:
                continue
            if self._affords(index):
                self._postponed.pop(index, None)
                yield index, True
                continue
            if due:
                self._postponed.setdefault(index, (self._calls, self._calls + 1))
                yield index, False

    def _affords(self, index: int) -> bool:
        first, again = self._postponed.get(index, (self._calls, self._calls))
        if self._group is not None and self._calls < again:
            return False
        affordable = distribute([0], lambda _: self._budget.affords(self.estimates[index]), self._group)[0]
        if index in self._postponed:
            self._postponed[index] = first, self._calls + max(int(_PATIENCE * (self._calls - first)), 1)
        return affordable
