"""What a claim is: a statement, the experiments that test it, and the rule that decides; and what a verdict is.

A claim is written down whole before anything is trained (``run.preregistration``). Its verdict follows from the tables
alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self, runtime_checkable

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.statistics.paired_tests import FIRST_LOOK_SHARE
from skip_conditioning.experiments.config.train_config import TrainConfig, option_values

Verdict = Literal["supported", "contradicted", "inconclusive", "vacuous"]
Size = Literal["demo", "mnist", "reduced", "cifar"]

#: What is registered of looking at a verdict again.
LOOKS: Final = (
    f"the first look spends {FIRST_LOOK_SHARE:g} of the level, each later one (after --trials was raised) half of what "
    "is left"
)

#: Options of an experiment that depend on the machine, beside those of its output.
_INCIDENTAL: Final = ("data_dir", "device", "processes", "workers")


@dataclass(frozen=True)
class Plan:
    """What is trained for a claim at one size: an experiment of ``skip-conditioning train``.

    Claims whose plans are equal but for arms and trials share one experiment, with the arms and trials of all.

    Attributes:
        config: Its options, such as ``preset("demo", arms=("chain", "residual"), trials=8, lr=(0.1,))``; where it is
            written and on which device it is trained is decided by the command.
    """

    config: TrainConfig

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms compared."""
        return self.config.network.arms

    @property
    def trials(self) -> int:
        """Number of trials, each an initialisation and a data order shared by all arms."""
        return self.config.optimisation.trials

    def registered(self) -> dict[str, Any]:
        """The options that bear on results, as plain JSON values."""
        options = option_values(self.config)
        measured = [[each.map, each.layers, each.batch_mode] for each in options.pop("measurements")]
        outputs = [option.name for option in fields(self.config.output)]
        return {
            **{name: value for name, value in options.items() if name not in (*outputs, *_INCIDENTAL)},
            "measurements": measured,
        }


@dataclass(frozen=True)
class ClaimInputs:
    """What a claim is judged from.

    Attributes:
        experiments: The tables of each experiment, by the names of the claim's plans.
        directory: The claim's own folder, for figures and for tables of what it measures itself.
        seed: Of bootstrap samples and other random draws.
        data_dir: Folder of the data sets, for claims that measure by themselves; None without one.
    """

    experiments: Mapping[str, Experiment]
    directory: Path
    seed: int = 0
    data_dir: Path | None = None


@dataclass(frozen=True)
class DecisionRule:
    """How paired comparisons are decided; all numbers are fixed beforehand.

    Attributes:
        level: Family-wise error rate of all comparisons of a claim (Holm).
        equivalence_margin: Ratios between ``1 / equivalence_margin`` and ``equivalence_margin`` count as no effect.
        min_pairs: With fewer pairs than these nothing is decided.
    """

    level: float = 0.05
    equivalence_margin: float = 1.05
    min_pairs: int = 6


@dataclass(frozen=True)
class Comparison:
    """Two arms to be compared trial by trial: the ratio of a measure of one to that of the other.

    Attributes:
        measure: A name in ``run_measures.MEASURES``.
        arm: The arm that the prediction is about.
        other: The arm that it is compared with.
        predicted: Whether the measure of ``arm`` is predicted to be the ``smaller`` or the ``larger`` of the two.
    """

    measure: str
    arm: str
    other: str
    predicted: Literal["smaller", "larger"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one comparison or statement: one row of the table ``verdicts``.

    Attributes:
        what: The comparison or the statement, in words.
        verdict: On this one alone, after the correction.
        numbers: Effect sizes, intervals, p values, numbers of pairs and so on, by name.
        note: Explanation, such as why it is vacuous.
        decides: Whether the verdict on the claim rests on it; otherwise it is secondary, shown for information.
    """

    what: str
    verdict: Verdict
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    decides: bool = True


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim.

    Attributes:
        verdict: One of the four.
        findings: Those that decide, then the secondary ones.
        summary: One or two sentences for the top of the report; each line becomes a paragraph.
        change: What would change the verdict: more trials (how many), other learning rates, and so on.
        figures: SVG files in the claim's folder, in the order of the report.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    summary: str
    change: str
    figures: tuple[Path, ...] = ()


class Claim(Protocol):
    """A claim that can be tested; most are a ``PairedClaim``.

    Attributes:
        id: Its name on the command line.
        statement: What is claimed, in a sentence.
        source: Where it is claimed.
        predicted: What is expected if it is true, in words.
        controls: Possible confounders, and how each is held equal or varied.
    """

    id: str
    statement: str
    source: str
    predicted: str
    controls: tuple[str, ...]

    def plans(self, size: Size) -> Mapping[str, Plan]:
        """The experiments to train for it, by the names that ``judge`` reads their tables by; empty if none."""

    def registered(self, size: Size) -> dict[str, Any]:
        """All that decides the verdict, as plain JSON values: plans, statistics, thresholds."""

    def judge(self, inputs: ClaimInputs, size: Size) -> Judgement:
        """The verdict, from the tables alone."""


@runtime_checkable
class TrainedClaim(Protocol):
    """A claim decided by trained runs: its verdict may be looked at again after trials were added."""

    def at_look(self, look: int) -> Self:
        """The claim at a later look at its verdict, which spends less of the level; the first look is 1."""

    def fewest_trials(self, name: str, size: Size, rates: int) -> int:
        """The fewest trials with which every comparison in one of its experiments could be significant.

        Args:
            name: Of the plan.
            size: Of the experiments.
            rates: Number of learning rates in it.
        """
