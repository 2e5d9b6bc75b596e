"""Claims that arms differ: decided by paired comparisons of the runs of an experiment, trial by trial."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, write_table
from skip_conditioning.experiments.claims.statistics.looks import level_at
from skip_conditioning.experiments.claims.statistics.median_intervals import fewest_values
from skip_conditioning.experiments.claims.verdict.claim import LOOKS, Claim, ClaimInputs, DecisionRule, Plan, Size
from skip_conditioning.experiments.claims.verdict.comparisons import judge_comparisons
from skip_conditioning.experiments.claims.verdict.outcome import (
    Comparison,
    Finding,
    Judgement,
    Verdict,
    combine,
)
from skip_conditioning.experiments.claims.verdict.plan_check import check_comparisons
from skip_conditioning.experiments.claims.verdict.run_values import run_values
from skip_conditioning.experiments.claims.verdict.step_thresholds import Thresholds
from skip_conditioning.experiments.claims.verdict.wording import sentence, some
from skip_conditioning.figures.drawing.saving import save_drawable
from skip_conditioning.figures.drawing.selection import in_order_of
from skip_conditioning.figures.loss_curves import loss_curves
from skip_conditioning.figures.singular_value_histograms import singular_value_histograms

_RUNS: Final = "runs.parquet"
#: What draws each figure of an experiment, by name.
EXPERIMENT_FIGURES: Final[Mapping[str, Callable[[Experiment], Figure]]] = {
    "loss_curves": loss_curves,
    "singular_value_histograms": singular_value_histograms,
}


@dataclass
class PairedClaim:
    """A claim decided by paired comparisons.

    The claim is that they hold at every learning rate of every planned experiment. Each experiment is judged by itself,
    at its share of the level, and ``outcome.combine`` combines the verdicts on all parts.

    Attributes:
        id: Its name on the command line.
        statement: What is claimed.
        source: Where it is claimed.
        predicted: The direction expected if it is true, in words.
        controls: Possible confounders, and how each is held equal or varied.
        by_size: The experiments to train at each size, by name; at any other size the claim cannot be tested.
        comparisons: Those that decide.
        rule: How they are decided.
        thresholds: How the losses are fixed to which steps are counted; its pilot trials are not compared.
        secondary: Comparisons for information, which do not decide and are corrected by themselves.
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
    thresholds: Thresholds | None = None
    secondary: tuple[Comparison, ...] = ()
    look: int = 1
    figures: tuple[str, ...] = tuple(EXPERIMENT_FIGURES)

    def __post_init__(self) -> None:
        if self.thresholds is None and any(each.measure == "steps" for each in (*self.comparisons, *self.secondary)):
            raise InputError(
                f"{self.id} compares steps to thresholds; say how they are fixed: thresholds=Thresholds(…)"
            )

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
            "thresholds": None if self.thresholds is None else asdict(self.thresholds),
            "combined": "each experiment gets an equal share of the level, for comparisons at all its learning rates; "
            "reversed where any part is, no effect where any has none, supported where all are, undecided otherwise",
            "looks": LOOKS,
        }

    def check(self, size: Size) -> None:
        """Check that everything that is compared is trained and measured.

        Raises:
            InputError: A measure, an arm, a map, a layer or a step is not there.
        """
        for plan in self.plans(size).values():
            check_comparisons(self.id, plan, (*self.comparisons, *self.secondary), self.thresholds)

    def at_look(self, look: int) -> "PairedClaim":
        """The same claim at a later look."""
        return replace(self, look=look)

    @property
    def level(self) -> float:
        """The family-wise error rate that this look may spend."""
        return level_at(self.rule.level, self.look)

    @property
    def pilots(self) -> int:
        """Number of trials that are not compared."""
        return self.thresholds.pilots if self.thresholds else 0

    def fewest_trials(self, name: str, size: Size, rates: int) -> int:
        """The fewest trials, pilots among them, with which every deciding comparison of an experiment has an interval.

        Args:
            name: Of the plan.
            size: Of the experiments.
            rates: Number of learning rates in it.
        """
        level = self.level / len(self.plans(size))
        return self.pilots + fewest_values(1 - level / (len(self.comparisons) * rates))

    def judge(self, inputs: ClaimInputs, size: Size) -> Judgement:
        """The verdict from the tables of the plans; what was read of each run is written into the claim's folder.

        Raises:
            InputError: Tables are missing, the rule refuses them, or the folder cannot be written.
        """
        if not self.plans(size):
            return untestable(size, self.by_size)
        check_tables(self, inputs, size)
        rule = replace(self.rule, level=self.level / len(self.plans(size)))
        deciding: list[Finding] = []
        secondary: list[Finding] = []
        values: list[pd.DataFrame] = []
        for name in self.plans(size):
            tables = inputs.experiments[name]
            where = name if len(self.plans(size)) > 1 else ""
            values.append(run_values(tables, (*self.comparisons, *self.secondary), self.thresholds, name))
            deciding += judge_comparisons(tables, self.comparisons, rule, self.thresholds, where)
            if self.secondary:
                findings = judge_comparisons(tables, self.secondary, rule, self.thresholds, where)
                secondary += [replace(finding, decides=False) for finding in findings]
        write_table(pd.concat(values), inputs.directory / _RUNS)
        verdict = combine([finding.verdict for finding in deciding])
        return Judgement(
            verdict,
            (*deciding, *secondary),
            answer(deciding),
            change(verdict, deciding, self.look),
            save_drawable(inputs.directory, self._makers(inputs, size)),
        )

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
    return Judgement(Verdict.NOT_TESTED, (), f"At size {size} nothing is trained for it.", f"Another size: {others}.")


def check_tables(claim: Claim, inputs: ClaimInputs, size: Size) -> None:
    """Check that the tables of all planned experiments are there.

    Raises:
        InputError: Some are missing.
    """
    missing = [name for name in claim.plans(size) if name not in inputs.experiments]
    if missing:
        raise InputError(f"{claim.id} needs the tables of {', '.join(missing)}; repeat the command to train them")


def answer(findings: Sequence[Finding]) -> str:
    """What was seen, in a sentence or two: the first parts, those against the prediction before the others."""
    against = [finding for finding in findings if finding.verdict in (Verdict.REVERSED, Verdict.NO_EFFECT)]
    others = [finding for finding in findings if finding not in against]
    text = some([sentence(finding) for finding in (*against, *others)], 3, "; ")
    return f"{text[:1].upper()}{text[1:]}."


def change(verdict: Verdict, findings: Sequence[Finding], look: int = 1) -> str:
    """What would change a verdict: how many trials, if any number would.

    Args:
        verdict: On the claim.
        findings: Those that decide.
        look: Number of the look at the verdict; 0 for a claim that is not looked at again.
    """
    needed = [
        float(finding.numbers["trials_needed"])
        for finding in findings
        if finding.verdict is Verdict.UNDECIDED and "trials_needed" in finding.numbers
    ]
    if verdict is not Verdict.UNDECIDED or not needed:
        return "Other settings: networks, learning rates, data. More trials are unlikely to."
    if not np.isfinite(max(needed)):
        return "The undecided effects vary too much, or were too rarely measured, for any affordable number of trials."
    count = int(np.ceil(max(needed)))
    later = " (somewhat more at the stricter level of a later look)" if look else ""
    found = "an effect of the margin, or that there is none as large,"
    return f"About {count} trials would find {found} with a power of 80 %{later}: --trials {count}."
