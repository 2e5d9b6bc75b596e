"""Do conditioning and speed go together over the doses of the skip?"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.mechanism.design import MEDIATORS, Design
from skip_conditioning.experiments.claims.mechanism.learning_rates import run_table
from skip_conditioning.experiments.claims.statistics.median_intervals import exact_interval, median
from skip_conditioning.experiments.claims.statistics.paired_tests import sign_test
from skip_conditioning.experiments.claims.verdict.claim import Finding, Verdict
from skip_conditioning.experiments.claims.verdict.run_measures import NAMES


def dose_response(
    tables: Experiment, design: Design, mediator: str, rates: Mapping[str, float], level: float
) -> Finding:
    """Whether conditioning and speed go together over the doses of the skip, trial by trial.

    In each trial Kendall's τ between conditioning and slowness over the doses; the sign test decides whether its median
    is positive.

    Args:
        tables: The experiment, without its pilot trials.
        design: Its doses.
        mediator: The measure of conditioning.
        rates: Learning rate of each arm.
        level: Of the test.
    """
    doses = dose_table(tables, design, mediator, rates)
    sign = 1 if MEDIATORS[mediator] == "smaller" else -1
    taus = np.array(
        [stats.kendalltau(sign * rows["mediator"], rows["speed"]).statistic for _, rows in doses.groupby("trial")]
    )
    missing, taus = int((~np.isfinite(taus)).sum()), taus[np.isfinite(taus)]
    p, tau = sign_test(taus), median(taus)
    verdict: Verdict = "inconclusive"
    if not len(taus):
        verdict = "vacuous"
    elif p < level:
        verdict = "supported" if tau > 0 else "contradicted"
    low, high = exact_interval(taus, 1 - level)
    numbers = {"kendall_tau": tau, "kendall_tau_low": low, "kendall_tau_high": high}
    gains = ", ".join(f"{gain:g}" for gain in sorted(design.doses.values()))
    return Finding(
        f"dose–response: over skip gains {gains} a better {NAMES[mediator]} goes with faster training",
        verdict,
        {**numbers, "p_sign": p, "pairs": float(len(taus)), "missing": float(missing)},
    )


def dose_table(tables: Experiment, design: Design, mediator: str, rates: Mapping[str, float]) -> pd.DataFrame:
    """Conditioning and slowness by skip gain and trial: columns ``gain, trial, mediator, speed``.

    Args:
        tables: The experiment.
        design: Its doses.
        mediator: The measure of conditioning.
        rates: Learning rate of each arm.
    """
    rows = run_table(tables, design, mediator, rates)
    rows = rows[rows["arm"].isin(design.doses)].assign(gain=lambda frame: frame["arm"].map(design.doses))
    with np.errstate(over="ignore"):
        return rows.assign(mediator=np.exp(rows["mediator"]), speed=np.exp(rows["speed"]))[
            ["gain", "trial", "mediator", "speed"]
        ]
