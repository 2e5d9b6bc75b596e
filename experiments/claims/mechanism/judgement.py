"""The verdict on the mechanism in one experiment: comparisons, dose–response, mediation, ranking of measures.

The tables that the findings rest on are written into the folder of the figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, clear_disk_errors
from skip_conditioning.experiments.claims.mechanism.design import MEDIATORS, Design
from skip_conditioning.experiments.claims.mechanism.dose_response import dose_response, dose_table
from skip_conditioning.experiments.claims.mechanism.interventions import (
    Effects,
    Outcome,
    findings_at_each_rate,
    mechanism_verdict,
)
from skip_conditioning.experiments.claims.mechanism.learning_rates import (
    after_pilots,
    best_rates,
    learning_rate_sweep,
    run_table,
)
from skip_conditioning.experiments.claims.mechanism.measure_ranking import (
    best_measure_sentence,
    partial_correlation_finding,
    rank_conditioning_measures,
    ranking_findings,
)
from skip_conditioning.experiments.claims.statistics.mediation import mediation, sensitivity
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs, DecisionRule, Finding, Verdict
from skip_conditioning.experiments.claims.verdict.formatting import words
from skip_conditioning.experiments.claims.verdict.pairs import check_complete
from skip_conditioning.experiments.claims.verdict.run_measures import NAMES
from skip_conditioning.experiments.theory.experiment import write_table
from skip_conditioning.figures.dose_response import dose_response as draw_doses
from skip_conditioning.figures.drawing.saving import save_drawable
from skip_conditioning.figures.intervention_effects import intervention_effects
from skip_conditioning.figures.learning_rate_sweep import learning_rate_sweep as draw_sweep
from skip_conditioning.figures.measure_ranking import measure_ranking
from skip_conditioning.figures.mediation_sensitivity import mediation_sensitivity

#: Correlations of errors in the figure of the mediation's sensitivity.
_RHO = np.linspace(-0.95, 0.95, 77)


@dataclass(frozen=True)
class ExperimentJudgement:
    """The verdicts on the mechanism in one experiment.

    Attributes:
        verdicts: By mediator.
        findings: What the verdicts rest on.
        secondary: Findings for information, which do not decide.
        summary: One or two sentences.
        figures: SVG files.
    """

    verdicts: Mapping[str, Verdict]
    findings: tuple[Finding, ...]
    secondary: tuple[Finding, ...]
    summary: str
    figures: tuple[Path, ...]


def judge_experiment(
    tables: Experiment, design: Design, pilots: int, rule: DecisionRule, inputs: ClaimInputs
) -> ExperimentJudgement:
    """The verdicts on the mechanism from one experiment.

    Args:
        tables: All runs of all arms, learning rates and trials.
        design: What is compared.
        pilots: Number of pilot trials, the first ones, which choose the learning rates and are not compared.
        rule: Its level is shared by the mediators, and by comparisons, dose–response and mediation of each.
        inputs: The folder for tables and figures, and the seed of bootstraps and permutations.

    Raises:
        InputError: Runs are missing, or there are too few trials.
    """
    check_complete(tables, design.arms)
    with clear_disk_errors(inputs.directory):
        inputs.directory.mkdir(parents=True, exist_ok=True)
    rates = best_rates(tables, design.speed, pilots)
    compared = after_pilots(tables, pilots)
    if not len(compared.runs):
        raise InputError(f"all {pilots} trials choose learning rates and none is left to compare; give more --trials")
    effects = Effects(compared, design)
    each = [_judge_mediator(effects, mediator, rates, rule, inputs) for mediator in design.mediators]
    sweep = learning_rate_sweep(compared, design.speed)
    sweep["is_best"] = [rates[arm] == lr for arm, lr in zip(sweep["arm"], sweep["lr"], strict=True)]
    ranking = rank_conditioning_measures(compared, design, rates, inputs.seed)
    secondary = [finding for judgement in each for finding in judgement.secondary]
    secondary += [*ranking_findings(ranking, rule.level), _rates_inside_sweep(rates, sorted(sweep["lr"].unique()))]
    return ExperimentJudgement(
        {mediator: verdict for judgement in each for mediator, verdict in judgement.verdicts.items()},
        tuple(finding for judgement in each for finding in judgement.findings),
        tuple(secondary),
        f"{'; '.join(judgement.summary for judgement in each)}. {best_measure_sentence(ranking)}".strip(),
        (
            *(path for judgement in each for path in judgement.figures),
            *_keep(inputs, "learning_rates", sweep, draw_sweep, measure=words(design.speed)),
            *_keep(inputs, "measure_ranking", ranking, measure_ranking),
        ),
    )


def _judge_mediator(
    effects: Effects, mediator: str, rates: Mapping[str, float], rule: DecisionRule, inputs: ClaimInputs
) -> ExperimentJudgement:
    """What ``judge_experiment`` returns, for one mediator alone."""
    tables, design = effects.tables, effects.design
    share = replace(rule, level=rule.level / design.shares)
    outcomes = effects.compare(mediator, rates, share, inputs.seed)
    others: list[Finding] = []
    figures = _keep(
        inputs, f"{mediator}_interventions", _effect_table(design, outcomes), intervention_effects,
        mediator=NAMES[mediator], equivalent=rule.equivalence_margin,
        smaller_is_better=MEDIATORS[mediator] == "smaller",
    )  # fmt: skip
    if design.doses:
        others.append(dose_response(tables, design, mediator, rates, share.level))
        doses = dose_table(tables, design, mediator, rates)
        figures += _keep(inputs, f"{mediator}_doses", doses, draw_doses, mediator=NAMES[mediator])
    if design.factorial:
        runs = _factorial_table(tables, design, mediator, rates)
        finding, drawn = _mediation(runs, design, mediator, share, inputs)
        others.append(finding)
        figures += drawn
    verdict = mechanism_verdict(outcomes, others)
    return ExperimentJudgement(
        {mediator: verdict},
        (*(outcome.finding for outcome in outcomes), *others),
        (
            *findings_at_each_rate(effects, mediator, share, inputs.seed),
            partial_correlation_finding(tables, design, mediator, inputs.seed),
        ),
        _summary(mediator, verdict, outcomes, others),
        figures,
    )


def _keep(inputs: ClaimInputs, name: str, table: pd.DataFrame, draw: Any, **options: Any) -> tuple[Path, ...]:
    """Write a table into the claim's folder and draw it, unless there is nothing to draw; returns the figure's path."""
    write_table(table, inputs.directory / f"{name}.parquet")
    return save_drawable(inputs.directory, {name: partial(draw, table, **options)})


def _effect_table(design: Design, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """The arms against the base, as the figure of interventions reads them."""
    rows = []
    for outcome in outcomes:
        if outcome.other != design.base:
            continue
        numbers = outcome.finding.numbers
        rows.append(
            {
                "arm": outcome.arm,
                "kind": design.interventions.get(outcome.arm, "the skip itself"),
                **{f"mediator_{name.removeprefix('ratio_')}": outcome.conditioning[name] for name in _ENDS},
                **{f"speed_{name.removeprefix('ratio_')}": numbers[name] for name in _ENDS},
                "mediator_is_bound": outcome.conditioning["bounded"] > 0,
                "verdict": outcome.finding.verdict,
            }
        )
    return pd.DataFrame(rows)


_ENDS = ("ratio", "ratio_low", "ratio_high")


def _factorial_table(tables: Experiment, design: Design, mediator: str, rates: Mapping[str, float]) -> pd.DataFrame:
    """The runs of the factorial design: as ``run_table``, with ``treated`` (1 with the skip) and ``block``."""
    treated = {arm: position for pair in design.factorial for position, arm in enumerate(pair)}
    block = {arm: number for number, pair in enumerate(design.factorial) for arm in pair}
    rows = run_table(tables, design, mediator, rates)
    rows = rows[rows["arm"].isin(treated)].reset_index(drop=True)
    return rows.assign(treated=rows["arm"].map(treated), block=rows["arm"].map(block))


def _mediation(
    runs: pd.DataFrame, design: Design, mediator: str, rule: DecisionRule, inputs: ClaimInputs
) -> tuple[Finding, tuple[Path, ...]]:
    """The share of the skip's effect that passes through the mediator, vacuous if unknown; and its figure."""
    what = (
        f"mediation: more than {100 * design.share:g} % of the skip's effect on speed passes through {NAMES[mediator]}"
    )
    try:
        result = mediation(runs, seed=inputs.seed, confidence=1 - rule.level)
        curve = sensitivity(runs, _RHO)
    except InputError as error:  # conditioning that was not measured in every run, say
        return Finding(what, "vacuous", {}, str(error)), ()
    name = f"{mediator}_mediation_sensitivity"
    figures = _keep(inputs, name, curve, mediation_sensitivity, total=result.total)
    verdict: Verdict = "inconclusive"
    if result.total_low <= 0 <= result.total_high:
        verdict = "vacuous"
    elif result.share_low > design.share:
        verdict = "supported"
    elif result.share_high < design.share:
        verdict = "contradicted"
    names = ("share", "total", "direct", "indirect")
    numbers = {f"{name}{end}": getattr(result, f"{name}{end}") for name in names for end in ("", "_low", "_high")}
    if verdict == "vacuous":  # a share of nothing
        numbers = {name: value for name, value in numbers.items() if not name.startswith("share")}
    numbers |= {"p_indirect": result.p_indirect, "rho_zero": result.rho_zero, "runs": float(result.runs)}
    numbers |= {"diverged": float(result.diverged)}
    return Finding(what, verdict, numbers, result.note), figures


