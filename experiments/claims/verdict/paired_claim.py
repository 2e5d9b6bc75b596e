"""Claims that arms differ: decided by paired comparisons of the runs of an experiment, trial by trial."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.verdict import repeated_looks as looks
from skip_conditioning.experiments.claims.verdict.claim import (
    Contrast,
    Evidence,
    Finding,
    Judgement,
    Plan,
    Rule,
    Size,
    Verdict,
)
from skip_conditioning.experiments.claims.verdict.claim_figures import OF_EXPERIMENT, draw, in_order_of
from skip_conditioning.experiments.claims.verdict.pairs import fewest_pairs
from skip_conditioning.experiments.claims.verdict.rules import combine, judge_contrasts
from skip_conditioning.experiments.claims.verdict.wording import ASIDE


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
        secondary: Further ones, shown beside and corrected by themselves, that decide nothing; where too few seeds are
            there for their number, that is said in their place.
        rule: How they are decided.
        look: The how-manieth look at the verdict this is; one more each time that seeds were added.
        figures: Names in ``claim_figures.OF_EXPERIMENT`` of what is drawn of each experiment, where its tables suffice.
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
    figures: tuple[str, ...] = tuple(OF_EXPERIMENT)

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
            "looks": looks.WORDS,
        }

    def at_look(self, look: int) -> "PairedClaim":
        """The same claim at a later look."""
        return replace(self, look=look)

    @property
    def level(self) -> float:
        """The family-wise error rate that this look may spend."""
        return looks.level_at(self.rule.level, self.look)

    def fewest_seeds(self, name: str, size: Size, rates: int) -> int:
        """The fewest pairs with which every comparison that decides in one of its experiments could come out.

        Args:
            name: Of the plan.
            size: Of the experiments.
            rates: Learning rates in it.
        """
        level = self.level / len(self.plans(size))
        return max(self.rule.fewest_seeds, fewest_pairs(len(self.contrasts) * rates, level))

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
            aside += [
                replace(finding, what=f"{ASIDE}{finding.what}{where}")
                for finding in self._beside(tables, rule, evidence.seed)
            ]
        verdict = combine(verdicts)
        return Judgement(
            verdict,
            (*findings, *aside),
            summary(findings),
            change(verdict, findings, self.look),
            draw(evidence.directory, self._makers(evidence, size)),
        )

    def _beside(self, tables: Experiment, rule: Rule, seed: int) -> tuple[Finding, ...]:
        """Findings on the secondary comparisons, or one that says why there are none: they cannot stop a verdict."""
        if not self.secondary:
            return ()
        try:
            return judge_contrasts(tables, self.secondary, rule, seed)[1]
        except InputError as reason:
            return (Finding("the secondary comparisons", "inconclusive", note=f"not made: {reason}"),)

    def _makers(self, evidence: Evidence, size: Size) -> dict[str, Callable[[], Figure]]:
        """What draws each figure of each experiment, by the name of its file."""
        makers: dict[str, Callable[[], Figure]] = {}
        for name, plan in self.plans(size).items():
            tables = in_order_of(plan.arms, evidence.experiments[name])
            where = f"_{name}" if len(self.plans(size)) > 1 else ""
            makers |= {f"{figure}{where}": partial(OF_EXPERIMENT[figure], tables) for figure in self.figures}
        return makers


def with_runs(tables: Experiment, run_ids: set[str]) -> Experiment:
    """The rows of some runs only."""
    frames = {name: getattr(tables, name) for name in ("runs", "metrics", "spectra", "skipped")}
    return Experiment(**{name: rows[rows["run_id"].isin(run_ids)] for name, rows in frames.items()})


def summary(findings: list[Finding]) -> str:
    """How many comparisons came out how."""
    counts = {name: sum(finding.verdict == name for finding in findings) for name in _PHRASES}
    parts = [f"{count} {_PHRASES[name]}" for name, count in counts.items() if count]
    noun = "comparison" if len(findings) == 1 else "comparisons"
    against = [f"{one.what} ({one.note})" for one in findings if one.verdict == "contradicted"]
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
    known = [finding.numbers.get("seeds_needed", math.nan) for finding in open_ones]
    needed = max((seeds for seeds in known if not math.isnan(seeds)), default=math.inf)
    if math.isinf(needed):
        return "The undecided effects are too small or too rarely measured for any affordable number of seeds."
    later = " (at the stricter level of a later look somewhat more)" if look else ""
    return f"About {math.ceil(needed)} seeds in all{later}: --seeds {math.ceil(needed)} runs those that are missing."
