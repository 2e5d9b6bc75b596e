r"""Which of several explanations predicts the speed of arms that it has not seen?

For slowness y (a logarithm), conditioning x, and a mark of the arms that have a skip, by arm and trial:

- M0: the mean;
- M1: a monotone function of x, in the direction in which better conditioning is faster (isotonic regression);
- M2: one mean for arms with a skip and one for those without;
- M3: a monotone function of a rival quantity, in the direction that fits better; one model for each rival;
- M4: M1 + M2, fitted in turn.

Each arm is left out with all its trials and predicted from the others; trials are made comparable by subtracting, in
each, the mean over the arms that are not left out. An arm's error is the mean square of its predictions. Two models are
compared by the mean difference of their errors over arms, in units of its standard error: they differ if that is beyond
the quantile of Student's t, two standard errors for many arms.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from scipy import optimize, stats

from skip_conditioning.diagnostics.errors import InputError

M0, M1, M2, M4 = "the mean", "conditioning", "the skip", "conditioning and the skip"
#: Chance that a difference of two models as good as each other is taken for one.
_LEVEL: Final = 0.05
_FEWEST_ARMS: Final = 5
_ROUNDS: Final = 8


class Outcome(StrEnum):
    """What the comparison of the models says of conditioning."""

    BETTER = "conditioning predicts better than the skip and than every rival, and the skip adds nothing to it"
    PARTLY = "conditioning predicts better than the skip, and no rival better than conditioning"
    A_RIVAL_BETTER = "the skip or a rival predicts better"
    OPEN = "the models are not told apart"


@dataclass(frozen=True)
class Difference:
    """How much worse a model predicts than conditioning does.

    Attributes:
        other: The model.
        mean: Its squared error minus that of M1, mean over arms; positive where conditioning is better.
        error: Standard error of the mean, over arms.
        low: Lower end of Student's interval at nominal level 95 %. It is the rule that was simulated, no interval to
            report: errors of arms left out are skewed and depend on each other, so that it covered between 47 and
            100 % from M0, the skip or a rival, and less still from M4 where conditioning goes with the skip.
        high: Upper end.
    """

    other: str
    mean: float
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelComparison:
    """Models of the speed of arms, compared on arms left out.

    Attributes:
        outcome: Of the rule.
        better: The models that predict better than M1, the best first. M4 among them means that the skip adds
            something to conditioning, which rules out ``BETTER`` and is no rival.
        skills: By model, ``1 − Σ error / Σ error of M0`` over arms left out.
        errors: By model, the squared error of each arm, shape ``(arms,)``.
        differences: Of each model from M1.
        clipped: Number of runs that diverged, and count as slow as the slowest other of their trial.
    """

    outcome: Outcome
    better: tuple[str, ...]
    skills: Mapping[str, float]
    errors: Mapping[str, np.ndarray]
    differences: Mapping[str, Difference]
    clipped: int


def compare_models(
    slowness: np.ndarray,
    conditioning: np.ndarray,
    skip: np.ndarray,
    rivals: Mapping[str, np.ndarray],
    *,
    larger_is_better: bool,
) -> ModelComparison:
    """Compare the models.

    Args:
        slowness: Logarithms, shape ``(arms, trials)``; +inf for runs that diverged.
        conditioning: Logarithms, shape ``(arms, trials)``.
        skip: Whether each arm has one, shape ``(arms,)``.
        rivals: By name, shape ``(arms, trials)`` each.
        larger_is_better: Whether a larger ``conditioning`` is better.

    Raises:
        InputError: A value is NaN, shapes differ, or there are fewer than five arms.
    """
    y, clipped = _finite(slowness)
    x = conditioning if larger_is_better else -conditioning
    _check(y, {"conditioning": x, **rivals})
    marks = np.asarray(skip, dtype=float)
    models: dict[str, _Predict] = {
        M0: lambda train, test: np.zeros(y[test].size),
        M1: lambda train, test: _decreasing(x[train], train_target(train), x[test]),
        M2: lambda train, test: _group_means(marks[train], train_target(train), marks[test], y.shape[1]),
        **{name: _rival(values, lambda train: train_target(train)) for name, values in rivals.items()},
        M4: lambda train, test: _both(x, marks, train_target(train), train, test),
    }

    def train_target(train: np.ndarray) -> np.ndarray:
        return y[train] - y[train].mean(axis=0)

    errors = {name: np.empty(len(y)) for name in models}
    for arm in range(len(y)):
        train = np.delete(np.arange(len(y)), arm)
        target = y[arm] - y[train].mean(axis=0)
        for name, predict in models.items():
            errors[name][arm] = float(np.mean((target - predict(train, np.array([arm]))) ** 2))
    total = errors[M0].sum()
    skills = {name: float(1 - own.sum() / total) if total > 0 else 0.0 for name, own in errors.items()}
    differences = {name: _difference(name, own - errors[M1]) for name, own in errors.items() if name != M1}
    return ModelComparison(*_outcome(differences, list(rivals)), skills, errors, differences, clipped)


_Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _outcome(differences: Mapping[str, Difference], rivals: Sequence[str]) -> tuple[Outcome, tuple[str, ...]]:
    others = [M2, *rivals]
    better = [name for name in (*others, M4) if differences[name].high < 0]
    better.sort(key=lambda name: differences[name].mean)
    if set(better) - {M4}:
        return Outcome.A_RIVAL_BETTER, tuple(better)
    beaten = [name for name in (M0, *others) if differences[name].low > 0]
    if len(beaten) == 1 + len(others) and not better:
        return Outcome.BETTER, ()
    return (Outcome.PARTLY if {M0, M2} <= set(beaten) else Outcome.OPEN), tuple(better)


def _difference(name: str, values: np.ndarray) -> Difference:
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    reach = float(stats.t.ppf(1 - _LEVEL / 2, len(values) - 1)) * error
    return Difference(name, mean, error, mean - reach, mean + reach)


def _finite(slowness: np.ndarray) -> tuple[np.ndarray, int]:
    """Slowness with diverged runs as slow as the slowest other of their trial, and their number."""
    diverged = np.isposinf(slowness)
    finite = np.where(diverged, -np.inf, slowness)
    slowest = finite.max(axis=0)
    if np.isneginf(slowest).any():
        raise InputError("in a trial all runs diverged; there is nothing to compare")
    return np.where(diverged, slowest, slowness), int(diverged.sum())


def _check(y: np.ndarray, quantities: Mapping[str, np.ndarray]) -> None:
    if len(y) < _FEWEST_ARMS:
        raise InputError(f"{len(y)} arms are too few to compare models on arms left out; give {_FEWEST_ARMS} or more")
    for name, values in {"speed": y, **quantities}.items():
        if values.shape != y.shape:
            raise InputError(f"{name} has shape {values.shape}, but speed {y.shape}")
        if not np.isfinite(values).all():
            raise InputError(f"{name} is not a finite number in {int((~np.isfinite(values)).sum())} runs")


def _decreasing(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Isotonic regression of y on x, decreasing, at other places: linear in between, constant beyond."""
    places, code = np.unique(x.ravel(), return_inverse=True)
    counts = np.bincount(code)
    means = np.bincount(code, y.ravel()) / counts
    fit = optimize.isotonic_regression(means, weights=counts, increasing=False).x
    return np.interp(at.ravel(), places, fit)


def _rival(values: np.ndarray, target: Callable[[np.ndarray], np.ndarray]) -> _Predict:
    def predict(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        y = target(train)
        fits = [(sign * values[train], sign * values[test]) for sign in (1, -1)]
        residuals = [float(((_decreasing(own, y, own) - y.ravel()) ** 2).sum()) for own, _ in fits]
        own, at = fits[int(np.argmin(residuals))]
        return _decreasing(own, y, at)

    return predict


def _group_means(marks: np.ndarray, y: np.ndarray, at: np.ndarray, trials: int) -> np.ndarray:
    means = {mark: float(y[marks == mark].mean()) for mark in np.unique(marks)}
    return np.repeat([means.get(mark, 0.0) for mark in at], trials)


def _both(x: np.ndarray, marks: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    shift = np.zeros(2)
    groups = marks[train].astype(int)
    for _ in range(_ROUNDS):
        smooth = _decreasing(x[train], y - shift[groups][:, None], x[train]).reshape(y.shape)
        shift = np.array([(y - smooth)[groups == g].mean() if (groups == g).any() else 0.0 for g in (0, 1)])
    at = _decreasing(x[train], y - shift[groups][:, None], x[test])
    return at + np.repeat(shift[marks[test].astype(int)], y.shape[1])
