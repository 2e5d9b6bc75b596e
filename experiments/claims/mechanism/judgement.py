"""The verdict on the mechanism in one experiment: is there something to explain, and what explains it?

The table that all findings rest on, and those of the figures, are written into the claim's folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import clear_disk_errors, write_table
from skip_conditioning.experiments.claims.mechanism.design import CONDITIONING, AtRate, Design
from skip_conditioning.experiments.claims.mechanism.dose_response import dose_response, dose_table
from skip_conditioning.experiments.claims.mechanism.interventions import effect_table, premise
from skip_conditioning.experiments.claims.mechanism.ranking import rank_initial_states, ranking_findings
from skip_conditioning.experiments.claims.mechanism.run_table import matrix, run_table
from skip_conditioning.experiments.claims.statistics.mediation import mediation, over_identification
from skip_conditioning.experiments.claims.statistics.model_comparison import (
    M1,
    ModelComparison,
    Outcome,
    compare_models,
)
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs, DecisionRule, RateSweep
from skip_conditioning.experiments.claims.verdict.outcome import Direction, Finding, Reason, Verdict
from skip_conditioning.experiments.claims.verdict.rate_sweep import at_ends, best_rates, sweep_table, sweep_thresholds
from skip_conditioning.experiments.claims.verdict.wording import measure_name, words
from skip_conditioning.figures.dose_response import dose_response as draw_doses
from skip_conditioning.figures.drawing.saving import save_drawable
from skip_conditioning.figures.intervention_effects import intervention_effects
from skip_conditioning.figures.learning_rate_sweep import learning_rate_sweep as draw_sweep
from skip_conditioning.figures.measure_ranking import measure_ranking

_VERDICTS: Final[Mapping[Outcome, tuple[Verdict, Reason | None]]] = {
    Outcome.BETTER: (Verdict.SUPPORTED, None),
    Outcome.PARTLY: (Verdict.UNDECIDED, Reason.NOT_ALL_BEATEN),
    Outcome.A_RIVAL_BETTER: (Verdict.REVERSED, Reason.RIVAL_BETTER),
    Outcome.OPEN: (Verdict.UNDECIDED, None),
}


def judge_experiment(
    inputs: ClaimInputs, name: str, design: Design, sweep: RateSweep, rule: DecisionRule, *, draws: bool = True
) -> tuple[list[Finding], tuple[Path, ...]]:
    """The findings of one experiment, and its figures.

    Args:
        inputs: Tables of the runs and the pilot runs, initial states, and the folder for tables and figures.
        name: Of the experiment.
        design: What is compared.
        sweep: How learning rates were chosen.
        rule: How the premise is decided.
        draws: Whether to draw figures.

    Returns:
        Two findings that decide, with all arms at one rate and each at its own, and those that do not.

    Raises:
        InputError: Runs or initial states are missing, or an arm's best rate is an end of the grid.
    """
    runs = run_table(inputs, name, design.arms, sweep)
    folder = inputs.directory / name
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_table(runs, folder / "runs.parquet")
    pilots = inputs.pilots[name]
    rates_tried = sweep_table(pilots, sweep_thresholds(pilots, sweep))
    ends = at_ends(best_rates(rates_tried), sweep)
    deciding: list[Finding] = []
    secondary: list[Finding] = []
    tables: dict[str, tuple[pd.DataFrame, Callable[[pd.DataFrame], Figure]]] = {}
    for rate in AtRate:
        grounds = premise(runs, rate, design, rule, name)
        deciding.append(_model_finding(runs, rate, design, name, grounds, ends))
        secondary += [replace(finding, decides=False) for finding in grounds]
        secondary += _other_senses(runs, rate, design, name)
        if design.doses:
            secondary.append(dose_response(runs, rate, design, rule.level))
        if design.factorial:
            secondary.append(_mediation_finding(runs, rate, design, rule.level, inputs.seed))
        tables[f"interventions_{rate}"] = (effect_table(runs, rate, design, rule), _effects_figure(design, rule))
    ranking = rank_initial_states(runs, AtRate.EQUAL, inputs.seed)
    secondary += ranking_findings(ranking, AtRate.EQUAL, rule.level)
    tables["ranking"] = (ranking, measure_ranking)
    if design.doses:
        doses = dose_table(runs, AtRate.EQUAL, design)
        tables["doses"] = (doses, partial(draw_doses, mediator=measure_name(design.conditioning)))
    tables["learning_rates"] = (
        rates_tried,
        partial(draw_sweep, measure="steps to the thresholds"),
    )
    for key, (table, _) in tables.items():
        write_table(table, folder / f"{key}.parquet")
    makers = {key: partial(draw, table) for key, (table, draw) in tables.items()}
    drawn = save_drawable(folder, makers) if draws else ()
    # The sweep is as large as all others together.
    return [*deciding, *secondary], tuple(path for path in drawn if path.stem != "learning_rates")


def models_of(
    runs: pd.DataFrame, rate: AtRate, design: Design, conditioning: str, better: Direction
) -> ModelComparison:
    """The comparison of models of speed by one sense of conditioning.

    Args:
        runs: From ``run_table``.
        rate: At which rates.
        design: Its skips and rivals.
        conditioning: Column of the initial states.
        better: Its direction when conditioning improves.

    Raises:
        InputError: A quantity was not measured in some runs.
    """
    slowness = matrix(runs, rate, "log_steps")
    return compare_models(
        slowness.to_numpy(),
        matrix(runs, rate, conditioning, log=True).to_numpy(),
        np.array([arm in design.skips for arm in slowness.index]),
        {words(rival): matrix(runs, rate, rival, log=True).to_numpy() for rival in design.rivals},
        larger_is_better=better is Direction.LARGER,
    )


def _model_finding(
    runs: pd.DataFrame, rate: AtRate, design: Design, name: str, grounds: Sequence[Finding], ends: Sequence[str]
) -> Finding:
    """Whether conditioning, the skip as such or a rival predicts the speed of arms left out."""
    compared = models_of(runs, rate, design, design.conditioning, design.better)
    verdict, reason = _VERDICTS[compared.outcome]
    if not all(finding.verdict.is_supported for finding in grounds):
        verdict, reason = Verdict.VACUOUS, Reason.NO_PREMISE
    if rate is AtRate.BEST and ends:
        verdict, reason = Verdict.NOT_TESTED, Reason.RATE_AT_END
    what = f"{name}, {rate.words}: {measure_name(design.conditioning)}"
    finding = _described(compared, what, verdict, reason, decides=True)
    return replace(finding, note=f"at an end: {', '.join(ends)}") if reason is Reason.RATE_AT_END else finding


def _other_senses(runs: pd.DataFrame, rate: AtRate, design: Design, name: str) -> list[Finding]:
    """The same with the senses of conditioning that were not registered as the one that decides."""
    findings = []
    for sense, better in CONDITIONING.items():
        if sense == design.conditioning:
            continue
        what = f"{name}, {rate.words}: {measure_name(sense)}"
        try:
            compared = models_of(runs, rate, design, sense, better)
        except InputError as error:
            findings.append(Finding(what, Verdict.VACUOUS, reason=Reason.NOT_MEASURED, note=str(error), decides=False))
            continue
        findings.append(_described(compared, what, *_VERDICTS[compared.outcome], decides=False))
    return findings


def _described(
    compared: ModelComparison, what: str, verdict: Verdict, reason: Reason | None, *, decides: bool
) -> Finding:
    numbers = {"skill": compared.skills[M1]}
    numbers |= {f"skill_of_{words(name)}": skill for name, skill in compared.skills.items() if name != M1}
    for name, difference in compared.differences.items():
        numbers[f"{name}_behind"] = difference.mean
        numbers |= {f"{name}_behind_low": difference.low, f"{name}_behind_high": difference.high}
    numbers |= {"arms": float(len(compared.errors[M1])), "diverged": float(compared.clipped)}
    note = f"predicts better: {', '.join(compared.better)}" if compared.better else ""
    return Finding(f"{what} predicts the speed of arms left out", verdict, numbers, reason, note, decides)


def _mediation_finding(runs: pd.DataFrame, rate: AtRate, design: Design, level: float, seed: int) -> Finding:
    """The share of the skip's effect that passes through conditioning, vacuous unless the initialisations agree."""
    through = f"passes through the {measure_name(design.conditioning)}"
    what = f"mediation, {rate.words}: share of the skip's effect that {through}"
    table = _factorial_table(runs, rate, design)
    try:
        result = mediation(table, seed=seed, confidence=1 - level)
        agreement = over_identification(table, seed=seed)
    except InputError as error:
        return Finding(what, Verdict.VACUOUS, reason=Reason.NOT_MEASURED, note=str(error), decides=False)
    numbers = {"share": result.share, "share_low": result.share_low, "share_high": result.share_high}
    numbers |= {f"share_by_{name}": value for name, value in agreement.shares.items()}
    numbers |= {f"share_without_{name}": value for name, value in agreement.left_out.items()}
    numbers |= {"q": agreement.q, "p_agreement": agreement.p, "total": result.total}
    numbers |= {"total_low": result.total_low, "total_high": result.total_high}
    if not agreement.identified:
        return Finding(what, Verdict.VACUOUS, numbers, Reason.NOT_IDENTIFIED, decides=False)
    if result.total_low <= 0 <= result.total_high:
        return Finding(what, Verdict.VACUOUS, numbers, Reason.NO_PREMISE, decides=False)
    half = 0.5
    verdict = Verdict.SUPPORTED if result.share_low > half else Verdict.UNDECIDED
    return Finding(what, Verdict.REVERSED if result.share_high < half else verdict, numbers, decides=False)


def _factorial_table(runs: pd.DataFrame, rate: AtRate, design: Design) -> pd.DataFrame:
    treated = {arm: position for pair in design.factorial for position, arm in enumerate(pair)}
    block = {arm: pair[0] for pair in design.factorial for arm in pair}
    rows = runs[(runs["rate"] == rate.value) & runs["arm"].isin(treated)].reset_index(drop=True)
    order = {pair[0]: f"{number} {pair[0]}" for number, pair in enumerate(design.factorial)}
    return pd.DataFrame(
        {
            "trial": rows["trial"],
            "treated": rows["arm"].map(treated),
            "block": rows["arm"].map(block).map(order),
            "mediator": np.log(rows[design.conditioning]),
            "speed": rows["log_steps"],
        }
    )


def _effects_figure(design: Design, rule: DecisionRule) -> Callable[[pd.DataFrame], Figure]:
    return partial(
        intervention_effects,
        mediator=measure_name(design.conditioning),
        equivalent=rule.margin,
        smaller_is_better=design.better is Direction.SMALLER,
    )
