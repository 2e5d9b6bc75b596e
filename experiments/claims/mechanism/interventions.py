"""Each arm against the arm without a skip: the ratios of its conditioning and of its steps. Nothing here decides."""

import numpy as np
import pandas as pd

from skip_conditioning.experiments.claims.mechanism.design import AtRate, Design
from skip_conditioning.experiments.claims.mechanism.run_table import matrix
from skip_conditioning.experiments.claims.verdict.claim import DecisionRule
from skip_conditioning.experiments.claims.verdict.comparisons import finding_of
from skip_conditioning.experiments.claims.verdict.decision import Decision, decide
from skip_conditioning.experiments.claims.verdict.differences import Differences
from skip_conditioning.experiments.claims.verdict.outcome import Comparison, Direction, Finding


def premise(runs: pd.DataFrame, rate: AtRate, design: Design, rule: DecisionRule, experiment: str) -> list[Finding]:
    """Whether the skip is better conditioned, and faster: without both there is nothing to explain.

    Args:
        runs: From ``run_table``.
        rate: At which rates.
        design: Which arms.
        rule: Fixed beforehand.
        experiment: Its name.
    """
    pair = {"arm": design.skip, "other": design.base}
    comparisons = (
        Comparison(design.conditioning, **pair, predicted=design.better),
        Comparison("steps", **pair, predicted=Direction.SMALLER),
    )
    logs = [differences(runs, rate, each.measure, each.arm, each.other) for each in comparisons]
    decisions = decide(logs, [each.predicted for each in comparisons], rule)
    return [
        finding_of(comparison, own, decision, rule, experiment=f"{experiment}, {rate.words}")
        for comparison, own, decision in zip(comparisons, logs, decisions, strict=True)
    ]


def effect_table(runs: pd.DataFrame, rate: AtRate, design: Design, rule: DecisionRule) -> pd.DataFrame:
    """Each arm's ratios over the base, as the figure of interventions reads them.

    Args:
        runs: From ``run_table``.
        rate: At which rates.
        design: Which arms.
        rule: Its level is shared by all arms, for conditioning and for speed.
    """
    arms = design.arms[1:]
    sides = {"mediator": (design.conditioning, design.better), "speed": ("steps", Direction.SMALLER)}
    rows: dict[str, dict[str, object]] = {
        arm: {"arm": arm, "kind": design.kind(arm).value, "mediator_is_bound": False} for arm in arms
    }
    for side, (name, predicted) in sides.items():
        logs = [differences(runs, rate, name, arm, design.base) for arm in arms]
        for arm, own, decision in zip(arms, logs, decide(logs, [predicted] * len(arms), rule), strict=True):
            rows[arm] |= _ends(side, own, decision) | {"verdict": decision.verdict.value}
    return pd.DataFrame(list(rows.values()))


def differences(runs: pd.DataFrame, rate: AtRate, name: str, arm: str, other: str) -> Differences:
    """Log-ratios between two arms, paired by trial.

    Args:
        runs: From ``run_table``.
        rate: At which rates.
        name: ``steps``, or a column of the initial states.
        arm: The numerator.
        other: The denominator.
    """
    logs = matrix(runs, rate, "log_steps") if name == "steps" else matrix(runs, rate, name, log=True)
    first, second = logs.loc[arm].to_numpy(), logs.loc[other].to_numpy()
    with np.errstate(invalid="ignore"):
        values = first - second
    both = np.isposinf(first) & np.isposinf(second)
    measured = ~np.isnan(values) | both
    low, high = np.where(both, -np.inf, values)[measured], np.where(both, np.inf, values)[measured]
    missing = tuple(f"trial {trial}" for trial in logs.columns[~measured])
    return Differences(low, high, missing, (int(np.isposinf(first).sum()), int(np.isposinf(second).sum())))


def _ends(side: str, logs: Differences, decision: Decision) -> dict[str, object]:
    with np.errstate(over="ignore"):
        return {
            f"{side}_ratio": float(np.exp(np.mean(logs.effect))),
            f"{side}_low": float(np.exp(decision.low)),
            f"{side}_high": float(np.exp(decision.high)),
        }
