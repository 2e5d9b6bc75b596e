"""The ranking of measures against a plain loop, and on synthetic worlds whose truth is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.statistics.prediction import COLUMNS, rank_measures
from skip_conditioning.experiments.claims.statistics.resampling import (
    percentiles,
    resampled_counts,
    weighted_ranks,
)

LEVEL = 0.05
NOISES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_cauchy(shape),
}


def is_at_most(events, rate):
    """Whether so many events are no sign of a larger rate, at 0.001."""
    return stats.binomtest(int(np.sum(events)), len(events), rate, alternative="greater").pvalue > 1e-3


def world(rng, *, slope=1.0, arms=8, trials=6, decoys=30, noise="normal", spread=0.5):
    """Arms that differ in a true measure, which moves speed by ``slope``; decoys differ among arms by chance alone."""
    index = pd.MultiIndex.from_product([[f"arm{i}" for i in range(arms)], range(trials)], names=["arm", "trial"])
    common = rng.normal(size=(arms, 1, 1))  # decoys resemble each other, as measures of one thing do
    values = common + rng.normal(size=(arms, 1, decoys + 1)) + 0.3 * rng.normal(size=(arms, trials, decoys + 1))
    values[..., 0] = np.linspace(-1.5, 1.5, arms)[rng.permutation(arms), None] + 0.3 * rng.normal(size=(arms, trials))
    luck = rng.normal(size=trials)  # of a data order, shared by all arms
    speed = slope * values[..., 0] + 0.5 * luck + spread * NOISES[noise](rng, (arms, trials))
    names = ["true", *(f"decoy{i}" for i in range(decoys))]
    features = pd.DataFrame(values.reshape(arms * trials, -1), index=index, columns=names)
    return features, pd.Series(speed.ravel(), index=index)


def quick(features, speed, **kwargs):
    return rank_measures(features, speed, **{"seed": 0, "resamples": 20, "permutations": 99} | kwargs)


def skill_by_loop(x, y, groups):
    x, y = stats.rankdata(x), stats.rankdata(y)
    error = spread = 0.0
    for group in np.unique(groups):
        out = groups == group
        error += ((y[out] - np.polyval(np.polyfit(x[~out], y[~out], 1), x[out])) ** 2).sum()
        spread += ((y[out] - y[~out].mean()) ** 2).sum()
    return 1 - error / spread


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_skill_and_slope_equal_those_of_a_plain_loop(rng):
    features, speed = world(rng, decoys=3)
    features.loc[("arm3", 2), "decoy0"], features.loc[("arm1", 1), "decoy1"] = np.inf, -np.inf
    speed.iloc[:5] = np.inf
    ranking = quick(features, speed).set_index("measure")
    for name, x in features.items():
        for column, level in (("skill", "arm"), ("skill_seed_out", "trial")):
            expected = skill_by_loop(x, speed, speed.index.get_level_values(level))
            assert ranking.loc[name, column] == pytest.approx(expected, abs=1e-9)
        assert ranking.loc[name, "slope"] == pytest.approx(stats.spearmanr(x, speed).statistic, abs=1e-9)


def test_few_arms_are_permuted_in_all_orders_and_many_at_random(rng):
    features, speed = world(rng, arms=4, decoys=2)
    ranking = quick(features, speed).set_index("measure")
    arms = speed.index.get_level_values("arm")
    y = speed.to_numpy().reshape(4, -1)
    orders = [y[list(order)].ravel() for order in itertools.permutations(range(4))]
    skills = np.array([[skill_by_loop(features[name], order, arms) for order in orders] for name in features])
    for name, skill in zip(features, skills, strict=True):
        assert ranking.loc[name, "p"] == pytest.approx(np.mean(skill >= skill[0] - 1e-9))
        assert ranking.loc[name, "p_corrected"] == pytest.approx(np.mean(skills.max(axis=0) >= skill[0] - 1e-9))
    drawn = quick(features, speed, permutations=23).set_index("measure")  # one fewer than there are
    assert np.allclose(drawn["p"] * 24 % 1 % 1, 0)
    assert rank_measures(*world(rng, slope=5.0), seed=0, resamples=9)["p"].min() == pytest.approx(1 / 1001)


def test_weighted_ranks_are_ranks_of_values_repeated(rng):
    values = np.array([0.3, np.inf, -1.0, 0.3, np.inf, -np.inf, 2.0])
    weights = rng.integers(0, 4, size=(50, 7))
    for ranks, times in zip(weighted_ranks(values, weights.astype(float)), weights, strict=True):
        assert np.repeat(ranks, times).tolist() == stats.rankdata(np.repeat(values, times)).tolist()


def test_resamples_are_experiments_with_their_trials_repeated(rng):
    features, speed = world(rng, decoys=2, spread=2.0)
    ranking = quick(features, speed, confidence=0.8)
    skills = []
    for times in resampled_counts(6, 20, np.random.default_rng(0).spawn(2)[0]).astype(int):
        drawn = np.repeat(np.arange(6), times)
        x, y = (table.unstack("arm").iloc[drawn].reset_index(drop=True).stack("arm", future_stack=True)
                for table in (features, speed))  # fmt: skip
        again = quick(*(table.rename_axis(["trial", "arm"]) for table in (x, y)), resamples=1, permutations=1)
        skills.append(again.set_index("measure")["skill"][ranking["measure"]])
    skills = np.array(skills)
    behind = skills[:, :1] - skills
    assert np.allclose(ranking[["skill_low", "skill_high"]].T, np.quantile(skills, percentiles(0.8, 6), axis=0))
    assert np.allclose(ranking[["behind_low", "behind_high"]].T, np.quantile(behind, percentiles(0.8, 6), axis=0))
    assert ranking["first_share"].tolist() == [np.mean(skills.argmax(axis=1) == i) for i in range(3)]


@pytest.mark.parametrize(("noise", "spread", "slope"), [("normal", 0.5, 1.0), ("heavy tails", 0.2, -1.0)])
def test_the_measure_that_drives_speed_wins_against_decoys(noise, spread, slope, rng):
    ranking = [quick(*world(rng, slope=slope, noise=noise, spread=spread)) for _ in range(30)]
    first = [table.iloc[0] for table in ranking]
    assert np.mean([row["measure"] == "true" for row in first]) > 0.95
    assert np.mean([row["p_corrected"] <= LEVEL for row in first if row["measure"] == "true"]) > 0.9
    assert all(np.sign(row["slope"]) == slope for row in first if row["measure"] == "true")
    assert np.mean([row["first_share"] for row in first]) > 0.9


@pytest.mark.parametrize("noise", NOISES)
def test_without_an_effect_any_of_thirty_measures_is_seldom_significant(noise, rng):
    ranking = [quick(*world(rng, slope=0.0, noise=noise), resamples=2) for _ in range(80)]
    assert is_at_most([(table["p_corrected"] <= LEVEL).any() for table in ranking], LEVEL)
    assert is_at_most([table.set_index("measure").loc["true", "p"] <= LEVEL for table in ranking], LEVEL)
    # So the correction is what holds the level.
    assert not is_at_most([(table["p"] <= LEVEL).any() for table in ranking], LEVEL)


def test_decoys_beside_a_true_measure_are_seldom_significant(rng):
    ranking = [quick(*world(rng, slope=2.0), resamples=2).set_index("measure") for _ in range(60)]
    assert is_at_most([(table.drop("true")["p_corrected"] <= LEVEL).any() for table in ranking], LEVEL)


@pytest.mark.parametrize("noise", NOISES)
def test_speeds_of_arms_that_differ_by_chance_are_not_predicted(noise, rng):
    # Speeds differ among arms, by far more than among trials; only the unit that is permuted makes this no finding.
    events = []
    for _ in range(80):
        features, speed = world(rng, slope=0.0, decoys=0, spread=0.1)
        arm = np.repeat(NOISES[noise](rng, 8), 6)
        events.append(quick(features, speed + arm, resamples=2)["p"][0] <= LEVEL)
    assert is_at_most(events, LEVEL)


def test_an_arm_half_of_whose_runs_diverge_counts_as_slow(rng):
    won = []
    for _ in range(30):
        features, speed = world(rng, slope=1.0)
        worst = features["true"].groupby("arm").mean().idxmax()
        # Those of its runs that finish are the fastest of all: the others are what makes it slow.
        speed[worst] = np.where(np.arange(6) % 2, np.inf, speed[worst] - 3.0)
        won.append(quick(features, speed)["measure"][0] == "true")
    assert np.mean(won) > 0.8


def test_interval_holds_the_skill_that_more_trials_would_give(rng):
    def skill_of(trials, resamples):
        index = pd.MultiIndex.from_product([range(6), range(trials)], names=["arm", "trial"])
        x = np.linspace(-1, 1, 6)[:, None] + 0.5 * rng.normal(size=(6, trials))
        y = x + 0.5 * rng.normal(size=trials) + rng.standard_t(3, size=(6, trials))
        tables = pd.DataFrame({"x": x.ravel()}, index=index), pd.Series(y.ravel(), index=index)
        return quick(*tables, resamples=resamples).loc[0, ["skill_low", "skill", "skill_high"]]

    truth = skill_of(4000, 2)["skill"]
    ends = [skill_of(30, 200) for _ in range(80)]
    assert 0.88 < np.mean([low <= truth <= high for low, _, high in ends]) < 0.99


def test_increasing_functions_and_the_order_of_rows_change_nothing(rng):
    features, speed = world(rng, decoys=4, spread=2.0)
    ranking = quick(features, speed)
    curved = features.assign(true=np.exp(3 * features["true"]), decoy0=features["decoy0"] ** 3)
    pd.testing.assert_frame_equal(quick(curved, np.exp(speed)), ranking)
    rows = rng.permutation(len(speed))
    swapped = features.iloc[rows].reorder_levels(["trial", "arm"])
    pd.testing.assert_frame_equal(quick(swapped, speed.iloc[rng.permutation(len(speed))]), ranking)
    pd.testing.assert_frame_equal(quick(features, speed), ranking)
    # The reverse has the same skill and the opposite slope.
    pd.testing.assert_frame_equal(quick(-features, speed).assign(slope=ranking["slope"]), ranking)


def test_labels_of_trials_change_nothing_but_which_are_drawn(rng):
    tables = world(rng, decoys=4, trials=12)
    relabelled = [table.rename(lambda trial: (trial * 5 + 2) % 12, level="trial") for table in tables]
    ranking, again = (quick(*each, resamples=4000, confidence=0.8) for each in (tables, relabelled))
    drawn = [name for name in COLUMNS if name.endswith(("_low", "_high", "_share"))]
    pd.testing.assert_frame_equal(again.drop(columns=drawn), ranking.drop(columns=drawn))
    assert np.allclose(again[drawn], ranking[drawn], atol=0.03)


def test_shuffling_arms_destroys_skill(rng):
    skills = []
    for _ in range(30):
        features, speed = world(rng, slope=3.0, decoys=0)
        order = rng.permutation(8)
        shuffled = pd.Series(speed.to_numpy().reshape(8, -1)[order].ravel(), index=speed.index)
        skills.append([quick(features, y, permutations=2)["skill"][0] for y in (speed, shuffled)])
    intact, shuffled = np.median(skills, axis=0)
    assert intact > 0.8
    assert shuffled < 0.1


def test_what_was_not_measured_everywhere_or_never_varies_is_listed_without_skill(rng):
    features, speed = world(rng, decoys=2)
    alone = quick(features[["true"]], speed)
    features.iloc[:3, 1] = np.nan
    features["decoy1"] = np.inf
    ranking = quick(features, speed)
    assert ranking["note"].tolist() == ["", "missing in 3 of 48 runs", "constant"]
    assert ranking.loc[1:, list(COLUMNS)].isna().all(axis=None)
    pd.testing.assert_frame_equal(ranking[:1], alone)
    assert quick(features[["decoy1"]], speed)["skill"].isna().all()


def test_equal_measures_share_the_first_place(rng):
    features, speed = world(rng, decoys=0)
    ranking = quick(features.assign(copy=2 * features["true"]), speed)
    assert ranking["first_share"].tolist() == [0.5, 0.5]
    assert (ranking[["behind", "behind_low", "behind_high"]] == 0).all(axis=None)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, s: (f, s[s.index.get_level_values("arm") < "arm2"]), "2 arms and 6 trials are too few"),
        (lambda f, s: (f, s.xs(0, level="trial", drop_level=False)), "8 arms and 1 trials"),
        (lambda f, s: (f, s.drop([("arm1", 3)])), "there is none of arm arm1 trial 3"),
        (lambda f, s: (f, s.where(s.index != ("arm2", 4))), "there is none of arm arm2 trial 4"),
        (lambda f, s: (f, 0 * s), "equally fast"),
    ],
)
def test_bad_input_is_named(spoil, message, rng):
    features, speed = world(rng, decoys=0)
    with pytest.raises(InputError, match=message):
        quick(*spoil(features, speed))
