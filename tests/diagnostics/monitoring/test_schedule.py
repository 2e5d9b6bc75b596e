"""Which steps are due."""

import numpy as np
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.schedule import as_schedule, at_steps, every, log_spaced, until


def due(schedule, until):
    return [step for step in range(until) if schedule(step)]


def test_every():
    assert due(every(3), 10) == [0, 3, 6, 9]
    assert due(as_schedule(np.int64(4)), 9) == [0, 4, 8]


def test_log_spaced_is_dense_at_first_and_constant_per_decade():
    steps = due(log_spaced(), 10_001)
    assert steps[:6] == [0, 1, 2, 3, 4, 6]
    for low in (10, 100, 1000):
        assert len([step for step in steps if low <= step < 10 * low]) == 5
        assert low in steps
    assert len(due(log_spaced(50), 101)) > 50


def test_at_steps():
    assert due(at_steps(0, 7, np.int64(3), 3), 20) == [0, 3, 7]
    assert at_steps(5)(np.int64(5))
    assert due(as_schedule(at_steps(2)), 5) == [2]


@pytest.mark.parametrize("steps", [(), (-1,), (3, 2.0), ("3",), (True,), ([1, 2],)])
def test_steps_that_make_no_sense(steps):
    with pytest.raises(InputError, match=r"give (whole numbers from 0|at least one)"):
        at_steps(*steps)


def test_until():
    assert due(until(6, 3), 20) == [0, 3, 6]
    assert due(until(6, at_steps(5, 9)), 20) == [5]
    assert due(until(0, log_spaced()), 20) == [0]


def test_a_function_is_a_schedule():
    assert due(as_schedule(lambda step: step == 7), 9) == [7]


@pytest.mark.parametrize("interval", [0, -1, 2.5, "3", None, True])
def test_intervals_that_make_no_sense(interval):
    with pytest.raises(InputError, match="give a whole number from 1"):
        as_schedule(interval)


def test_a_density_that_makes_no_sense():
    with pytest.raises(InputError, match="give a number from 1"):
        log_spaced(0)
