r"""Which measure of conditioning best predicts the speed of an arm that the prediction has not seen?

Everything is done on ranks, scaled to ``[0, 1]``, so that a measure and any increasing function of it are the same,
heavy tails do no harm, and a diverged run takes part as what it is, slower than all that finished.

The *skill* of a measure x for a slowness y is the out-of-sample R² of a line of y on x, fitted without an arm and
tested on it, ``1 - Σ(y - ŷ)² / Σ(y - ȳ)²`` with ŷ and ȳ from the other arms: 1 if perfect, negative if worse than their
mean. (The sums over all arms are Stone's 1974 cross-validation, with arms in place of observations.)

Two kinds of chance are kept apart:

- the *interval* comes from resampling trials with all arms kept: it does not say how skill would vary with other arms;
- the *p value* comes from permuting the slownesses of whole arms among arms. It is exact if the measure is unrelated to
  an arm's speed, so that arms could as well have swapped their speeds. The correction for the number of measures is the
  single-step max-T of Westfall & Young (1993, §2.3), whose joint permutations keep the correlations among measures.
"""

import itertools
import math
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.statistics.resampling import percentiles, resampled_counts, weighted_ranks

#: Numbers in a ranking, beside ``measure`` and ``note``.
COLUMNS: Final = (
    "skill",
    "skill_low",
    "skill_high",
    "skill_seed_out",
    "slope",
    "p",
    "p_corrected",
    "first_share",
    "behind",
    "behind_low",
    "behind_high",
)

_FEWEST_ARMS, _FEWEST_TRIALS = 3, 2
_EQUAL = 1e-9  # skills closer than this are equal up to rounding


