"""All measures of the initial state, ranked by how well each predicts the speed of arms left out; none decides."""

from typing import Final

import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.mechanism.design import AtRate
from skip_conditioning.experiments.claims.statistics.prediction import COLUMNS, rank_measures
from skip_conditioning.experiments.claims.verdict.outcome import Finding, Verdict
from skip_conditioning.experiments.claims.verdict.wording import words

#: Columns of the run table that are no measures of what a run starts from.
_OTHERS: Final = ("rate", "arm", "trial", "log_steps", "reached", "diverged", "final_loss")
#: Number of measures in the report; the table has all.
_SHOWN: Final = 6
#: Their numbers, in the order of the report.
_REPORTED: Final = ("skill", "skill_low", "skill_high", "p_corrected", "slope")


def rank_initial_states(runs: pd.DataFrame, rate: AtRate, seed: int) -> pd.DataFrame:
    """All numeric columns of the run table by how well they predict the speed of arms left out.

    Args:
        runs: From ``run_table``.
        rate: At which rates; ``lr`` and the rate times the sharpness are measures too.
        seed: Of bootstrap and permutations.

    Returns:
        The columns of ``prediction.rank_measures``; no rows if nothing can be predicted.
    """
    rows = runs[runs["rate"] == rate.value].set_index(["arm", "trial"])
    measures = rows.drop(columns=[name for name in _OTHERS if name in rows]).select_dtypes("number")
    if "sharpness" in measures:
        measures = measures.assign(rate_times_sharpness=measures["lr"] * measures["sharpness"])
    try:
        return rank_measures(measures.rename(columns=words), rows["log_steps"], seed=seed)
    except InputError:  # all runs equally fast, say
        return pd.DataFrame(columns=["measure", *COLUMNS, "note"])


def ranking_findings(ranking: pd.DataFrame, rate: AtRate, level: float) -> list[Finding]:
    """The best measures as findings, supported if significantly better than none after the correction for all.

    Args:
        ranking: From ``rank_initial_states``.
        rate: At which rates.
        level: Of the corrected p value.
    """
    judged = ranking[ranking["skill"].notna()]
    return [
        Finding(
            f"predicts speed across arms, {rate.words}, rank {rank} of {len(judged)}: {row['measure']}",
            Verdict.SUPPORTED if row["p_corrected"] < level else Verdict.UNDECIDED,
            {name: float(row[name]) for name in _REPORTED},
            note="skill is R² on arms left out, of a linear fit of ranks",
            decides=False,
        )
        for rank, row in enumerate(judged.head(_SHOWN).to_dict("records"), 1)
    ]
