"""Mediation and partial correlation against peers, and on synthetic worlds whose truth is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.mediation import Mediation as PeerMediation

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.statistics.mediation import mediation, over_identification

LEVEL = 0.05
NOISES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "skewed": lambda rng, n: rng.exponential(size=n) - 1,
    "heavy tails": lambda rng, n: rng.standard_cauchy(n),
}


def is_at_most(events, rate):
    """Whether so many events are no sign of a larger rate, at 0.001."""
    return stats.binomtest(int(np.sum(events)), len(events), rate, alternative="greater").pvalue > 1e-3


def is_about(events, rate):
    return stats.binomtest(int(np.sum(events)), len(events), rate).pvalue > 1e-3


def world(rng, *, on_mediator=-1.0, of_mediator=0.5, direct=0.0, noise="normal", trials=30, shifts=(-1, 0, 1), rho=0.0):
    """Skip × initialisation × trial; ``rho`` correlates the errors of mediator and speed."""
    cells = list(itertools.product(range(trials), (0, 1), range(len(shifts))))
    runs = pd.DataFrame(cells, columns=["trial", "treated", "block"])
    luck = rng.normal(size=(trials, 2))[runs["trial"]]
    error = NOISES[noise](rng, len(runs))
    own = rho * error + np.sqrt(1 - rho**2) * rng.normal(size=len(runs))
    runs["mediator"] = luck[:, 0] + on_mediator * runs["treated"] + np.array(shifts)[runs["block"]] + 0.5 * own
    runs["speed"] = luck[:, 1] + direct * runs["treated"] + of_mediator * runs["mediator"] + 0.5 * error
    return runs


def quick(runs, **kwargs):
    return mediation(runs, **{"seed": 0, "resamples": 300} | kwargs)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def inside(effects, name, truth):
    return getattr(effects, f"{name}_low") <= truth <= getattr(effects, f"{name}_high")


def test_effects_equal_those_of_regressions_with_trial_dummies(rng):
    runs = world(rng, direct=-0.3)
    effects = quick(runs)
    total = smf.ols("speed ~ treated + C(trial)", runs).fit()
    on_mediator = smf.ols("mediator ~ treated + C(trial)", runs).fit()
    both = smf.ols("speed ~ treated + mediator + C(trial)", runs).fit()
    assert effects.total == pytest.approx(total.params["treated"])
    assert effects.direct == pytest.approx(both.params["treated"])
    assert effects.indirect == pytest.approx(on_mediator.params["treated"] * both.params["mediator"])
    assert effects.total == pytest.approx(effects.direct + effects.indirect)
    assert effects.share == pytest.approx(effects.indirect / effects.total)


def test_effects_and_intervals_agree_with_statsmodels(rng):
    runs = world(rng, direct=-0.5, trials=40)
    effects = quick(runs, resamples=1000)
    centred = runs - runs.groupby("trial").transform("mean")  # in place of a dummy for each trial
    outcome = sm.OLS(centred["speed"].to_numpy(), centred[["treated", "mediator"]].to_numpy())
    mediator = sm.OLS(centred["mediator"].to_numpy(), centred[["treated"]].to_numpy())
    peer = PeerMediation(outcome, mediator, exposure=(0, 0), mediator=1)
    np.random.seed(7)  # its only source of randomness
    table = peer.fit(method="parametric", n_rep=500).summary()
    for name, row in (
        ("indirect", "ACME (average)"),
        ("direct", "ADE (average)"),
        ("total", "Total effect"),
        ("share", "Prop. mediated (average)"),
    ):
        estimate, low, high = table.loc[row].iloc[:3]
        assert getattr(effects, name) == pytest.approx(estimate, abs=0.03)
        assert getattr(effects, f"{name}_low") == pytest.approx(low, abs=0.08)
        assert getattr(effects, f"{name}_high") == pytest.approx(high, abs=0.08)


@pytest.mark.parametrize(
    ("on_mediator", "of_mediator", "direct", "noise"),
    [
        pytest.param(-1.0, 0.5, 0.0, "normal", id="conditioning alone"),
        pytest.param(-1.0, 0.0, -1.0, "normal", id="another path"),
        pytest.param(-1.0, 0.5, 1.5, "skewed", id="against each other"),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(on_mediator, of_mediator, direct, noise, rng):
    settings = {"on_mediator": on_mediator, "of_mediator": of_mediator, "direct": direct, "noise": noise}
    effects = [quick(world(rng, **settings)) for _ in range(60)]
    indirect = on_mediator * of_mediator
    truth = {
        "indirect": indirect,
        "direct": direct,
        "total": indirect + direct,
        "share": indirect / (indirect + direct),
    }
    for name, value in truth.items():
        assert is_about([inside(each, name, value) for each in effects], 1 - LEVEL), name
    if indirect == 0:
        assert is_at_most([each.p_indirect <= LEVEL for each in effects], LEVEL)
    else:
        assert np.mean([each.p_indirect <= LEVEL for each in effects]) > 0.95
        assert np.mean([np.sign(each.indirect) == np.sign(indirect) for each in effects]) > 0.95


@pytest.mark.parametrize(
    ("noise", "on_mediator", "of_mediator"),
    [("heavy tails", 0.0, 0.5), ("normal", -1.0, 0.0)],
)
def test_no_indirect_effect_is_seldom_called_one(noise, on_mediator, of_mediator, rng):
    effects = [
        quick(world(rng, on_mediator=on_mediator, of_mediator=of_mediator, noise=noise), resamples=100)
        for _ in range(100)
    ]
    assert is_at_most([each.p_indirect <= LEVEL for each in effects], LEVEL)


def test_the_share_of_no_total_effect_is_undetermined(rng):
    effects = quick(world(rng, of_mediator=0.5, direct=0.5))
    assert effects.total_low < 0 < effects.total_high
    assert np.isnan([effects.share_low, effects.share_high]).all()
    assert "the share is undetermined" in effects.note
    assert effects.p_indirect <= LEVEL
    assert not quick(world(rng)).note


def test_diverged_runs_are_as_slow_as_the_slowest_and_never_dropped(rng):
    total, dropped = [], []
    for _ in range(10):
        runs = world(rng, on_mediator=-1.0, of_mediator=1.0)
        chain = runs["treated"].eq(0)
        # Half of the chain's runs diverge, and the others are so fast that alone they would turn the effect.
        runs.loc[chain, "speed"] -= 2.0
        bad = chain & (rng.random(len(runs)) < 0.5)
        capped = runs.assign(speed=runs["speed"].mask(bad, runs.loc[~bad, "speed"].max()))
        runs.loc[bad, "speed"] = np.inf
        effects = quick(runs, resamples=20)
        assert (effects.runs, effects.diverged) == (180, bad.sum())
        assert effects.total == pytest.approx(quick(capped, resamples=20).total)
        assert f"{bad.sum()} diverged runs count" in effects.note
        total.append(effects.total)
        dropped.append(runs.loc[~chain, "speed"].mean() - runs.loc[chain & ~bad, "speed"].mean())
        with pytest.raises(InputError, match=r"every trial needs the same runs.*diverged runs stay in"):
            quick(runs[~bad])
    assert np.mean(np.array(total) < 0) > 0.95
    assert np.mean(np.array(dropped) > 0) > 0.95


@pytest.mark.parametrize(
    ("response", "identified"),
    [(lambda m: 0.5 * m, True), (lambda m: 2.0 * (m > 0.8), False), (lambda m: np.tanh(2 * m), False)],
    ids=["linear", "threshold", "saturating"],
)
def test_initialisations_agree_on_the_share_only_if_the_response_is_linear(response, identified, rng):
    agreed = []
    for draw in range(20):
        runs = world(rng, shifts=(0, 0.7, 1.5, 2.5), on_mediator=-0.7)
        runs["mediator"] -= runs.groupby("trial")["mediator"].transform("mean") - 0.6
        runs["speed"] = response(runs["mediator"]) + 0.05 * rng.normal(size=len(runs))
        agreed.append(over_identification(runs, seed=draw, resamples=200).identified)
    assert np.mean(agreed) >= 0.75 if identified else np.mean(agreed) <= 0.25


def test_leaving_one_initialisation_out_is_the_mediation_of_the_others(rng):
    runs = world(rng)
    result = over_identification(runs, seed=0, resamples=100)
    others = mediation(runs[runs["block"] != 2], seed=0, resamples=2)
    assert result.left_out["2"] == pytest.approx(others.share)
    assert set(result.shares) == {"1", "2"}
    with pytest.raises(InputError, match="cannot disagree"):
        over_identification(world(rng, shifts=(0, 1)), seed=0)


def test_order_labels_and_units_change_nothing(rng):
    runs = world(rng, direct=-0.3)
    effects = quick(runs)
    assert quick(runs.iloc[rng.permutation(len(runs))]).share == pytest.approx(effects.share)
    assert quick(runs.iloc[rng.permutation(len(runs))]).share_low == pytest.approx(effects.share_low)
    relabelled = quick(runs.assign(trial=(7 * runs["trial"] + 3) % 30, block=2 - runs["block"]))
    assert relabelled.indirect == pytest.approx(effects.indirect)
    scaled = quick(runs.assign(mediator=5 * runs["mediator"] - 3, speed=2 * runs["speed"] + 1))
    assert (scaled.indirect, scaled.share_low) == pytest.approx((2 * effects.indirect, effects.share_low))
    swapped = quick(runs.assign(treated=1 - runs["treated"]))
    assert (swapped.total, swapped.share) == pytest.approx((-effects.total, effects.share))
    shifted = runs.assign(mediator=runs["mediator"] + runs["trial"], speed=runs["speed"] - runs["trial"] ** 2)
    assert quick(shifted).indirect == pytest.approx(effects.indirect)


def test_infinite_mediators_count_as_the_most_extreme_finite_one_and_pairs_alone_will_do(rng):
    runs = world(rng, shifts=(0,)).drop(columns="block")
    largest = runs["mediator"].idxmax()
    capped = runs.assign(mediator=runs["mediator"].clip(upper=runs["mediator"].drop(largest).max()))
    runs.loc[largest, "mediator"] = np.inf
    effects = quick(runs)
    assert effects.indirect == pytest.approx(quick(capped).indirect)
    assert "without blocks only chance" in effects.note
    assert "1 infinite mediators" in effects.note


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r[r["treated"] == 1], "every block needs runs with the skip"),
        (lambda r: r[r["trial"] < 5], "5 trials are too few.* needs 6"),
        (lambda r: r.assign(mediator=r["trial"] / 3), "the mediator is the same"),
        (lambda r: r.assign(mediator=r["trial"] / 3 - r["treated"]), "the mediator is determined by treated"),
        (lambda r: r.assign(speed=r["speed"].where(r["trial"] > 0)), "speed is NaN in 6 of 180 runs"),
        (lambda r: r.assign(speed=np.inf), "speed is infinite in all runs"),
        (lambda r: r.assign(speed=r["speed"].mask(r["trial"] == 3, -np.inf)), "speed is -inf"),
        (lambda r: r[(r["block"] > 0) | (r["treated"] == 0)], "every block needs runs with the skip"),
        (lambda r: r.drop(index=[7, 14]), "missing in trial 1, 2; diverged"),
    ],
)
def test_bad_input_is_named(spoil, message, rng):
    with pytest.raises(InputError, match=message):
        mediation(spoil(world(rng)), seed=0)
