"""Derives the numbers of the README's results on the claims from the tables in the gallery: ``python docs/results.py``.

Reads ``figures/gallery/verdicts_mnist``: what was read of each run, and nothing of the report. Prints a line for each
number, with its name; the tests check that the README has no other.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from skip_conditioning.experiments.claims.mechanism.design import AtRate
from skip_conditioning.experiments.claims.mechanism.judgement import models_of
from skip_conditioning.experiments.claims.paper.matched_conditioning import MATCHED_CONDITIONING
from skip_conditioning.experiments.claims.paper.spectrum_explains_speed import SPECTRUM_EXPLAINS_SPEED

GALLERY = Path(__file__).parent.parent / "figures" / "gallery" / "verdicts_mnist"


def median_with_interval(low: np.ndarray, high: np.ndarray, level: float) -> tuple[float, float, float]:
    """Median ratio and its interval between two order statistics, from bounds of log-ratios, shape ``(pairs,)``."""
    pairs = len(low)
    left_out = max(k for k in range(pairs // 2 + 1) if k == 0 or 2 * stats.binom.cdf(k - 1, pairs, 0.5) <= 1 - level)
    ends = (np.sort(low)[left_out - 1], np.sort(high)[pairs - left_out]) if left_out else (-np.inf, np.inf)
    return float(np.exp(np.median((low + high) / 2))), float(np.exp(ends[0])), float(np.exp(ends[1]))


def paired(claim: str, measure: str, arm: str, other: str, level: float, folder: Path = GALLERY) -> str:
    """The ratio of an arm to another in a measure, with its interval, and in how many pairs it is below 1."""
    runs = pd.read_parquet(folder / claim / "runs.parquet")
    rows = runs[runs["measure"] == measure]
    wide = {
        (side, end): rows[rows["arm"] == side].pivot_table(index="trial", columns="threshold", values=end, dropna=False)
        if rows["threshold"].notna().any()
        else rows[rows["arm"] == side].groupby("trial")[[end]].first()
        for side in (arm, other)
        for end in ("low", "high")
    }
    low = (wide[arm, "low"].to_numpy() - wide[other, "high"].to_numpy()).mean(axis=1)
    high = (wide[arm, "high"].to_numpy() - wide[other, "low"].to_numpy()).mean(axis=1)
    return f"{_ratio(*median_with_interval(low, high, level))}, {int((high < 0).sum())} of {len(low)} pairs"


def mechanism(experiment: str, rate: AtRate, folder: Path = GALLERY) -> Iterator[tuple[str, float]]:
    """How much of the squared differences in speed each model predicts for arms left out, in percent."""
    runs = pd.read_parquet(folder / SPECTRUM_EXPLAINS_SPEED.id / experiment / "runs.parquet")
    design = SPECTRUM_EXPLAINS_SPEED.by_size["mnist"][experiment].design
    compared = models_of(runs, rate, design, design.conditioning, design.better)
    for name, skill in compared.skills.items():
        yield name, 100 * skill


def matched(rate: AtRate, family: str, level: float, folder: Path = GALLERY) -> str:
    """Steps of a family without a skip over those of the skips, mean over levels of equal effective rank."""
    runs = pd.read_parquet(folder / MATCHED_CONDITIONING.id / "runs.parquet")
    steps = runs[runs["rate"] == rate.value].pivot(index="arm", columns="trial", values="log_steps")
    families = MATCHED_CONDITIONING.matched["mnist"].families
    logs = (steps.loc[list(families[family])].to_numpy() - steps.loc[list(families["gain"])].to_numpy()).mean(axis=0)
    return _ratio(*median_with_interval(logs, logs, level))


def checks(claim: str, folder: Path = GALLERY) -> str:
    """In how many checks the statements of a claim on the theory hold, fail and say nothing."""
    table = pd.read_parquet(folder / claim / "statements.parquet")
    return ", ".join(f"{count} {verdict}" for verdict, count in table["verdict"].value_counts().items())


def _ratio(ratio: float, low: float, high: float) -> str:
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
