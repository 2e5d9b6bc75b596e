"""How often the comparison of models is false and right in worlds of known truth; run as a module, it prints Markdown.

Fourteen arms, whose conditioning and skips are those of a residual MLP, and thirty trials.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from skip_conditioning.experiments.claims.statistics.model_comparison import (
    M0,
    M2,
    M4,
    ModelComparison,
    Outcome,
    compare_models,
)

#: Logarithm of the effective rank, whether it has a skip, and the family.
ARMS = (
    (5.08, 0, "chain"), (5.10, 1, "gain"), (5.17, 1, "gain"), (5.88, 1, "gain"), (6.23, 1, "gain"),
    (5.42, 0, "orthogonal weights"), (5.94, 1, "orthogonal weights"), (4.61, 0, "dirac"), (5.83, 1, "dirac"),
    (6.37, 0, "looks-linear"), (6.12, 1, "looks-linear"), (5.33, 1, "poor skip"), (5.14, 1, "poor skip"),
    (5.97, 1, "orthogonal skip"),
)  # fmt: skip
_X = np.array([arm[0] for arm in ARMS])
_Z = (_X - _X.mean()) / _X.std()
SKIP = np.array([arm[1] for arm in ARMS], dtype=bool)
FAMILY = tuple(arm[2] for arm in ARMS)
GRADIENT = "gradient norm"


@dataclass(frozen=True)
class Truth:
    """What makes a run slow; standard deviations are of the logarithm of steps.

    Attributes:
        cause: Whether conditioning is.
        through: Slowness from conditioning in standard deviations over arms.
        skip: Of having a skip.
        gradient: Per standard deviation of the gradient norm.
        tie: Correlation over arms of the gradient norm with conditioning.
        own: Of each arm, unexplained.
        shared: Of each family, unexplained.
        seeds: Of what all arms of a trial share.
        tails: Degrees of freedom of Student's t; 0 for normal noise.
        unequal: Whether arms differ in their noise, by up to a factor of ten.
        diverging: Whether half of the runs of two arms without a skip diverge.
        selected: Correlation of conditioning with the skip, if arms were chosen anew; None keeps the arms.
    """

    cause: bool
    through: Callable[[np.ndarray], np.ndarray] = np.zeros_like
    skip: float = 0.0
    gradient: float = 0.0
    tie: float = -0.7
    own: float = 0.1
    shared: float = 0.0
    seeds: float = 0.2
    tails: int = 0
    unequal: bool = False
    diverging: bool = False
    selected: float | None = None


def _linear(z: np.ndarray) -> np.ndarray:
    return -0.5 * z


WORLDS: Mapping[str, Truth] = {
    "mechanism, linear": Truth(True, _linear),
    "mechanism, threshold": Truth(True, lambda z: -1.0 * (z > 0.2)),
    "mechanism, saturating": Truth(True, lambda z: -1.2 * np.tanh(z + 1)),
    "mechanism, steep": Truth(True, lambda z: -1.5 * z),
    "mechanism, heavy tails": Truth(True, _linear, tails=2),
    "mechanism, half of two arms diverging": Truth(True, _linear, diverging=True),
    "mechanism, unequal variances": Truth(True, _linear, unequal=True),
    "mechanism, correlated seeds": Truth(True, _linear, seeds=1.0),
    "mechanism, families differ": Truth(True, _linear, shared=0.3),
    "mechanism, gradient norm tied 0.95": Truth(True, _linear, tie=-0.95),
    "skip": Truth(False, skip=-0.6),
    "skip, correlated 0.6 with conditioning": Truth(False, skip=-0.6, selected=0.6),
    "skip, correlated 0.9 with conditioning": Truth(False, skip=-0.6, selected=0.9),
    "skip, families differ": Truth(False, skip=-0.6, shared=0.3),
    "skip, half of two arms diverging": Truth(False, skip=-0.6, diverging=True),
    "gradient norm": Truth(False, gradient=0.5),
    "gradient norm, tied 0.95": Truth(False, gradient=0.5, tie=-0.95),
    "conditioning and skip, halves": Truth(True, lambda z: -0.4 * z, skip=-0.4),
    "no effect": Truth(False),
    "no effect, families differ": Truth(False, shared=0.3),
    "no effect, families differ, own conditioning alike": Truth(False, shared=0.3, own=0.02, selected=0.0),
    "no effect, heavy tails": Truth(False, tails=2),
    "no effect, unequal variances": Truth(False, unequal=True),
    "no effect, half of two arms diverging": Truth(False, diverging=True),
}


def draw(truth: Truth, rng: np.random.Generator, trials: int = 30) -> dict[str, object]:
    """Arguments of ``compare_models``."""
    arms, codes = len(ARMS), np.unique(FAMILY, return_inverse=True)[1]
    families = codes.max() + 1
    z = _Z
    if truth.selected is not None:
        mark = (SKIP - SKIP.mean()) / SKIP.std()
        alike = 0.95 * rng.normal(size=families)[codes] + 0.3 * rng.normal(size=arms)
        z = truth.selected * mark + np.sqrt(1 - truth.selected**2) * alike
    x = z[:, None] + 0.08 * rng.normal(size=(arms, trials))

    def tied(correlation: float) -> np.ndarray:
        level = correlation * z + np.sqrt(1 - correlation**2) * rng.normal(size=arms)
        return level[:, None] + 0.1 * rng.normal(size=(arms, trials))

    gradient, sharpness = tied(truth.tie), tied(-0.6)
    noise = rng.standard_t(truth.tails, (arms, trials)) if truth.tails else rng.normal(size=(arms, trials))
    noise *= rng.uniform(0.3, 3, (arms, 1)) if truth.unequal else 1.0
    level = truth.own * rng.normal(size=arms) + truth.shared * rng.normal(size=families)[codes] + truth.skip * SKIP
    slowness = truth.through(x) + truth.gradient * gradient + level[:, None] + 0.1 * noise
    slowness += truth.seeds * rng.normal(size=trials)
    if truth.diverging:
        for arm in (0, 7):
            slowness[arm, rng.random(trials) < 0.5] = np.inf
    rivals = {GRADIENT: gradient, "sharpness": sharpness}
    return {"slowness": slowness, "conditioning": x, "skip": SKIP, "rivals": rivals, "larger_is_better": True}


def compared(truth: Truth, draws: int, seed: int = 0) -> list[ModelComparison]:
    """Comparisons in so many draws."""
    rng = np.random.default_rng(seed)
    return [compare_models(**draw(truth, rng)) for _ in range(draws)]  # type: ignore[arg-type]


def false_and_right(truth: Truth, results: list[ModelComparison]) -> tuple[float, float]:
    """Shares of false and of right outcomes; without any cause an open one is right."""
    outcomes = np.array([result.outcome for result in results])
    better, rival, open_ = ((outcomes == o).mean() for o in (Outcome.BETTER, Outcome.A_RIVAL_BETTER, Outcome.OPEN))
    if truth.cause:
        return rival, better
    return better, rival if truth.skip or truth.gradient else open_


def coverage(results: list[ModelComparison], model: str) -> float:
    """How often the interval of a difference holds its mean over draws."""
    values = np.array([(d.mean, d.low, d.high) for d in (result.differences[model] for result in results)])
    truth = values[:, 0].mean()
    return float(((values[:, 1] <= truth) & (truth <= values[:, 2])).mean())


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    draws = parser.parse_args().draws
    print("| world | false | right | intervals cover: M0 | M2 | gradient norm | M4 |\n|---|--:|--:|--:|--:|--:|--:|")
    for name, truth in WORLDS.items():
        results = compared(truth, draws)
        shares = [*false_and_right(truth, results), *(coverage(results, model) for model in (M0, M2, GRADIENT, M4))]
        print(f"| {name} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |", flush=True)
    upper = stats.beta.ppf(0.975, 0.05 * draws + 1, 0.95 * draws)
    print(f"\n{draws} draws; up to {100 * upper:.0f} % may be seen where 5 % is true.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
