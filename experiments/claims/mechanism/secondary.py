"""What stands beside the mechanism's tests and decides nothing: each learning rate, confounders, other measures."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.mechanism.comparisons import (
    BETTER,
    SENSES,
    Design,
    Effects,
    run_table,
    verdict_of,
)
from skip_conditioning.experiments.claims.mechanism.features import features
from skip_conditioning.experiments.claims.mechanism.learning_rates import at_rates
from skip_conditioning.experiments.claims.statistics.partial_correlation import partial_correlation
from skip_conditioning.experiments.claims.statistics.prediction import COLUMNS, rank_measures
from skip_conditioning.experiments.claims.verdict.claim import Finding, Rule, Verdict
from skip_conditioning.experiments.claims.verdict.measures import MEASURES
from skip_conditioning.experiments.claims.verdict.presentation import SYMBOLS, p_value

#: Measures in the report; the table has all.
_SHOWN = 5


def at_each_rate(effects: Effects, sense: str, rule: Rule, seed: int) -> list[Finding]:
    """The comparisons once more at every learning rate, the same for all arms: how many came out how."""
    findings = []
    for lr in sorted(effects.tables.runs["lr"].astype(float).unique()):
        comparisons = effects.compare(sense, dict.fromkeys(effects.design.arms, float(lr)), rule, seed)
        verdicts = [one.finding.verdict for one in comparisons]
        counts = {str(name): float(verdicts.count(name)) for name in SYMBOLS}
        against = [f"{one.arm} against {one.other}" for one in comparisons if one.finding.verdict == "contradicted"]
        verdict = verdict_of(comparisons, [])
        note = f"against: {', '.join(against)}" if against else ""
        findings.append(Finding(f"{SENSES[sense]}, all arms at learning rate {lr:g}", verdict, counts, note))
    return findings


def partial(tables: Experiment, design: Design, sense: str, seed: int) -> Finding:
    """Conditioning against slowness over all runs, given learning rate, output scale and gradient norm."""
    runs = tables.runs
    rows = pd.concat(
        [run_table(tables, design, sense, dict.fromkeys(design.arms, lr)) for lr in runs["lr"].astype(float).unique()],
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
    sign = 1 if BETTER[sense] == "smaller" else -1
    what = f"runs of worse {SENSES[sense]} are slower, given {', '.join(columns)} (partial rank correlation, all runs)"
    try:
        value, low, high = partial_correlation(
            whole.assign(mediator=sign * whole["mediator"]), "mediator", "speed", list(columns), seed=seed
        )
    except InputError as error:
        return Finding(what, "vacuous", {}, str(error))
    verdict: Verdict = "supported" if low > 0 else "contradicted" if high < 0 else "inconclusive"
    left_out = f"; {len(given) - len(whole)} runs without a measure left out" if len(whole) < len(given) else ""
    return Finding(
        f"runs of worse {SENSES[sense]} are slower, given {', '.join(columns)} (partial rank correlation, all runs)",
        verdict,
        {"partial_correlation": value, "partial_correlation_low": low, "partial_correlation_high": high},
        f"interval over trials, the arms being fixed{left_out}",
    )


def _initial(tables: Experiment, statistic: str) -> pd.Series:
    spectra = tables.spectra
    rows = spectra[spectra["step"] == 0].drop_duplicates("run_id")  # each run's first measured map
    return pd.to_numeric(rows.set_index("run_id")[statistic], errors="coerce").astype(float)


def ranking_of(tables: Experiment, design: Design, rates: Mapping[str, float], seed: int) -> pd.DataFrame:
    """All measures of conditioning by how well they predict the speed of arms left out; without rows if none can be.

    Columns as those of ``prediction.rank_measures``.
    """
    chosen = at_rates(tables, dict(rates))
    places = pd.MultiIndex.from_arrays([chosen.runs["arm"], chosen.runs["trial"].astype(int)], names=["arm", "trial"])
    measures = features(chosen).reindex(chosen.runs["run_id"]).set_axis(places)
    speed = MEASURES[design.speed](chosen).reindex(chosen.runs["run_id"]).set_axis(places)
    try:
        return rank_measures(measures, speed, seed=seed)
    except InputError:  # all runs equally fast, say
        return pd.DataFrame(columns=["measure", *COLUMNS, "note"])


def ranking_findings(ranking: pd.DataFrame, level: float) -> list[Finding]:
    """The best measures, and how many were tried."""
    findings = []
    judged = ranking[ranking["skill"].notna()]
    for place, row in enumerate(judged.head(_SHOWN).to_dict("records"), 1):
        names = ("skill", "skill_low", "skill_high", "skill_seed_out", "p_corrected", "first_share", "behind")
        ends = ("behind_low", "behind_high", "slope")
        findings.append(
            Finding(
                f"predicts speed across arms, place {place} of {len(judged)}: {row['measure']}",
                "supported" if row["p_corrected"] < level else "inconclusive",
                {name: float(row[name]) for name in (*names, *ends)},
                "skill is R² of arms left out, over a linear fit of ranks",
            )
        )
    return findings


def best_measure(ranking: pd.DataFrame) -> str:
    """The winner in a sentence; none without one."""
    judged = ranking[ranking["skill"].notna()]
    if judged.empty:
        return ""
    best = judged.iloc[0]
    return (
        f"Of {len(judged)} measures {best['measure']} predicts the speed of arms left out best (R² of ranks "
        f"{best['skill']:.2f}, p {p_value(float(best['p_corrected']))} corrected for all). "
    )
