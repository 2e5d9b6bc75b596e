"""When to measure: a schedule says of each step whether a measurement is due."""

import math
from collections.abc import Callable
from numbers import Integral

from skip_conditioning.diagnostics.errors import InputError

Schedule = Callable[[int], bool]


def every(interval: int) -> Schedule:
    """Steps 0, ``interval``, 2·``interval`` and so on.

    Raises:
        InputError: ``interval`` is not a positive whole number.
    """
    if not isinstance(interval, Integral) or isinstance(interval, bool) or interval < 1:
        raise InputError(f"a schedule of every {interval!r} steps makes no sense; give a whole number from 1")
    return lambda step: step % interval == 0


def log_spaced(per_decade: int = 5) -> Schedule:
    """Step 0 and about ``per_decade`` steps in each factor of ten: most changes happen early.

    Raises:
        InputError: ``per_decade`` is less than 1.
    """
    if per_decade < 1:
        raise InputError(f"a schedule of {per_decade!r} steps per decade makes no sense; give a number from 1")

    def due(step: int) -> bool:
        if step <= 0:
            return True
        exponent = per_decade * math.log10(step)
        return any(step == round(10 ** (k / per_decade)) for k in (math.floor(exponent), math.ceil(exponent)))

    return due


def at_steps(*steps: int) -> Schedule:
    """Exactly these steps.

    Raises:
        InputError: No step is given, or one is not a whole number from 0.
    """
    for step in steps:
        if not isinstance(step, Integral) or isinstance(step, bool) or step < 0:
            raise InputError(f"a schedule of step {step!r} makes no sense; give whole numbers from 0")
    if not steps:
        raise InputError("a schedule of no steps measures nothing; give at least one")
    return frozenset(steps).__contains__


def until(last: int, schedule: Schedule | int) -> Schedule:
    """The steps of another schedule, up to and with the step ``last``."""
    due = as_schedule(schedule)
    return lambda step: step <= last and due(step)


def as_schedule(schedule: Schedule | int) -> Schedule:
    """A schedule itself, or ``every(k)`` for a number ``k``."""
    return schedule if callable(schedule) else every(schedule)
