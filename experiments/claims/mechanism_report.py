"""One experiment on the mechanism, judged whole: its comparisons, dose–response, mediation, ranking of measures.

All tables that the findings rest on are written beside the figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diagnostics.errors import InputError
from diagnostics.tables import Experiment, clear_disk_errors
from experiments.claims.claim import Finding, Rule, Verdict
from experiments.claims.evidence import Evidence
from experiments.claims.features import features
from experiments.claims.learning_rates import after_pilots, at_rates, best_rates, check_balanced, learning_rate_sweep
from experiments.claims.measures import speed_log
from experiments.claims.mechanism import (
    BETTER,
    SENSES,
    Comparison,
    Design,
    compare,
    differences,
    dose_response,
    dose_table,
    factorial_table,
    run_table,
    verdict_of,
)
from experiments.claims.mediation import Mediation, mediation, sensitivity
from experiments.claims.paired import Differences
from experiments.claims.partial_correlation import partial_correlation
from experiments.claims.prediction import rank_measures
from experiments.claims.verdicts import SYMBOLS, p_value, words
from experiments.theory.setting import write_table
from figures.dose_response import dose_response as draw_doses
from figures.errors import NothingToDrawError
from figures.intervention_effects import intervention_effects
from figures.learning_rate_sweep import learning_rate_sweep as draw_sweep
from figures.measure_ranking import measure_ranking
from figures.mediation_sensitivity import mediation_sensitivity
from figures.saving import save

#: Measures in the report; the table has all.
_SHOWN = 5
_RHO = np.linspace(-0.95, 0.95, 77)


@dataclass(frozen=True)
class Judged:
    """What became of one experiment.

    Attributes:
        verdicts: On the mechanism in it, by sense of conditioning.
        findings: What the verdicts rest on.
        beside: What is shown and decides nothing.
        summary: One or two sentences.
        figures: SVG files.
    """

    verdicts: Mapping[str, Verdict]
    findings: tuple[Finding, ...]
    beside: tuple[Finding, ...]
    summary: str
    figures: tuple[Path, ...]


def judge_experiment(tables: Experiment, design: Design, pilots: int, rule: Rule, evidence: Evidence) -> Judged:
    """The verdict on the mechanism from one experiment.

    Args:
        tables: All runs of all arms, learning rates and trials.
        design: What is compared.
        pilots: The first so many trials choose the learning rates and are not compared.
        rule: Its level is shared by the comparisons, the dose–response and the mediation.
        evidence: The folder for tables and figures, and the seed of bootstraps and permutations.

    Raises:
        InputError: Runs are missing, or there are too few trials.
    """
    check_balanced(tables, design.arms)
    with clear_disk_errors(evidence.directory):
        evidence.directory.mkdir(parents=True, exist_ok=True)
    rates = best_rates(tables, design.speed, pilots)
    compared = after_pilots(tables, pilots)
    if not len(compared.runs):
        raise InputError(f"all of {pilots} trials choose learning rates and none is left to compare; give more --seeds")
    figures = _Figures(evidence.directory)
    effects = _Effects(compared, design)
    by_sense = [_sense(effects, sense, rates, rule, figures, evidence.seed) for sense in design.senses]
    sweep = learning_rate_sweep(compared, design.speed)
    sweep["is_best"] = [rates[arm] == lr for arm, lr in zip(sweep["arm"], sweep["lr"], strict=True)]
    figures.keep("learning_rates", sweep, draw_sweep, measure=words(design.speed))
    ranking = _ranking(compared, design, rates, evidence.seed)
    figures.keep("measure_ranking", ranking, measure_ranking)
    beside = [finding for one in by_sense for finding in one.beside] + _ranking_findings(ranking, rule.level)
    return Judged(
        {sense: one.verdict for sense, one in zip(design.senses, by_sense, strict=True)},
        tuple(finding for one in by_sense for finding in one.findings),
        tuple(beside),
        f"{'; '.join(one.summary for one in by_sense)}. {_best_measure(ranking)}"
        f"Learning rates: {', '.join(f'{arm} {lr:g}' for arm, lr in rates.items())}.",
        tuple(figures.drawn),
    )


@dataclass(frozen=True)
class _Sense:
    """What became of one sense of conditioning in one experiment; as ``Judged``."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    beside: tuple[Finding, ...]
    summary: str


class _Effects:
    """Log-ratios of an experiment's comparisons; those of speed are the same for all senses of conditioning."""

    def __init__(self, tables: Experiment, design: Design) -> None:
        self.tables, self.design = tables, design
        self._speed: dict[tuple[float, ...], list[Differences]] = {}

    def compare(self, sense: str, rates: Mapping[str, float], rule: Rule, seed: int) -> list[Comparison]:
        """All comparisons, each arm at its learning rate."""
        conditioning = differences(self.tables, self.design, sense, rates)
        key = tuple(rates[arm] for arm in self.design.arms)
        if key not in self._speed:
            self._speed[key] = differences(self.tables, self.design, self.design.speed, rates)
        return compare(self.design, sense, conditioning, self._speed[key], rule, seed)


