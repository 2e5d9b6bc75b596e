"""Do conditioning and speed go together over the doses of the skip? Nothing here decides."""

import numpy as np
import pandas as pd
from scipy import stats

from skip_conditioning.experiments.claims.mechanism.design import AtRate, Design
from skip_conditioning.experiments.claims.mechanism.run_table import matrix
from skip_conditioning.experiments.claims.statistics.median_intervals import median, median_interval, sign_test
from skip_conditioning.experiments.claims.verdict.outcome import Direction, Finding, Reason, Verdict
from skip_conditioning.experiments.claims.verdict.wording import measure_name


def dose_response(runs: pd.DataFrame, rate: AtRate, design: Design, level: float) -> Finding:
    """Whether conditioning and speed go together over the doses of the skip, trial by trial.

    In each trial Kendall's τ between conditioning and slowness over the doses; the sign test decides whether its median
    is positive.

    Args:
        runs: From ``run_table``.
        rate: At which rates.
        design: Its doses.
        level: Of the test.
    """
    doses = design.doses or {}
    x = matrix(runs, rate, design.conditioning, log=True).reindex(list(doses))
    y = matrix(runs, rate, "log_steps").reindex(list(doses))
    sign = 1 if design.better is Direction.SMALLER else -1
    taus = np.array([stats.kendalltau(sign * x[trial], y[trial]).statistic for trial in x.columns])
    missing, taus = int((~np.isfinite(taus)).sum()), taus[np.isfinite(taus)]
    low, high = median_interval(taus, taus, 1 - level)
    verdict = Verdict.SUPPORTED if low > 0 else Verdict.REVERSED if high < 0 else Verdict.UNDECIDED
    numbers = {"kendall_tau": median(taus), "kendall_tau_low": low, "kendall_tau_high": high, "level": 1 - level}
    gains = ", ".join(f"{gain:g}" for gain in sorted(doses.values()))
    return Finding(
        f"dose–response, {rate.words}: over skip gains {gains} a better {measure_name(design.conditioning)} goes with "
        "faster training",
        verdict if len(taus) else Verdict.VACUOUS,
        {**numbers, "p_sign": sign_test(taus, taus), "pairs": float(len(taus)), "missing": float(missing)},
        None if len(taus) else Reason.NOT_MEASURED,
        decides=False,
    )


def dose_table(runs: pd.DataFrame, rate: AtRate, design: Design) -> pd.DataFrame:
    """Conditioning and steps by skip gain and trial: columns ``gain, trial, mediator, speed``.

    Args:
        runs: From ``run_table``.
        rate: At which rates.
        design: Its doses.
    """
    doses = design.doses or {}
    rows = runs[(runs["rate"] == rate.value) & runs["arm"].isin(doses)]
    return pd.DataFrame(
        {
            "gain": rows["arm"].map(doses),
            "trial": rows["trial"],
            "mediator": rows[design.conditioning],
            "speed": np.exp(rows["log_steps"]),
        }
    )