def rank_measures(
    features: pd.DataFrame,
    speed: pd.Series,
    *,
    seed: int,
    resamples: int = 1000,
    permutations: int = 1000,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Measures ranked by how well they predict the speed of arms left out.

    Args:
        features: Logarithms of the measures, a column each; indexed by ``arm`` and ``trial``. ±inf ranks at the ends,
            NaN means not measured.
        speed: Logarithm of a slowness (less is faster) with the same index, every trial of every arm; +inf for diverged
            runs, which rank last.
        seed: Of resampling and permuting.
        resamples: Number of bootstrap resamples of trials.
        permutations: Number of permutations of arms. If there are no more than these in all, each is taken once and p
            values are exact; none can be below ``1/6`` with three arms and ``1/120`` with five.
        confidence: Of the intervals, between ``percentiles`` of the resamples.

    Returns:
        A row per measure, the most skilful first, those that cannot be ranked last:

        - ``measure``;
        - ``skill``, ``skill_low``, ``skill_high``: leaving out an arm at a time;
        - ``skill_seed_out``: leaving out a trial, with all its arms, at a time;
        - ``slope``: Spearman correlation with slowness over all runs, positive if larger is slower;
        - ``p``, ``p_corrected``: of no skill, one-sided; for this measure alone, and corrected for all measures;
        - ``first_share``: share of resamples in which it has the highest skill, ties sharing;
        - ``behind``, ``behind_low``, ``behind_high``: skill of the first minus its own, in the same resamples;
        - ``note``: why it cannot be ranked (its numbers are NaN): not measured in some runs, or constant.

    Raises:
        InputError: A speed is missing or NaN, all are equal, or there are too few arms or trials.
    """
    names, x, y = _grid(features, speed)
    notes = [_note(values) for values in x]
    usable = np.array([not note for note in notes])
    numbers = np.full((len(names), len(COLUMNS)), np.nan)
    if usable.any():
        bootstrap_rng, permutation_rng = np.random.default_rng(seed).spawn(2)
        columns = _all_numbers(
            _ranks(x[usable]),
            _ranks(y),
            resampled_counts(y.shape[1], resamples, bootstrap_rng),
            *_permutations(len(y), permutations, permutation_rng),
            confidence,
        )
        numbers[usable] = np.stack([columns[name] for name in COLUMNS], axis=1)
    table = pd.DataFrame(numbers, columns=list(COLUMNS))
    table.insert(0, "measure", names)
    table["note"] = notes
    return table.sort_values("skill", ascending=False, kind="stable", na_position="last", ignore_index=True)


def _all_numbers(
    x: np.ndarray, y: np.ndarray, counts: np.ndarray, orders: np.ndarray, exact: bool, confidence: float
) -> dict[str, np.ndarray]:
    """The numbers of all measures, shape ``(measures,)`` each; x and y are ranks."""
    skill = _skill(_sums(x, y, axis=-1))
    permuted = _permuted_skills(x, y, orders)
    resampled = _resampled_skills(x, y, counts)
    # Resamples in which all runs are equally fast have nothing to predict.
    resampled = resampled[:, ~np.isnan(resampled).any(axis=0)]
    behind = resampled[skill.argmax()] - resampled
    first = resampled >= resampled.max(axis=0) - _EQUAL
    tails = percentiles(confidence, y.shape[1])
    skill_low, skill_high = np.quantile(resampled, tails, axis=1)
    behind_low, behind_high = np.quantile(behind, tails, axis=1)
    return {
        "skill": skill,
        "skill_low": skill_low,
        "skill_high": skill_high,
        "skill_seed_out": _skill(_sums(x, y, axis=-2)),
        "slope": _correlation(x, y),
        "p": _p_value(skill, permuted, exact),
        "p_corrected": _p_value(skill, permuted.max(axis=0), exact),
        "first_share": (first / first.sum(axis=0)).mean(axis=1),
        "behind": skill.max() - skill,
        "behind_low": behind_low,
        "behind_high": behind_high,
    }


class _Sums(NamedTuple):
    """Σx, Σy, Σx², Σxy, Σy² over the n runs of each group left out in turn, the last axis; the others broadcast."""

    n: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray


def _sums(x: np.ndarray, y: np.ndarray, axis: int) -> _Sums:
    return _Sums(y.shape[axis], *(values.sum(axis=axis) for values in (x, y, x * x, x * y, y * y)))


def _skill(sums: _Sums) -> np.ndarray:
    """Out-of-sample R², shape without the axis of groups; NaN where all y are equal."""
    rest = sums.n * (sums.y.shape[-1] - 1)
    x, y, xx, xy = (
        (each.sum(axis=-1, keepdims=True) - each) / rest for each in (sums.x, sums.y, sums.xx, sums.xy)
    )  # means over the other groups
    variance = xx - x * x
    varies = variance > _EQUAL
    slope = np.where(varies, (xy - x * y) / np.where(varies, variance, 1.0), 0.0)
    # With u = y - ȳ and v = x - x̄ of the others, Σ(y - ŷ)² = Σu² - 2 slope Σuv + slope² Σv².
    uu = sums.yy - 2 * y * sums.y + sums.n * y * y
    uv = sums.xy - x * sums.y - y * sums.x + sums.n * x * y
    vv = sums.xx - 2 * x * sums.x + sums.n * x * x
    error, spread = (uu - 2 * slope * uv + slope * slope * vv).sum(axis=-1), uu.sum(axis=-1)
    return np.where(spread > _EQUAL, 1 - error / np.where(spread > _EQUAL, spread, 1.0), np.nan)


def _permuted_skills(x: np.ndarray, y: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Skills with the arms' speeds in other orders, shape ``(measures, orders)``."""
    arms = np.arange(len(y))
    cross = x @ y.T  # of each arm's x with each arm's y
    return _skill(
        _Sums(
            y.shape[1],
            x.sum(axis=-1)[:, None],
            y.sum(axis=-1)[orders],
            (x * x).sum(axis=-1)[:, None],
            cross[:, arms, orders],
            (y * y).sum(axis=-1)[orders],
        )
    )


def _resampled_skills(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Skills in each resample of trials, on the ranks within it, shape ``(measures, resamples)``.

    Arms are left out whole, so a trial drawn twice is never on both sides.
    """
    arms, trials = y.shape
    weights = np.tile(counts, (1, arms))

    def ranks(values: np.ndarray) -> np.ndarray:
        return (weighted_ranks(values.ravel(), weights).reshape(-1, arms, trials) - 1) / (arms * trials - 1)

    def total(values: np.ndarray) -> np.ndarray:
        return np.einsum("rat,rt->ra", values, counts)

    drawn_y = ranks(y)
    y_sum, yy_sum = total(drawn_y), total(drawn_y * drawn_y)
    skills = np.empty((len(x), len(counts)))
    for measure, values in enumerate(x):  # one at a time for the memory
        drawn = ranks(values)
        skills[measure] = _skill(
            _Sums(trials, total(drawn), y_sum, total(drawn * drawn), total(drawn * drawn_y), yy_sum)
        )
    return skills


def _permutations(arms: int, most: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Permutations of arms, shape ``(orders, arms)``, and whether they are all of them."""
    if math.factorial(arms) <= most:
        return np.array(list(itertools.permutations(range(arms)))), True
    return rng.permuted(np.tile(np.arange(arms), (most, 1)), axis=1), False


def _p_value(skill: np.ndarray, permuted: np.ndarray, exact: bool) -> np.ndarray:
    """Share of permutations that are as skilful, the observed one among them (Phipson & Smyth 2010)."""
    as_skilful = (permuted >= skill[:, None] - _EQUAL).sum(axis=-1)
    drawn = permuted.shape[-1]
    return as_skilful / drawn if exact else (as_skilful + 1) / (drawn + 1)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - x.mean(axis=(-2, -1), keepdims=True), y - y.mean()
    return (x * y).sum(axis=(-2, -1)) / np.sqrt((x * x).sum(axis=(-2, -1)) * (y * y).sum())


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks over the last two axes, arms and trials, scaled to ``[0, 1]``."""
    flat = values.reshape(*values.shape[:-2], -1)
    return ((stats.rankdata(flat, axis=-1) - 1) / (flat.shape[-1] - 1)).reshape(values.shape)


def _note(values: np.ndarray) -> str:
    missing = int(np.isnan(values).sum())
    if missing:
        return f"missing in {missing} of {values.size} runs"
    return "constant" if (values == values.flat[0]).all() else ""


def _grid(features: pd.DataFrame, speed: pd.Series) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the measures, their values ``(measures, arms, trials)``, and speeds ``(arms, trials)``."""
    slowness = speed.unstack("trial").astype(float)
    if len(slowness) < _FEWEST_ARMS or len(slowness.columns) < _FEWEST_TRIALS:
        raise InputError(
            f"{len(slowness)} arms and {len(slowness.columns)} trials are too few to predict speeds of arms left out, "
            f"which needs {_FEWEST_ARMS} and {_FEWEST_TRIALS}"
        )
    places = np.argwhere(slowness.isna().to_numpy())
    lacking = [f"arm {slowness.index[row]} trial {slowness.columns[column]}" for row, column in places]
    if lacking:
        named = ", ".join(lacking)
        raise InputError(f"every arm needs a speed in every trial, infinite if diverged, but there is none of {named}")
    if len(np.unique(slowness)) < 2:
        raise InputError("all runs are equally fast; there is nothing to predict")
    whole = pd.MultiIndex.from_product([slowness.index, slowness.columns])
    values = features.reorder_levels(["arm", "trial"]).reindex(whole).to_numpy(dtype=float)
    return list(features.columns), values.T.reshape(-1, *slowness.shape), slowness.to_numpy()
