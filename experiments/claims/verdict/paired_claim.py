"""Claims that arms differ: decided by paired comparisons of the runs of an experiment, trial by trial."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final

from matplotlib.figure import Figure

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.statistics.paired_tests import fewest_pairs, level_at
from skip_conditioning.experiments.claims.verdict.claim import (
    LOOKS,
    Claim,
    ClaimInputs,
    Comparison,
    DecisionRule,
    Finding,
    Judgement,
    Plan,
    Size,
    Verdict,
)
from skip_conditioning.experiments.claims.verdict.comparisons import judge_comparisons
from skip_conditioning.experiments.claims.verdict.decision import combine
from skip_conditioning.experiments.claims.verdict.formatting import some
from skip_conditioning.figures.drawing.saving import save_drawable
from skip_conditioning.figures.drawing.selection import in_order_of
from skip_conditioning.figures.loss_curves import loss_curves
from skip_conditioning.figures.singular_value_histograms import singular_value_histograms

#: What draws each figure of an experiment, by name.
EXPERIMENT_FIGURES: Final[Mapping[str, Callable[[Experiment], Figure]]] = {
    "loss_curves": loss_curves,
    "singular_value_histograms": singular_value_histograms,
}


@dataclass
class PairedClaim:
    """A claim decided by paired comparisons.

    The claim is that they hold at every learning rate of every planned experiment. Each experiment is judged by itself,
    at its share of the level, and ``decision.combine`` combines the verdicts.

    Attributes:
        id: Its name on the command line.
        statement: What is claimed.
        source: Where it is claimed.
        predicted: The direction expected if it is true, in words.
        controls: Possible confounders, and how each is held equal or varied.
        by_size: The experiments to train at each size, by name; at any other size the claim cannot be tested.
        comparisons: Those that decide.
        rule: How they are decided.
        secondary: Comparisons for information, which do not decide and are corrected by themselves; a note takes their
            place where there are too few trials for their number.
        look: Number of the look at the verdict: 1, and one more each time that trials were added.
        figures: Names in ``EXPERIMENT_FIGURES`` of what is drawn of each experiment.
    """

    id: str
    statement: str
    source: str
    predicted: str
    controls: tuple[str, ...]
    by_size: Mapping[Size, Mapping[str, Plan]]
    comparisons: tuple[Comparison, ...]
    rule: DecisionRule = field(default_factory=DecisionRule)
    secondary: tuple[Comparison, ...] = ()
    look: int = 1
    figures: tuple[str, ...] = tuple(EXPERIMENT_FIGURES)

    def plans(self, size: Size) -> Mapping[str, Plan]:
        """The experiments to train for it; empty if the claim cannot be tested at this size."""
        return self.by_size.get(size, {})

    def registered(self, size: Size) -> dict[str, Any]:
        """Plans, comparisons and the rule."""
        return {
            "plans": {name: plan.registered() for name, plan in self.plans(size).items()},
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "secondary": [asdict(comparison) for comparison in self.secondary],
            "rule": asdict(self.rule),
            "combined": "each experiment gets an equal share of the level, for comparisons at all its learning rates; "
            "contradicted where one is, supported where all are, vacuous where all are, inconclusive otherwise",
            "looks": LOOKS,
        }

    def at_look(self, look: int) -> "PairedClaim":
        """The same claim at a later look."""
        return replace(self, look=look)

    @property
    def level(self) -> float:
        """The family-wise error rate that this look may spend."""
        return level_at(self.rule.level, self.look)

    def fewest_trials(self, name: str, size: Size, rates: int) -> int:
        """The fewest trials with which every deciding comparison in one of its experiments could be significant.

        Args:
            name: Of the plan.
            size: Of the experiments.
            rates: Number of learning rates in it.
        """
        level = self.level / len(self.plans(size))
        return max(self.rule.min_pairs, fewest_pairs(len(self.comparisons) * rates, level))

    def judge(self, inputs: ClaimInputs, size: Size) -> Judgement:
        """The verdict from the tables of the plans.

        Raises:
            InputError: Tables are missing, or the rule refuses them.
        """
        if not self.plans(size):
            return untestable(size, self.by_size)
        check_tables(self, inputs, size)
        rule = replace(self.rule, level=self.level / len(self.plans(size)))
        verdicts: list[Verdict] = []
        deciding: list[Finding] = []
        secondary: list[Finding] = []
        for name in self.plans(size):
            tables = inputs.experiments[name]
            where = f", {name}" if len(self.plans(size)) > 1 else ""
            verdict, findings = judge_comparisons(tables, self.comparisons, rule, inputs.seed)
            verdicts.append(verdict)
            deciding += [replace(finding, what=finding.what + where) for finding in findings]
            secondary += [
                replace(finding, what=finding.what + where, decides=False)
                for finding in self._secondary_findings(tables, rule, inputs.seed)
            ]
        verdict = combine(verdicts)
        return Judgement(
            verdict,
            (*deciding, *secondary),
            summary(deciding),
            change(verdict, deciding, self.look),
            save_drawable(inputs.directory, self._makers(inputs, size)),
        )

    def _secondary_findings(self, tables: Experiment, rule: DecisionRule, seed: int) -> tuple[Finding, ...]:
        """Findings on the secondary comparisons, or one that says why there are none: they never prevent a verdict."""
        if not self.secondary:
            return ()
        try:
            return judge_comparisons(tables, self.secondary, rule, seed)[1]
        except InputError as reason:
            return (Finding("the secondary comparisons", "inconclusive", note=f"not made: {reason}"),)

    def _makers(self, inputs: ClaimInputs, size: Size) -> dict[str, Callable[[], Figure]]:
        """What draws each figure of each experiment, by the name of its file."""
        makers: dict[str, Callable[[], Figure]] = {}
        for name, plan in self.plans(size).items():
            tables = in_order_of(plan.arms, inputs.experiments[name])
            where = f"_{name}" if len(self.plans(size)) > 1 else ""
            makers |= {f"{figure}{where}": partial(EXPERIMENT_FIGURES[figure], tables) for figure in self.figures}
        return makers


def untestable(size: Size, sizes: Iterable[Size]) -> Judgement:
    """The judgement of a claim for which nothing is trained at a size, but at others."""
    others = ", ".join(f"--size {other}" for other in sizes)
    reason = f"Not testable at size {size}, at which nothing is trained for it."
    return Judgement("inconclusive", (), reason, f"Another size: {others}.")


def check_tables(claim: Claim, inputs: ClaimInputs, size: Size) -> None:
    """Check that the tables of all planned experiments are there.

    Raises:
        InputError: Some are missing.
    """
    missing = [name for name in claim.plans(size) if name not in inputs.experiments]
    if missing:
        raise InputError(f"{claim.id} needs the tables of {', '.join(missing)}; repeat the command to train them")


def summary(findings: list[Finding]) -> str:
    """The numbers of comparisons with each verdict, in a sentence, and those against the prediction."""
    counts = {name: sum(finding.verdict == name for finding in findings) for name in _PHRASES}
    parts = [f"{count} {_PHRASES[name]}" for name, count in counts.items() if count]
    noun = "comparison" if len(findings) == 1 else "comparisons"
    against = [f"{finding.what} ({finding.note})" for finding in findings if finding.verdict == "contradicted"]
    named = f" Against the prediction: {some(against, 3, '; ')}." if against else ""
    return f"Of {len(findings)} {noun} {', '.join(parts)}.{named}"


_PHRASES: dict[Verdict, str] = {
    "supported": "as predicted",
    "contradicted": "not as predicted",
    "inconclusive": "undecided",
    "vacuous": "without anything to compare",
}


def change(verdict: Verdict, findings: list[Finding], look: int = 1) -> str:
    """What would change a verdict: how many trials, if any number would.

    Args:
        verdict: On the claim.
        findings: Those that decide.
        look: Number of the look at the verdict; 0 for a claim that is not looked at again.
    """
    open_ones = [finding for finding in findings if finding.verdict == "inconclusive"]
    if verdict in ("supported", "contradicted") or not open_ones:
        return "Other settings: networks, learning rates, data. More trials are unlikely to."
    known = [finding.numbers.get("trials_needed", math.nan) for finding in open_ones]
    needed = max((trials for trials in known if not math.isnan(trials)), default=math.inf)
    if math.isinf(needed):
        return "The undecided effects are too small or too rarely measured for any affordable number of trials."
    later = " (somewhat more at the stricter level of a later look)" if look else ""
    return f"About {math.ceil(needed)} trials in all{later}: --trials {math.ceil(needed)} adds those that are missing."