def _sense(
    effects: _Effects, sense: str, rates: Mapping[str, float], rule: Rule, figures: "_Figures", seed: int
) -> _Sense:
    tables, design = effects.tables, effects.design
    third = replace(rule, level=rule.level / len(design.senses) / 3)
    comparisons = effects.compare(sense, rates, third, seed)
    others = []
    figures.keep(
        f"{sense}_interventions",
        _effects(design, comparisons),
        intervention_effects,
        mediator=SENSES[sense],
        equivalent=rule.equivalent,
        smaller_is_better=BETTER[sense] == "smaller",
    )
    if design.doses:
        others.append(dose_response(tables, design, sense, rates, third.level))
        figures.keep(f"{sense}_doses", dose_table(tables, design, sense, rates), draw_doses, mediator=SENSES[sense])
    if design.factorial:
        factorial = factorial_table(tables, design, sense, rates)
        found = mediation(factorial, seed=seed, confidence=1 - third.level)
        others.append(_mediation_finding(found, sense, design.share))
        curve = sensitivity(factorial, _RHO)
        figures.keep(f"{sense}_mediation_sensitivity", curve, mediation_sensitivity, total=found.total)
    verdict = verdict_of(comparisons, others)
    beside = (*_at_each_rate(effects, sense, third, seed), _partial(tables, design, sense, seed))
    findings = (*(one.finding for one in comparisons), *others)
    return _Sense(verdict, findings, beside, _summary(sense, verdict, comparisons, others))


class _Figures:
    """Tables and the figures drawn from them, in one folder; a figure with nothing to draw is left out."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.drawn: list[Path] = []

    def keep(self, name: str, table: pd.DataFrame, draw: Any, **options: Any) -> None:
        """Write a table and draw it."""
        write_table(table, self.directory / f"{name}.parquet")
        try:
            figure = draw(table, **options)
        except NothingToDrawError:
            return
        self.drawn += save(figure, self.directory / name, ["svg"])


def _effects(design: Design, comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """The arms against the base, as the figure of interventions wants them."""
    rows = []
    for one in comparisons:
        if one.other != design.base:
            continue
        numbers = one.finding.numbers
        rows.append(
            {
                "arm": one.arm,
                "kind": design.interventions.get(one.arm, "the skip itself"),
                **{f"mediator_{name.removeprefix('ratio_')}": one.conditioning[name] for name in _ENDS},
                **{f"speed_{name.removeprefix('ratio_')}": numbers[name] for name in _ENDS},
                "mediator_is_bound": one.conditioning["bounded"] > 0,
                "verdict": one.finding.verdict,
            }
        )
    return pd.DataFrame(rows)


_ENDS = ("ratio", "ratio_low", "ratio_high")


def _mediation_finding(found: Mediation, sense: str, share: float) -> Finding:
    verdict: Verdict = "inconclusive"
    if found.total_low <= 0 <= found.total_high:
        verdict = "vacuous"
    elif found.share_low > share:
        verdict = "supported"
    elif found.share_high < share:
        verdict = "contradicted"
    names = ("share", "total", "direct", "indirect")
    numbers = {f"{name}{end}": getattr(found, f"{name}{end}") for name in names for end in ("", "_low", "_high")}
    if verdict == "vacuous":  # a share of nothing
        numbers = {name: value for name, value in numbers.items() if not name.startswith("share")}
    numbers |= {"p_indirect": found.p_indirect, "rho_zero": found.rho_zero, "runs": float(found.runs)}
    numbers |= {"diverged": float(found.diverged)}
    what = f"mediation: more than {100 * share:g} % of the skip's effect on speed passes through the {SENSES[sense]}"
    return Finding(what, verdict, numbers, found.note)


def _at_each_rate(effects: _Effects, sense: str, rule: Rule, seed: int) -> list[Finding]:
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


def _partial(tables: Experiment, design: Design, sense: str, seed: int) -> Finding:
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
    value, low, high = partial_correlation(
        whole.assign(mediator=sign * whole["mediator"]), "mediator", "speed", list(columns), seed=seed
    )
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


def _ranking(tables: Experiment, design: Design, rates: Mapping[str, float], seed: int) -> pd.DataFrame:
    chosen = at_rates(tables, dict(rates))
    places = pd.MultiIndex.from_arrays([chosen.runs["arm"], chosen.runs["trial"].astype(int)], names=["arm", "trial"])
    measures = features(chosen).reindex(chosen.runs["run_id"]).set_axis(places)
    column = {"mean_log_loss": ("auc_log_loss", True)}.get(design.speed, (design.speed, False))
    speed = speed_log(chosen, column[0], is_log=column[1]).reindex(chosen.runs["run_id"]).set_axis(places)
    return rank_measures(measures, speed, seed=seed)


def _ranking_findings(ranking: pd.DataFrame, level: float) -> list[Finding]:
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


def _best_measure(ranking: pd.DataFrame) -> str:
    judged = ranking[ranking["skill"].notna()]
    if judged.empty:
        return ""
    best = judged.iloc[0]
    return (
        f"Of {len(judged)} measures {best['measure']} predicts the speed of arms left out best (R² of ranks "
        f"{best['skill']:.2f}, p {p_value(float(best['p_corrected']))} corrected for all). "
    )


def _summary(sense: str, verdict: Verdict, comparisons: Sequence[Comparison], others: Sequence[Finding]) -> str:
    premise, *rest = comparisons
    if premise.finding.verdict != "supported":
        return f"{SENSES[sense]}: {verdict}, as of {premise.finding.what}: {premise.finding.verdict}"
    verdicts = [one.finding.verdict for one in rest]
    kinds = "".join(f", {finding.what.partition(':')[0]} {finding.verdict}" for finding in others)
    return (
        f"{SENSES[sense]}: {verdict} ({verdicts.count('supported')} of {len(rest)} interventions as predicted, "
        f"{verdicts.count('contradicted')} not{kinds})"
    )
