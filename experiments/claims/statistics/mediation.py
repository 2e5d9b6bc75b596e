r"""How much of the skip's effect on speed passes through conditioning?

Linear structural equations with a fixed effect of each trial, for the mediator M (the logarithm of a measure of
conditioning) and the slowness Y of runs with (T = 1) and without (T = 0) the skip::

    M = trial + b2 T       + e2        indirect = b2 g
    Y = trial + b3 T + g M + e3        direct   = b3
    Y = trial + b1 T       + e1        total    = b1 = direct + indirect, exactly

(Baron & Kenny 1986; as causal effects, Imai, Keele & Yamamoto 2010, Theorem 2.) The effect of M is taken to be the same
with and without the skip.

*What identifies g.* M must vary apart from T for a reason that does not itself make a run fast or slow. In a factorial
design, skip × initialisation, that reason is the initialisation (``block``); so it is in none of the equations, as with
it held fixed only chance variation of M would be left. The assumption is that the initialisation acts on speed through
M alone, and linearly. Without blocks g is identified by chance variation alone, and a common cause of M and Y in a run
counts as an effect of M. Three initialisations or more can contradict the assumption: ``over_identification``.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.statistics.resampling import percentiles, resampled_counts

_FEWEST_TRIALS, _FEWEST_BLOCKS = 6, 3
# Of the test that initialisations agree, and how far their shares may lie apart.
_LEVEL, _MOST_APART = 0.05, 0.5
# A smaller share of the mediator's variance within trials left by the treatment is rounding.
_NOTHING_LEFT = 1e-10


@dataclass(frozen=True)
class Mediation:
    """Effects of the skip on the logarithm of a slowness, negative if it speeds training; each with its interval.

    Attributes:
        total: Of the skip.
        total_low: Lower end.
        total_high: Upper end.
        direct: The part that does not pass through the mediator.
        direct_low: Lower end.
        direct_high: Upper end.
        indirect: The part that does.
        indirect_low: Lower end.
        indirect_high: Upper end.
        share: ``indirect / total``; below 0 or above 1 where direct and indirect effects oppose each other.
        share_low: Lower end; both ends are NaN where the total's interval contains 0, which leaves it undetermined.
        share_high: Upper end.
        p_indirect: Two-sided, of no indirect effect.
        runs: Number of runs.
        diverged: Number of runs that diverged.
        note: Caveats.
    """

    total: float
    total_low: float
    total_high: float
    direct: float
    direct_low: float
    direct_high: float
    indirect: float
    indirect_low: float
    indirect_high: float
    share: float
    share_low: float
    share_high: float
    p_indirect: float
    runs: int
    diverged: int
    note: str


@dataclass(frozen=True)
class OverIdentification:
    """How far the initialisations agree on the share.

    Attributes:
        shares: By each initialisation against the first, by itself.
        left_out: The share of ``mediation`` with each initialisation left out.
        q: Cochran's Q.
        p: Of shares as far apart if all were equal.
        identified: Whether they agree: p is 5 % or more, all slopes have one sign, and shares without one
            initialisation have one sign and lie within 0.5 of each other.
    """

    shares: Mapping[str, float]
    left_out: Mapping[str, float]
    q: float
    p: float
    identified: bool


def mediation(runs: pd.DataFrame, *, seed: int, resamples: int = 1000, confidence: float = 0.95) -> Mediation:
    """Total, direct and indirect effect of the skip, and the share of the indirect effect.

    Intervals lie between ``percentiles`` of the bootstrap over trials, all runs of a trial being drawn together; the p
    value is 1 less the confidence with which such an interval would just exclude 0. A diverged run counts as being as
    slow as the slowest that finished, which makes its slowness a lower bound: where more runs without the skip diverge,
    the total effect is larger than stated. Infinite mediators likewise count as the most extreme finite one.

    Args:
        runs: Columns ``treated`` (0 or 1), ``mediator``, ``speed`` (logarithm of a slowness, +inf if diverged),
            ``trial``, and ``block`` where several initialisations were run with and without the skip.
        seed: Of the resampling.
        resamples: Number of bootstrap resamples.
        confidence: Of the intervals.

    Raises:
        InputError: A column or a group is missing, a value is NaN, trials are too few or differ in their runs, a block
            is not run both with and without the skip, or the mediator does not vary apart from it.
    """
    products, diverged, infinite = _cross_products(runs)
    paths = _paths(products.sum(axis=0))
    counts = resampled_counts(len(products), resamples, np.random.default_rng(seed))
    drawn = _paths(np.tensordot(counts, products, axes=1))
    tails = percentiles(confidence, len(products))
    ends = {name: np.nanquantile(getattr(drawn, name), tails) for name in ("total", "direct", "indirect", "share")}
    undetermined = ends["total"][0] <= 0 <= ends["total"][1]
    if undetermined:
        ends["share"] = np.full(2, np.nan)
    notes = {
        "the interval of the total effect contains 0, so the share is undetermined": undetermined,
        "without blocks only chance tells the mediator's effect from the skip's": "block" not in runs,
        f"{diverged} diverged runs count as being as slow as the slowest that finished": diverged,
        f"{infinite} infinite mediators count as the most extreme finite one": infinite,
    }
    numbers = {name: float(getattr(paths, name)) for name in ends}
    for name, (low, high) in ends.items():
        numbers |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return Mediation(
        p_indirect=_p_value(drawn.indirect, len(products)),
        runs=len(runs),
        diverged=diverged,
        note="; ".join(note for note, applies in notes.items() if applies),
        **numbers,
    )


def over_identification(runs: pd.DataFrame, *, seed: int, resamples: int = 1000) -> OverIdentification:
    """Whether the initialisations agree on the share of the skip's effect that passes through the mediator.

    Initialisation b, against the first, changes the mediator by ``Δm_b`` and the slowness by ``Δy_b``, each a mean over
    trials with and without the skip. If all initialisations act through the mediator alone, and linearly, then the
    slopes ``Δy_b / Δm_b`` are equal, and so are the shares that follow from them. Cochran's Q tests it: the weighted
    squares of the shares' distances from their mean, with the covariance of resampled trials. As that is estimated from
    few trials, Q is referred to Hotelling's T² and not to χ², which rejects too often.

    Args:
        runs: As for ``mediation``; blocks are initialisations, the first of which is the reference.
        seed: Of the resampling.
        resamples: Number of bootstrap resamples of trials.

    Raises:
        InputError: As for ``mediation``, or there are fewer than three blocks, so that there is nothing to compare.
    """
    _check(runs)
    blocks = sorted(runs["block"].unique()) if "block" in runs else []
    if len(blocks) < _FEWEST_BLOCKS:
        raise InputError(f"{len(blocks)} initialisations cannot disagree; the test needs {_FEWEST_BLOCKS}")
    finite = runs.assign(
        speed=_clipped(runs["speed"].to_numpy(float)), mediator=_clipped(runs["mediator"].to_numpy(float))
    )
    changes = _changes(finite, blocks)
    counts = resampled_counts(changes.shape[-1], resamples, np.random.default_rng(seed)) / changes.shape[-1]
    drawn = _shares(changes @ counts.T)
    shares, slopes = _shares(changes.mean(axis=-1)), _slopes(changes.mean(axis=-1))
    covariance = np.cov(drawn[:, np.isfinite(drawn).all(axis=0)])
    weights = np.linalg.pinv(covariance, hermitian=True)
    mean = float(weights.sum(axis=0) @ shares / weights.sum())
    q = float((shares - mean) @ weights @ (shares - mean))
    left_out = {
        str(block): mediation(finite[finite["block"] != block], seed=seed, resamples=2).share for block in blocks
    }
    freedom, trials = len(shares) - 1, changes.shape[-1]
    p = float(stats.f.sf(q * (trials - freedom) / (trials * freedom), freedom, trials - freedom))
    ends = [*left_out.values()]
    one_sign = all(len({bool(value > 0) for value in values}) == 1 for values in (slopes, ends))
    agree = max(ends) - min(ends) <= _MOST_APART and one_sign
    names = [str(block) for block in blocks[1:]]
    return OverIdentification(
        dict(zip(names, map(float, shares), strict=True)), left_out, q, p, bool(p >= _LEVEL and agree)
    )


def _changes(runs: pd.DataFrame, blocks: Sequence[object]) -> np.ndarray:
    """Changes by trial: of mediator and slowness by each block but the first, then by the skip in the first.

    Shape ``(2, blocks, trials)``: mediator and slowness; the last of the blocks is the skip's own change.
    """
    rows = []
    for column in ("mediator", "speed"):
        without, with_skip = (
            runs[runs["treated"] == side]
            .pivot(index="block", columns="trial", values=column)
            .loc[list(blocks)]
            .to_numpy()
            for side in (0, 1)
        )
        means = (without + with_skip) / 2
        rows.append([*(means[1:] - means[0]), with_skip[0] - without[0]])
    return np.array(rows, dtype=float)


def _slopes(changes: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(changes[1, :-1] / changes[0, :-1])


def _shares(changes: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(_slopes(changes) * changes[0, -1] / changes[1, -1])


class _Paths(NamedTuple):
    """Estimates, of one shape each."""

    total: np.ndarray  # b1
    direct: np.ndarray  # b3
    indirect: np.ndarray  # b2 g
    share: np.ndarray  # of the indirect in the total effect


def _paths(products: np.ndarray) -> _Paths:
    """Least squares from the cross-products of T, M and Y within trials, shape ``(..., 3, 3)``.

    A resample in which M does not vary apart from T gives NaN.
    """
    (tt, tm, ty), (_, mm, my), _ = np.moveaxis(products, (-2, -1), (0, 1))
    on_mediator, total = tm / tt, ty / tt
    # Residuals on T: of M (e2), and their product with those of Y (e1).
    e22, e12 = mm - on_mediator * tm, my - on_mediator * ty
    e22 = np.where(e22 > _NOTHING_LEFT * mm, e22, np.nan)
    indirect = on_mediator * e12 / e22
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total == 0, np.nan, indirect / total)
    return _Paths(total, total - indirect, indirect, share)


def _p_value(drawn: np.ndarray, trials: int) -> float:
    """Two-sided p value from the share of resamples on the far side of 0, by the inverse of ``percentiles``."""
    drawn = drawn[~np.isnan(drawn)]
    far = min((drawn <= 0).sum(), (drawn >= 0).sum())
    t = stats.norm.ppf(min(0.5, (int(far) + 1) / (len(drawn) + 1))) * np.sqrt((trials - 1) / trials)
    return float(2 * stats.t.cdf(t, trials - 1))


def _cross_products(runs: pd.DataFrame) -> tuple[np.ndarray, int, int]:
    """Cross-products of T, M and Y, centred in each trial; and the numbers of diverged runs and infinite mediators.

    Shape ``(trials, 3, 3)``. Fixed effects of trials are the same as centring each trial (Frisch & Waugh 1933), and
    products of trials add up, so that a resample of trials is a sum.
    """
    _check(runs)
    speed, mediator = runs["speed"].to_numpy(dtype=float), runs["mediator"].to_numpy(dtype=float)
    diverged, infinite = np.isinf(speed), np.isinf(mediator)
    values = np.stack([runs["treated"].to_numpy(dtype=float), _clipped(mediator), _clipped(speed)], axis=1)
    codes, trials = pd.factorize(runs["trial"], sort=True)
    sizes = np.bincount(codes)[:, None]
    sums = np.zeros((len(trials), 3))
    np.add.at(sums, codes, values)
    centred = values - (sums / sizes)[codes]
    products = np.zeros((len(trials), 3, 3))
    np.add.at(products, codes, centred[:, :, None] * centred[:, None])
    (tt, tm, _), (_, mm, _), _ = products.sum(axis=0)
    if mm <= len(runs) * (_NOTHING_LEFT * np.abs(values[:, 1]).max()) ** 2:
        raise InputError("the mediator is the same in all runs of a trial, so nothing can pass through it")
    if mm - tm**2 / tt <= _NOTHING_LEFT * mm:
        raise InputError("the mediator is determined by treated, so their effects cannot be told apart")
    return products, int(diverged.sum()), int(infinite.sum())


def _clipped(values: np.ndarray) -> np.ndarray:
    finite = values[np.isfinite(values)]
    return values.clip(finite.min(), finite.max())


def _check(runs: pd.DataFrame) -> None:
    for name in ("treated", "mediator", "speed", "trial", *(["block"] if "block" in runs else [])):
        if runs[name].isna().any():
            raise InputError(
                f"{name} is NaN in {int(runs[name].isna().sum())} of {len(runs)} runs; give a number for each"
            )
    for name in ("speed", "mediator"):
        if not np.isfinite(runs[name]).any():
            raise InputError(f"{name} is infinite in all runs; there is nothing to compare")
    if (runs["speed"] == -np.inf).any():
        raise InputError("speed is -inf in some runs, as if they took no time; it is a logarithm of a slowness")
    blocks = runs["block"] if "block" in runs else pd.Series(0, runs.index)
    counts = pd.crosstab(runs["trial"], [runs["treated"], blocks])
    if len(counts) < _FEWEST_TRIALS:
        raise InputError(f"{len(counts)} trials are too few for an interval, which needs {_FEWEST_TRIALS}")
    if set(counts.columns) != set(itertools.product((0, 1), blocks)):
        raise InputError("every block needs runs with the skip (treated is 1) and without it (0); leave others out")
    # Leaving a run out because it diverged would bias the effects.
    uneven = counts.index[(counts != counts.max()).any(axis=1)]
    if len(uneven):
        raise InputError(
            f"every trial needs the same runs, but some are missing in trial {', '.join(map(str, uneven))}; diverged "
            "runs stay in"
        )
