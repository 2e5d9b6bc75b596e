"""Secondary findings on the mechanism, for information: each learning rate, confounders, other measures."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.mechanism.conditioning_measures import conditioning_measures
from skip_conditioning.experiments.claims.mechanism.design import MEDIATORS, Design
from skip_conditioning.experiments.claims.mechanism.dose_response import run_table
from skip_conditioning.experiments.claims.mechanism.interventions import Effects, mechanism_verdict
from skip_conditioning.experiments.claims.mechanism.learning_rates import at_rates
from skip_conditioning.experiments.claims.statistics.partial_correlation import partial_correlation
from skip_conditioning.experiments.claims.statistics.prediction import COLUMNS, rank_measures
from skip_conditioning.experiments.claims.verdict.claim import DecisionRule, Finding, Verdict
from skip_conditioning.experiments.claims.verdict.formatting import SYMBOLS, p_value
from skip_conditioning.experiments.claims.verdict.run_measures import MEASURES, NAMES

#: Number of measures in the report; the table has all.
_SHOWN = 5


def findings_at_each_rate(effects: Effects, mediator: str, rule: DecisionRule, seed: int) -> list[Finding]:
    """The comparisons repeated at every learning rate, the same for all arms: the number with each verdict.

    Args:
        effects: Of the experiment.
        mediator: The measure of conditioning.
        rule: Fixed beforehand.
        seed: Of the bootstrap.
    """
    findings = []
    for lr in sorted(effects.tables.runs["lr"].astype(float).unique()):
        outcomes = effects.compare(mediator, dict.fromkeys(effects.design.arms, float(lr)), rule, seed)
        verdicts = [outcome.finding.verdict for outcome in outcomes]
        counts = {str(name): float(verdicts.count(name)) for name in SYMBOLS}
        against = [f"{one.arm} against {one.other}" for one in outcomes if one.finding.verdict == "contradicted"]
        verdict = mechanism_verdict(outcomes, [])
        note = f"contradicted: {', '.join(against)}" if against else ""
        findings.append(Finding(f"{NAMES[mediator]}, all arms at learning rate {lr:g}", verdict, counts, note))
    return findings


def partial_correlation_finding(tables: Experiment, design: Design, mediator: str, seed: int) -> Finding:
    """Correlation of conditioning and slowness over all runs, given learning rate, output scale and gradient norm.

    Args:
        tables: The experiment, without its pilot trials.
        design: Its arms and its measure of speed.
        mediator: The measure of conditioning.
        seed: Of the bootstrap.
    """
    runs = tables.runs
    rows = pd.concat(
        [
            run_table(tables, design, mediator, dict.fromkeys(design.arms, lr))
            for lr in runs["lr"].astype(float).unique()
        ],
        ignore_index=True,
    )
    start = tables.metrics[(tables.metrics["split"] == "train") & (tables.metrics["step"] == 0)]
    norms = start.drop_duplicates("run_id", keep="last").set_index("run_id")["grad_norm"]
    columns: dict[str, Any] = {
        "learning rate": rows["lr"],
        "‖J‖_F": _initial(tables, "sigma_rms").reindex(rows["run_id"]).to_numpy(float),
        "gradient norm": norms.reindex(rows["run_id"]).to_numpy(float),
    }
    given = rows.assign(**columns)
    whole = given.dropna(subset=["mediator", *columns])
    sign = 1 if MEDIATORS[mediator] == "smaller" else -1
    what = (
        f"runs of worse {NAMES[mediator]} are slower, given {', '.join(columns)} (partial rank correlation, all runs)"
    )
    try:
        value, low, high = partial_correlation(
            whole.assign(mediator=sign * whole["mediator"]), "mediator", "speed", list(columns), seed=seed
        )
    except InputError as error:
        return Finding(what, "vacuous", {}, str(error))
    verdict: Verdict = "supported" if low > 0 else "contradicted" if high < 0 else "inconclusive"
    left_out = f"; {len(given) - len(whole)} runs without a measure left out" if len(whole) < len(given) else ""
    return Finding(
        what,
        verdict,
        {"partial_correlation": value, "partial_correlation_low": low, "partial_correlation_high": high},
        f"interval over trials, for these arms{left_out}",
    )


def _initial(tables: Experiment, statistic: str) -> pd.Series:
    spectra = tables.spectra
    rows = spectra[spectra["step"] == 0].drop_duplicates("run_id")  # each run's first measured map
    return pd.to_numeric(rows.set_index("run_id")[statistic], errors="coerce").astype(float)


def rank_conditioning_measures(
    tables: Experiment, design: Design, rates: Mapping[str, float], seed: int
) -> pd.DataFrame:
    """All measures of conditioning by how well they predict the speed of arms left out.

    Args:
        tables: The experiment, without its pilot trials.
        design: Its measure of speed.
        rates: Learning rate of each arm.
        seed: Of bootstrap and permutations.

    Returns:
        The columns of ``prediction.rank_measures``; no rows if nothing can be predicted.
    """
    chosen = at_rates(tables, dict(rates))
    index = pd.MultiIndex.from_arrays([chosen.runs["arm"], chosen.runs["trial"].astype(int)], names=["arm", "trial"])
    measures = conditioning_measures(chosen).reindex(chosen.runs["run_id"]).set_axis(index)
    speed = MEASURES[design.speed](chosen).reindex(chosen.runs["run_id"]).set_axis(index)
    try:
        return rank_measures(measures, speed, seed=seed)
    except InputError:  # all runs equally fast, say
        return pd.DataFrame(columns=["measure", *COLUMNS, "note"])


def ranking_findings(ranking: pd.DataFrame, level: float) -> list[Finding]:
    """The best measures as findings, supported if significantly better than none after the correction for all."""
    findings = []
    judged = ranking[ranking["skill"].notna()]
    for rank, row in enumerate(judged.head(_SHOWN).to_dict("records"), 1):
        names = ("skill", "skill_low", "skill_high", "skill_seed_out", "p_corrected", "first_share", "behind")
        ends = ("behind_low", "behind_high", "slope")
        findings.append(
            Finding(
                f"predicts speed across arms, rank {rank} of {len(judged)}: {row['measure']}",
                "supported" if row["p_corrected"] < level else "inconclusive",
                {name: float(row[name]) for name in (*names, *ends)},
                "skill is R² on arms left out, of a linear fit of ranks",
            )
        )
    return findings


def best_measure_sentence(ranking: pd.DataFrame) -> str:
    """The best measure in a sentence; empty if none was ranked."""
    judged = ranking[ranking["skill"].notna()]
    if judged.empty:
        return ""
    best = judged.iloc[0]
    return (
        f"Of {len(judged)} measures {best['measure']} predicts the speed of arms left out best (R² of ranks "
        f"{best['skill']:.2f}; p, corrected for all: {p_value(float(best['p_corrected']))}). "
    )
