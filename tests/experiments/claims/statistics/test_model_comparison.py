"""The comparison of models in a few draws of worlds of known truth; ``simulated_models`` is the long run."""

import numpy as np
import pytest

from skip_conditioning.experiments.claims.statistics.model_comparison import M2, M4, Outcome, compare_models
from tests.experiments.claims.statistics.simulated_models import GRADIENT, WORLDS, compared, draw, false_and_right


@pytest.mark.parametrize(
    "name", ["mechanism, steep", "mechanism, half of two arms diverging", "skip", "gradient norm", "no effect"]
)
def test_outcomes_are_seldom_false_and_often_right(name):
    false, right = false_and_right(WORLDS[name], compared(WORLDS[name], 8))
    assert false == 0
    assert right >= 0.5


@pytest.mark.parametrize(("world", "cause"), [("skip", M2), ("gradient norm", GRADIENT)])
def test_the_model_that_is_better_is_named(world, cause):
    results = [result for result in compared(WORLDS[world], 8) if result.outcome is Outcome.A_RIVAL_BETTER]
    assert np.mean([cause in result.better for result in results]) > 0.7


def test_a_skip_beside_conditioning_is_no_rival_of_it():
    results = compared(WORLDS["conditioning and skip, halves"], 8)
    assert any(result.better == (M4,) for result in results)
    assert not any(result.outcome is Outcome.A_RIVAL_BETTER for result in results)
    assert all(result.outcome is not Outcome.BETTER for result in results if M4 in result.better)


def test_diverged_runs_count_as_the_slowest_of_their_trial():
    arguments = draw(WORLDS["mechanism, linear"], np.random.default_rng(0))
    slowness = arguments.pop("slowness")
    diverged = slowness.copy()
    diverged[7, :3] = np.inf
    capped = slowness.copy()
    capped[7, :3] = np.delete(slowness, 7, axis=0)[:, :3].max(axis=0)
    results = [compare_models(values, **arguments) for values in (diverged, capped)]
    assert [result.clipped for result in results] == [3, 0]
    assert results[0].skills == pytest.approx(results[1].skills)
