"""Which measurements are made at a step: those that are due, or were put off, and can be afforded."""

from collections.abc import Iterator, Sequence

from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.monitoring.measurement import Measurement
from skip_conditioning.diagnostics.monitoring.schedule import as_schedule
from skip_conditioning.diagnostics.monitoring.time_budget import TimeBudget
from skip_conditioning.diagnostics.support.sharding import deal

#: A group asks its first process, and all wait for the answer, again when so large a share of the wait so far is over.
_PATIENCE = 0.1


class Agenda:
    """Decides what is measured at a step; what cannot be afforded when it is due is put off until it can be.

    In a group the first process decides by its clock and the others follow. To ask it costs a round of messages, so a
    measurement that was put off for k calls is asked for again after ``k / 10`` more: it is made so much later at most.

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
        #: Of what was put off: the call at which it was due first, and the one at which to ask again.
        self._put_off: dict[int, tuple[int, int]] = {}

    def at(self, step: int) -> Iterator[tuple[int, bool]]:
        """Places of the measurements to make now (True), and of those that are due but cannot be afforded (False).

        Each is decided when it is reached, as those before it take time too. In a group every process has to take all.
        """
        self._calls += 1
        for index, item in enumerate(self._measurements):
            due = as_schedule(item.schedule)(step)  # type: ignore[arg-type]
            if not due and index not in self._put_off:
                continue
            if self._affords(index):
                self._put_off.pop(index, None)
                yield index, True
                continue
            if due:
                self._put_off.setdefault(index, (self._calls, self._calls + 1))
                yield index, False

    def _affords(self, index: int) -> bool:
        first, again = self._put_off.get(index, (self._calls, self._calls))
        if self._group is not None and self._calls < again:
            return False
        affordable = deal([0], lambda _: self._budget.affords(self.estimates[index]), self._group)[0]
        if index in self._put_off:
            self._put_off[index] = first, self._calls + max(int(_PATIENCE * (self._calls - first)), 1)
        return affordable
