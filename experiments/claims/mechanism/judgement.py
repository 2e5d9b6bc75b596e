"""One experiment on the mechanism, judged whole: its comparisons, dose–response, mediation, ranking of measures.

All tables that the findings rest on are written beside the figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, clear_disk_errors
from skip_conditioning.experiments.claims.mechanism.comparisons import (
    BETTER,
    SENSES,
    Comparison,
    Design,
    Effects,
    dose_response,
    dose_table,
    factorial_table,
    verdict_of,
)
from skip_conditioning.experiments.claims.mechanism.learning_rates import (
    after_pilots,
    best_rates,
    check_balanced,
    learning_rate_sweep,
)
from skip_conditioning.experiments.claims.mechanism.secondary import (
    at_each_rate,
    best_measure,
    partial,
    ranking_findings,
    ranking_of,
)
from skip_conditioning.experiments.claims.statistics.mediation import mediation, sensitivity
from skip_conditioning.experiments.claims.verdict.claim import Evidence, Finding, Rule, Verdict
from skip_conditioning.experiments.claims.verdict.presentation import words
from skip_conditioning.experiments.theory.report import write_table
from skip_conditioning.figures.dose_response import dose_response as draw_doses
from skip_conditioning.figures.drawing.errors import NothingToDrawError
from skip_conditioning.figures.drawing.saving import save
from skip_conditioning.figures.intervention_effects import intervention_effects
from skip_conditioning.figures.learning_rate_sweep import learning_rate_sweep as draw_sweep
from skip_conditioning.figures.measure_ranking import measure_ranking
from skip_conditioning.figures.mediation_sensitivity import mediation_sensitivity

#: Correlations of errors in the figure of sensitivity.
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
        rule: Its level is shared by the senses, and by comparisons, dose–response and mediation of each.
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
    effects = Effects(compared, design)
    by_sense = [_sense(effects, sense, rates, rule, figures, evidence.seed) for sense in design.senses]
    sweep = learning_rate_sweep(compared, design.speed)
    sweep["is_best"] = [rates[arm] == lr for arm, lr in zip(sweep["arm"], sweep["lr"], strict=True)]
    figures.keep("learning_rates", sweep, draw_sweep, measure=words(design.speed))
    ranking = ranking_of(compared, design, rates, evidence.seed)
    figures.keep("measure_ranking", ranking, measure_ranking)
    beside = [finding for one in by_sense for finding in one.beside] + ranking_findings(ranking, rule.level)
    beside.append(_bracketed(rates, sorted(sweep["lr"].unique())))
    return Judged(
        {sense: one.verdict for sense, one in zip(design.senses, by_sense, strict=True)},
        tuple(finding for one in by_sense for finding in one.findings),
        tuple(beside),
        f"{'; '.join(one.summary for one in by_sense)}. {best_measure(ranking)}".strip(),
        tuple(figures.drawn),
    )


@dataclass(frozen=True)
class _Sense:
    """What became of one sense of conditioning in one experiment; as ``Judged``."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    beside: tuple[Finding, ...]
    summary: str


def _sense(
    effects: Effects, sense: str, rates: Mapping[str, float], rule: Rule, figures: "_Figures", seed: int
) -> _Sense:
    tables, design = effects.tables, effects.design
    share = replace(rule, level=rule.level / design.shares)
    comparisons = effects.compare(sense, rates, share, seed)
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
        others.append(dose_response(tables, design, sense, rates, share.level))
        figures.keep(f"{sense}_doses", dose_table(tables, design, sense, rates), draw_doses, mediator=SENSES[sense])
    if design.factorial:
        others.append(_mediation(factorial_table(tables, design, sense, rates), design, sense, share, figures, seed))
    verdict = verdict_of(comparisons, others)
    beside = (*at_each_rate(effects, sense, share, seed), partial(tables, design, sense, seed))
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


def _mediation(runs: pd.DataFrame, design: Design, sense: str, rule: Rule, figures: "_Figures", seed: int) -> Finding:
    """How much of the skip's effect passes through conditioning; vacuous where that cannot be told."""
    what = f"mediation: more than {100 * design.share:g} % of the skip's effect on speed passes through {SENSES[sense]}"
    try:
        found = mediation(runs, seed=seed, confidence=1 - rule.level)
        curve = sensitivity(runs, _RHO)
    except InputError as error:  # conditioning that was not measured in every run, say
        return Finding(what, "vacuous", {}, str(error))
    figures.keep(f"{sense}_mediation_sensitivity", curve, mediation_sensitivity, total=found.total)
    verdict: Verdict = "inconclusive"
    if found.total_low <= 0 <= found.total_high:
        verdict = "vacuous"
    elif found.share_low > design.share:
        verdict = "supported"
    elif found.share_high < design.share:
        verdict = "contradicted"
    names = ("share", "total", "direct", "indirect")
    numbers = {f"{name}{end}": getattr(found, f"{name}{end}") for name in names for end in ("", "_low", "_high")}
    if verdict == "vacuous":  # a share of nothing
        numbers = {name: value for name, value in numbers.items() if not name.startswith("share")}
    numbers |= {"p_indirect": found.p_indirect, "rho_zero": found.rho_zero, "runs": float(found.runs)}
    numbers |= {"diverged": float(found.diverged)}
    return Finding(what, verdict, numbers, found.note)


def _bracketed(rates: Mapping[str, float], tried: Sequence[float]) -> Finding:
    """Each arm's learning rate, and whether the sweep ends there, so that a better one may lie outside."""
    inside = [arm for arm, lr in rates.items() if tried[0] < lr < tried[-1]]
    chosen = ", ".join(f"{arm} {lr:g}" for arm, lr in rates.items())
    verdict: Verdict = "supported" if len(inside) == len(rates) else "inconclusive"
    return Finding(
        f"each arm's best learning rate lies inside the sweep, from {tried[0]:g} to {tried[-1]:g}",
        verdict if len(tried) > 1 else "vacuous",
        {"inside": float(len(inside)), "arms": float(len(rates))},
        f"chosen: {chosen}",
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
