"""Families matched in conditioning: one curve is supported, parallel curves are reversed."""

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.experiments.claims.mechanism.matched import Matched, judge_matched
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs, DecisionRule, RateSweep
from skip_conditioning.experiments.claims.verdict.outcome import Verdict
from skip_conditioning.experiments.claims.verdict.rate_sweep import root_two_grid
from tests.experiments.claims.worlds import tables_of

LEVELS = (5.5, 5.8, 6.1)
MATCHED = Matched(
    {family: tuple(f"{family}-{level}" for level in LEVELS) for family in ("skip", "chain")},
    {"chain": tuple(f"chain-{level}@2" for level in LEVELS)},
)
RATES = root_two_grid(0.1, 0.2)


def inputs(offset, directory, mismatch=0.0, trials=12):
    rng = np.random.default_rng(0)
    slowness, states = {}, []
    for arm in MATCHED.arms:
        family, level = arm.split("@")[0].rsplit("-", 1)
        rank = float(level) + mismatch * (family == "chain") + 0.003 * rng.normal(size=trials)
        slowness[arm] = -2 * (float(level) - 6) + offset * (family == "skip") + 0.05 * rng.normal(size=trials)
        states.append(pd.DataFrame({"arm": arm, "trial": range(trials), "effective_rank": np.exp(rank)}))
    pilots = [
        tables_of({a: v[:2] + 0.2 * abs(i - 1) for a, v in slowness.items()}, lr=lr) for i, lr in enumerate(RATES)
    ]
    joined = type(pilots[0])(
        *(pd.concat([getattr(p, n) for p in pilots]) for n in ("runs", "metrics", "spectra", "skipped"))
    )
    return ClaimInputs(
        {"m": tables_of(slowness, lr=RATES[1])},
        directory,
        pilots={"m": joined},
        initial_states={"m": pd.concat(states)},
    )


@pytest.mark.parametrize(
    ("offset", "verdict"), [(0.0, Verdict.SUPPORTED), (-0.3, Verdict.REVERSED), (-0.095, Verdict.UNDECIDED)]
)
def test_one_curve_or_two(offset, verdict, tmp_path):
    sweep = RateSweep("skip-5.5", RATES, 2)
    findings, figures = judge_matched(inputs(offset, tmp_path), "m", MATCHED, sweep, DecisionRule())
    deciding = [finding for finding in findings if finding.decides]
    assert [finding.verdict for finding in deciding] == [verdict] * 2
    assert deciding[0].numbers["ratio"] == pytest.approx(np.exp(-offset), abs=0.03)
    assert findings[-1].verdict is Verdict.SUPPORTED
    assert [path.name for path in figures] == ["matched_conditioning.svg"]
    assert len(pd.read_parquet(tmp_path / "curves.parquet")) == 2 * len(MATCHED.arms)


def test_arms_that_are_not_matched_are_said_to_be_so(tmp_path):
    sweep = RateSweep("skip-5.5", RATES, 2)
    findings, _ = judge_matched(inputs(0.0, tmp_path, 0.05), "m", MATCHED, sweep, DecisionRule(), draws=False)
    assert findings[-1].verdict is Verdict.REVERSED
    assert findings[-1].numbers["largest_ratio"] == pytest.approx(np.exp(0.05), abs=0.005)
