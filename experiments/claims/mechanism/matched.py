"""Families of arms matched in conditioning: are they equally fast?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.tables import clear_disk_errors, write_table
from skip_conditioning.experiments.claims.mechanism.design import AtRate
from skip_conditioning.experiments.claims.mechanism.run_table import matrix, run_table
from skip_conditioning.experiments.claims.statistics.median_intervals import median, median_interval
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs, DecisionRule, RateSweep
from skip_conditioning.experiments.claims.verdict.comparisons import finding_of
from skip_conditioning.experiments.claims.verdict.decision import decide
from skip_conditioning.experiments.claims.verdict.differences import Differences
from skip_conditioning.experiments.claims.verdict.outcome import Comparison, Direction, Finding, Reason, Verdict
from skip_conditioning.experiments.claims.verdict.rate_sweep import at_ends, best_rates, sweep_table, sweep_thresholds
from skip_conditioning.experiments.claims.verdict.wording import measure_name
from skip_conditioning.figures.drawing.saving import save_drawable
from skip_conditioning.figures.matched_conditioning import matched_conditioning

#: The level of intervals in the figure.
_SHOWN_LEVEL = 0.95


@dataclass(frozen=True)
class Matched:
    """Arms at levels of equal conditioning.

    Attributes:
        families: Arms of each family, from the worst conditioned level to the best; the first has the skip.
        copies: The same arms with logits scaled so that ‖J‖_F is the first family's, by family.
        tolerance: How far the geometric means of the conditioning of a level's arms may lie apart, as a ratio.
        conditioning: Column of the initial states.
    """

    families: Mapping[str, tuple[str, ...]]
    copies: Mapping[str, tuple[str, ...]]
    tolerance: float = 1.02
    conditioning: str = "effective_rank"

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms, each once."""
        return tuple(
            dict.fromkeys(arm for group in (self.families, self.copies) for arms in group.values() for arm in arms)
        )


def judge_matched(
    inputs: ClaimInputs, name: str, matched: Matched, sweep: RateSweep, rule: DecisionRule, *, draws: bool = True
) -> tuple[list[Finding], tuple[Path, ...]]:
    """Whether the families are equally fast at equal conditioning, at one rate and each arm at its own.

    A trial's log-ratio of two families is the mean over levels of that of their arms' steps.

    Args:
        inputs: Tables of the runs and the pilot runs, initial states, and the folder for tables and figures.
        name: Of the experiment.
        matched: The families.
        sweep: How learning rates were chosen.
        rule: Its level is shared by the comparisons that decide.
        draws: Whether to draw the figure.

    Returns:
        Findings on the first family against each of the others, which decide, then on the others and on the copies; and
        the figure.

    Raises:
        InputError: Runs or initial states are missing.
    """
    runs = run_table(inputs, name, matched.arms, sweep)
    pilots = inputs.pilots[name]
    ends = at_ends(best_rates(sweep_table(pilots, sweep_thresholds(pilots, sweep))), sweep)
    first, *others = matched.families
    deciding = [(rate, matched.families, other) for rate in AtRate for other in others]
    secondary = [(rate, matched.copies, other) for rate in AtRate for other in others]
    findings: list[Finding] = []
    for decides, cases in ((True, deciding), (False, secondary)):
        logs = [_differences(runs, rate, arms[other], matched.families[first]) for rate, arms, other in cases]
        decisions = decide(logs, [Direction.EQUAL] * len(cases), rule)
        for (rate, _, other), own, decision in zip(cases, logs, decisions, strict=True):
            kind = "matched in conditioning" if decides else "matched in conditioning and ‖J‖_F"
            comparison = Comparison("steps", other, first, Direction.EQUAL)
            finding = finding_of(comparison, own, decision, rule, experiment=f"{kind}, {rate.words}")
            if rate is AtRate.BEST and ends:
                finding = replace(
                    finding, verdict=Verdict.NOT_TESTED, reason=Reason.RATE_AT_END, note=f"at an end: {', '.join(ends)}"
                )
            findings.append(replace(finding, decides=decides))
    findings.append(_match_finding(runs, matched))
    with clear_disk_errors(inputs.directory):
        inputs.directory.mkdir(parents=True, exist_ok=True)
    write_table(runs, inputs.directory / "runs.parquet")
    curves = curve_table(runs, matched)
    write_table(curves, inputs.directory / "curves.parquet")
    draw = partial(matched_conditioning, curves, conditioning=measure_name(matched.conditioning))
    return findings, save_drawable(inputs.directory, {"matched_conditioning": draw}) if draws else ()


def curve_table(runs: pd.DataFrame, matched: Matched) -> pd.DataFrame:
    """Conditioning and steps of each arm, as the figure draws them.

    Args:
        runs: From ``run_table``.
        matched: The families.

    Returns:
        Columns ``rate, family, is_copy, level, arm, conditioning`` (geometric mean), ``steps`` (median), ``steps_low,
        steps_high`` (its interval at 95 %).
    """
    rows = []
    for rate in AtRate:
        steps, states = matrix(runs, rate, "log_steps"), matrix(runs, rate, matched.conditioning, log=True)
        for is_copy, group in ((False, matched.families), (True, matched.copies)):
            for family, arms in group.items():
                for level, arm in enumerate(arms):
                    logs = steps.loc[arm].to_numpy()
                    ends = np.exp([median(logs), *median_interval(logs, logs, _SHOWN_LEVEL)])
                    place: dict[str, object] = {
                        "rate": rate.value,
                        "family": family,
                        "is_copy": is_copy,
                        "level": level,
                        "arm": arm,
                    }
                    place["conditioning"] = float(np.exp(states.loc[arm].mean()))
                    rows.append(place | dict(zip(("steps", "steps_low", "steps_high"), map(float, ends), strict=True)))
    return pd.DataFrame(rows)


def _differences(runs: pd.DataFrame, rate: AtRate, arms: Sequence[str], others: Sequence[str]) -> Differences:
    steps = matrix(runs, rate, "log_steps")
    first, second = steps.loc[list(arms)].to_numpy(), steps.loc[list(others)].to_numpy()
    with np.errstate(invalid="ignore"):
        values = (first - second).mean(axis=0)
    unknown = np.isnan(values)
    counts = int(np.isposinf(first).sum()), int(np.isposinf(second).sum())
    return Differences(np.where(unknown, -np.inf, values), np.where(unknown, np.inf, values), (), counts)


def _match_finding(runs: pd.DataFrame, matched: Matched) -> Finding:
    """How near the arms of a level come to equal conditioning in the trials that are compared."""
    states = matrix(runs, AtRate.EQUAL, matched.conditioning, log=True).mean(axis=1)
    levels = zip(*matched.families.values(), strict=True)
    apart = [float(np.ptp([states[arm] for arm in arms])) for arms in levels]
    largest = float(np.exp(max(apart)))
    verdict = Verdict.SUPPORTED if largest <= matched.tolerance else Verdict.REVERSED
    percent = 100 * (matched.tolerance - 1)
    return Finding(
        f"the {measure_name(matched.conditioning)} of a level's arms is equal within {percent:.2g} %",
        verdict,
        {"largest_ratio": largest, "levels": float(len(apart))},
        decides=False,
    )
