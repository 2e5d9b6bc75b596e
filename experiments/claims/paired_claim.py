"""Claims that arms differ: decided by paired comparisons of the runs of an experiment, trial by trial."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from diagnostics.errors import InputError
from diagnostics.tables import Experiment
from experiments.claims.claim import Contrast, Finding, Judgement, Plan, Rule, Size, Verdict
from experiments.claims.evidence import Evidence
from experiments.claims.paired import fewest_pairs
from experiments.claims.rules import combine, judge_contrasts

#: The share of the level that the first look at the verdict spends. Each later one, after ``--seeds`` was raised,
#: spends half of what is left, so that all together never spend more than the level.
FIRST_LOOK = 0.8


@dataclass
class PairedClaim:
    """A claim decided by paired comparisons.

    It holds at every learning rate of every experiment planned, or it does not hold: each experiment is judged by
    itself, at its share of the level, and ``rules.combine`` says what follows.

    Attributes:
        id: Its name on the command line.
        statement: What is claimed.
        source: Where.
        predicted: The direction expected if it is true.
        controls: What is held equal or varied beside it.
        by_size: What is trained at each size; a size that is not there cannot test it.
        contrasts: The comparisons that decide.
        secondary: Further ones, shown beside and corrected by themselves, that decide nothing.
        rule: How they are decided.
        look: The how-manieth look at the verdict this is; one more each time that seeds were added.
    """

    id: str
    statement: str
    source: str
    predicted: str
    controls: tuple[str, ...]
    by_size: Mapping[Size, Mapping[str, Plan]]
    contrasts: tuple[Contrast, ...]
    rule: Rule = field(default_factory=Rule)
    secondary: tuple[Contrast, ...] = ()
    look: int = 1

    def plans(self, size: Size) -> Mapping[str, Plan]:
        """What is to be trained for it; empty where the size cannot test it."""
        return self.by_size.get(size, {})

    def registered(self, size: Size) -> dict[str, Any]:
        """Plans, comparisons and the rule."""
        return {
            "plans": {name: asdict(plan) for name, plan in self.plans(size).items()},
            "contrasts": [asdict(contrast) for contrast in self.contrasts],
            "secondary": [asdict(contrast) for contrast in self.secondary],
            "rule": asdict(self.rule),
            "combined": "each experiment gets an equal share of the level, for comparisons at all its learning rates; "
            "contradicted where one is, supported where all are, vacuous where all are, inconclusive otherwise",
            "looks": f"the first look spends {FIRST_LOOK:g} of the level, each later one (after --seeds was raised) "
            "half of what is left",
        }

    def at_look(self, look: int) -> "PairedClaim":
        """The same claim at a later look."""
        return replace(self, look=look)

    @property
    def level(self) -> float:
        """The family-wise error rate that this look may spend."""
        left = 1 - FIRST_LOOK
        return self.rule.level * (FIRST_LOOK if self.look == 1 else left / 2 ** (self.look - 1))

    def fewest_seeds(self, name: str, size: Size, rates: int) -> int:
        """The fewest pairs with which every comparison in one of its experiments could come out.

        Args:
            name: Of the plan.
            size: Of the experiments.
            rates: Learning rates in it.
        """
        level = self.level / len(self.plans(size))
        comparisons = max(len(self.contrasts), len(self.secondary)) * rates
        return max(self.rule.fewest_seeds, fewest_pairs(comparisons, level))

    def judge(self, evidence: Evidence, size: Size) -> Judgement:
        """The verdict from the tables of the plans.

        Raises:
            InputError: Tables are missing, or the rule refuses them.
        """
        if not self.plans(size):
            return Judgement(
                "inconclusive", (), f"Not testable at size {size}: nothing of it is trained there.",
                f"A size that trains it: {', '.join(f'--size {one}' for one in self.by_size)}.",
            )  # fmt: skip
        missing = [name for name in self.plans(size) if name not in evidence.experiments]
        if missing:
            raise InputError(f"{self.id} needs the tables of {', '.join(missing)}; repeat the command to train them")
        rule = replace(self.rule, level=self.level / len(self.plans(size)))
        verdicts: list[Verdict] = []
        findings: list[Finding] = []
        aside: list[Finding] = []
        for name in self.plans(size):
            tables = evidence.experiments[name]
            where = f", {name}" if len(self.plans(size)) > 1 else ""
            verdict, found = judge_contrasts(tables, self.contrasts, rule, evidence.seed)
            verdicts.append(verdict)
            findings += [replace(finding, what=finding.what + where) for finding in found]
            if self.secondary:
                _, beside = judge_contrasts(tables, self.secondary, rule, evidence.seed)
                aside += [replace(finding, what=f"decides nothing: {finding.what}{where}") for finding in beside]
        verdict = combine(verdicts)
        return Judgement(verdict, (*findings, *aside), summary(findings), change(verdict, findings, self.look))


def with_runs(tables: Experiment, run_ids: set[str]) -> Experiment:
    """The rows of some runs only."""
    frames = {name: getattr(tables, name) for name in ("runs", "metrics", "spectra", "skipped")}
    return Experiment(**{name: rows[rows["run_id"].isin(run_ids)] for name, rows in frames.items()})


def summary(findings: list[Finding]) -> str:
    """How many comparisons came out how."""
    counts = {name: sum(finding.verdict == name for finding in findings) for name in _PHRASES}
    parts = [f"{count} {_PHRASES[name]}" for name, count in counts.items() if count]
    noun = "comparison" if len(findings) == 1 else "comparisons"
    against = [finding.what for finding in findings if finding.verdict == "contradicted"]
    named = f" Against the prediction: {'; '.join(against[:3])}{' and others' if len(against) > 3 else ''}."
    return f"Of {len(findings)} {noun} {', '.join(parts)}.{named if against else ''}"


_PHRASES: dict[Verdict, str] = {
    "supported": "as predicted",
    "contradicted": "not as predicted",
    "inconclusive": "undecided",
    "vacuous": "without anything to compare",
}


def change(verdict: Verdict, findings: list[Finding], look: int = 1) -> str:
    """What would change a verdict: how many seeds, if any number would."""
    open_ones = [finding for finding in findings if finding.verdict == "inconclusive"]
    if verdict in ("supported", "contradicted") or not open_ones:
        return "Other settings than these: networks, learning rates, data. More seeds are unlikely to."
    needed = max(finding.numbers.get("seeds_needed", math.nan) for finding in open_ones)
    if not math.isfinite(needed):
        return "The undecided effects are too small or too rarely measured for any affordable number of seeds."
    later = " (at the stricter level of a later look somewhat more)" if look else ""
    return f"About {math.ceil(needed)} seeds in all{later}: --seeds {math.ceil(needed)} runs those that are missing."
