"""A claim that arms do without what another gains: each gets less than a share of that arm's gain in speed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np

from skip_conditioning.diagnostics.tables import Experiment, write_table
from skip_conditioning.experiments.claims.statistics.looks import level_at
from skip_conditioning.experiments.claims.statistics.median_intervals import fewest_values, median, median_interval
from skip_conditioning.experiments.claims.verdict.claim import LOOKS, ClaimInputs, DecisionRule, Plan, Size
from skip_conditioning.experiments.claims.verdict.comparisons import judge_comparisons, reading_at
from skip_conditioning.experiments.claims.verdict.differences import Differences, paired_differences
from skip_conditioning.experiments.claims.verdict.outcome import (
    Comparison,
    Direction,
    Finding,
    Judgement,
    Reason,
    Verdict,
    combine,
)
from skip_conditioning.experiments.claims.verdict.paired_claim import change, check_tables, untestable
from skip_conditioning.experiments.claims.verdict.run_values import run_values
from skip_conditioning.experiments.claims.verdict.step_thresholds import Thresholds
from skip_conditioning.experiments.claims.verdict.wording import number, sentence

#: Of the gain: a control that gets surely less has none of the cause, one that gets surely more has all of it.
FEW, MOST = 0.25, 0.75
_RUNS: Final = "runs.parquet"


@dataclass
class SharedGain:
    """What makes an arm faster is what its controls lack.

    In each pair the log-ratios to the base of a control, ``c``, and of the arm, ``g``, give ``c − FEW g`` and
    ``c − MOST g``. The claim holds of a control if the median of the first is positive (it is slower than with a
    quarter of the gain), and is reversed if that of the second is negative (it is faster than with three quarters), by
    intervals that are exact sign tests inverted.

    Attributes:
        id: Its name on the command line.
        statement: What is claimed.
        source: Where it is claimed.
        predicted: The direction expected if it is true, in words.
        arm: The arm that gains.
        base: The arm over which it does.
        controls_of: The arms that have something else of it, and what.
        by_size: The experiment to train at each size.
        thresholds: How the losses are fixed to which steps are counted.
        rule: Its level is shared by all intervals.
        controls: Possible confounders, and how each is held equal or varied.
        look: Number of the look at the verdict.
    """

    id: str
    statement: str
    source: str
    predicted: str
    arm: str
    base: str
    controls_of: Mapping[str, str]
    by_size: Mapping[Size, Mapping[str, Plan]]
    thresholds: Thresholds
    controls: tuple[str, ...] = ()
    rule: DecisionRule = field(default_factory=DecisionRule)
    look: int = 1

    def plans(self, size: Size) -> Mapping[str, Plan]:
        """The experiment to train for it; empty if the claim cannot be tested at this size."""
        return self.by_size.get(size, {})

    def registered(self, size: Size) -> dict[str, Any]:
        """Plans, arms and the rule."""
        return {
            "plans": {name: plan.registered() for name, plan in self.plans(size).items()},
            "arms": {"arm": self.arm, "base": self.base, "controls": dict(self.controls_of)},
            "thresholds": asdict(self.thresholds),
            "rule": asdict(self.rule),
            "shares": f"with log-ratios of steps to the base, c of a control and g of the arm: supported of a control "
            f"where the interval of the median of c − {FEW} g is positive, reversed where that of c − {MOST} g is "
            "negative, undecided otherwise; vacuous where the arm is not faster than the base by the paired rule",
            "combined": "reversed where any control is, supported where all are, undecided otherwise",
            "looks": LOOKS,
        }

    def at_look(self, look: int) -> "SharedGain":
        """The same claim at a later look."""
        return replace(self, look=look)

    @property
    def pilots(self) -> int:
        """Number of trials that are not compared."""
        return self.thresholds.pilots

    def fewest_trials(self, name: str, size: Size, rates: int) -> int:
        """The fewest trials, pilots among them, with which every interval has ends.

        Args:
            name: Of the plan.
            size: Of the experiment.
            rates: Number of learning rates in it.
        """
        return self.pilots + fewest_values(1 - self._level())

    def judge(self, inputs: ClaimInputs, size: Size) -> Judgement:
        """The verdict from the tables of the plan; what was read of each run is written into the claim's folder.

        Raises:
            InputError: Tables are missing, the rule refuses them, or the folder cannot be written.
        """
        if not self.plans(size):
            return untestable(size, self.by_size)
        check_tables(self, inputs, size)
        (name,) = self.plans(size)
        tables = inputs.experiments[name]
        arms = (self.arm, *self.controls_of)
        comparisons = [Comparison("steps", arm, self.base, Direction.SMALLER) for arm in arms]
        write_table(run_values(tables, comparisons, self.thresholds, name), inputs.directory / _RUNS)
        rule = replace(self.rule, level=self._level())
        (premise,) = judge_comparisons(tables, comparisons[:1], rule, self.thresholds)
        findings = [self._finding(tables, control, premise) for control in self.controls_of]
        others = [
            *(Comparison("steps", control, self.base, Direction.SMALLER) for control in self.controls_of),
            *(Comparison("steps", self.arm, control, Direction.SMALLER) for control in self.controls_of),
        ]
        secondary = judge_comparisons(tables, others, self.rule, self.thresholds)
        verdict = combine([finding.verdict for finding in findings])
        return Judgement(
            verdict,
            (*findings, *(replace(finding, decides=False) for finding in (premise, *secondary))),
            _answer(premise, findings),
            change(verdict, findings, self.look),
            (),
        )

    def _finding(self, tables: Experiment, control: str, premise: Finding) -> Finding:
        reading = reading_at(tables, self.thresholds, None)
        gain, own = (
            paired_differences(
                reading, Comparison("steps", arm, self.base, Direction.SMALLER), pilots=self.thresholds.pilots
            )
            for arm in (self.arm, control)
        )
        what = f"{control} ({self.controls_of[control]}) gets less than a quarter of what {self.arm} gains"
        if premise.verdict not in (Verdict.SUPPORTED, Verdict.SUPPORTED_SMALL):
            return Finding(what, Verdict.VACUOUS, reason=Reason.NO_GAIN)
        if gain.missing or own.missing:
            return Finding(what, Verdict.VACUOUS, reason=Reason.NOT_MEASURED)
        level = 1 - self._level()
        few, most = (median_interval(*_less(own, gain, share), level) for share in (FEW, MOST))
        verdict = Verdict.REVERSED if most[1] < 0 else Verdict.SUPPORTED if few[0] > 0 else Verdict.UNDECIDED
        share = median(own.low) / median(gain.low)
        numbers = {
            "share_of_the_gain": float(share),
            **{f"{name}_{end}": float(value) for name, ends in (("over_a_quarter", few), ("over_three_quarters", most))
               for end, value in zip(("low", "high"), ends, strict=True)},
            "level": level,
            "pairs": float(gain.pairs),
        }  # fmt: skip
        return Finding(what, verdict, numbers)

    def _level(self) -> float:
        """The error rate of each interval: the premise's, and two of each control."""
        return level_at(self.rule.level, self.look) / (1 + 2 * len(self.controls_of))


def _less(own: Differences, gain: Differences, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of ``own − share · gain``."""
    with np.errstate(invalid="ignore"):
        low, high = own.low - share * gain.high, own.high - share * gain.low
    return np.nan_to_num(low, nan=-np.inf, posinf=np.inf, neginf=-np.inf), np.nan_to_num(
        high, nan=np.inf, posinf=np.inf, neginf=-np.inf
    )


def _answer(premise: Finding, findings: Sequence[Finding]) -> str:
    shares = [
        f"{finding.what}: it gets {number(100 * finding.numbers['share_of_the_gain'])} %"
        for finding in findings
        if "share_of_the_gain" in finding.numbers
    ]
    return f"{'; '.join([sentence(premise), *shares])}."