def _rates_inside_sweep(rates: Mapping[str, float], tried: Sequence[float]) -> Finding:
    """Each arm's learning rate, and whether it is at an end of the sweep, so that a better one may lie outside."""
    inside = [arm for arm, lr in rates.items() if tried[0] < lr < tried[-1]]
    chosen = ", ".join(f"{arm} {lr:g}" for arm, lr in rates.items())
    verdict: Verdict = "supported" if len(inside) == len(rates) else "inconclusive"
    return Finding(
        f"each arm's best learning rate lies inside the sweep, from {tried[0]:g} to {tried[-1]:g}",
        verdict if len(tried) > 1 else "vacuous",
        {"inside": float(len(inside)), "arms": float(len(rates))},
        f"chosen: {chosen}",
    )


def _summary(mediator: str, verdict: Verdict, outcomes: Sequence[Outcome], others: Sequence[Finding]) -> str:
    premise, *rest = outcomes
    if premise.finding.verdict != "supported":
        return f"{NAMES[mediator]}: {verdict}, because of {premise.finding.what}: {premise.finding.verdict}"
    verdicts = [outcome.finding.verdict for outcome in rest]
    kinds = "".join(f", {finding.what.partition(':')[0]} {finding.verdict}" for finding in others)
    return (
        f"{NAMES[mediator]}: {verdict} ({verdicts.count('supported')} of {len(rest)} interventions as predicted, "
        f"{verdicts.count('contradicted')} not{kinds})"
    )
