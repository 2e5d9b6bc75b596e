"""What a claim is: what is said, what is run to test it, what would have to be seen, and the rule that decides.

A claim is written down whole before anything is trained (``preregistration``); its verdict is a function of the tables
alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from skip_conditioning.diagnostics.tables import Experiment


@dataclass(frozen=True)
class Evidence:
    """Tables by the names that a claim's plans have, and where whatever else a claim computes may be kept.

    Attributes:
        experiments: The tables of each experiment.
        directory: A folder of the claim's own, for figures and for results that are no experiments of
            ``experiments.train``.
        seed: Of whatever is drawn, such as bootstrap samples.
        data_dir: Folder of the data sets, for what a claim measures itself; None where only bundled digits are there.
    """

    experiments: Mapping[str, Experiment]
    directory: Path
    seed: int = 0
    data_dir: Path | None = None


Verdict = Literal["supported", "contradicted", "inconclusive", "vacuous"]
Size = Literal["demo", "mnist", "reduced", "cifar"]


@dataclass(frozen=True)
class Plan:
    """What is trained for a claim at one size: an experiment of ``experiments.train``.

    Claims whose plans are equal but for the arms and the seeds share one experiment, with the arms and seeds of all.

    Attributes:
        preset: Its preset.
        arms: Variants compared.
        seeds: Trials, each an initialisation and a data order shared by all arms.
        options: Further options, as on its command line.
    """

    preset: str
    arms: tuple[str, ...]
    seeds: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """How a paired comparison is decided; all numbers are fixed beforehand.

    Attributes:
        level: Family-wise error rate of a claim's comparisons together (Holm).
        equivalent: Ratios between ``1 / equivalent`` and ``equivalent`` count as no effect.
        fewest_seeds: Fewer pairs than these decide nothing and are refused.
    """

    level: float = 0.05
    equivalent: float = 1.05
    fewest_seeds: int = 6


@dataclass(frozen=True)
class Contrast:
    """One paired comparison: a measure of an arm over that of another.

    Attributes:
        measure: A name in ``measures.MEASURES``; positive numbers, compared by the logarithm of their ratio.
        arm: The arm that the prediction is about.
        other: The arm that it is compared with.
        predicted: Whether its measure is said to be the ``smaller`` or the ``larger``.
    """

    measure: str
    arm: str
    other: str
    predicted: Literal["smaller", "larger"]


@dataclass(frozen=True)
class Finding:
    """What a verdict rests on: one row of the table ``verdicts``.

    Attributes:
        what: The comparison or the statement, in words.
        verdict: Of this one alone, after the correction.
        numbers: Effect sizes, intervals, p values, numbers of pairs and so on, by name.
        note: What else is to be known, such as why it is vacuous.
    """

    what: str
    verdict: Verdict
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim.

    Attributes:
        verdict: One of the four.
        findings: What it rests on.
        summary: One or two sentences for the top of the report; each line becomes a paragraph.
        change: What would change it: more seeds (how many), another learning rate, and so on.
        figures: SVG files in the claim's folder, in the order of the report.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    summary: str
    change: str
    figures: tuple[Path, ...] = ()


class Claim(Protocol):
    """One claim, a module of its own in this package."""

    @property
    def id(self) -> str:
        """Its name on the command line."""

    @property
    def statement(self) -> str:
        """What is claimed, in a sentence."""

    @property
    def source(self) -> str:
        """Where."""

    @property
    def predicted(self) -> str:
        """The direction that is expected if it is true, in words."""

    @property
    def controls(self) -> tuple[str, ...]:
        """What is held equal or varied beside it."""

    def plans(self, size: Size) -> Mapping[str, Plan]:
        """What is to be trained for it, by the name that ``judge`` finds the tables under; empty for none."""

    def registered(self, size: Size) -> dict[str, Any]:
        """All that decides the verdict, as plain JSON values: plans, statistics, thresholds."""

    def judge(self, evidence: Evidence, size: Size) -> Judgement:
        """The verdict, from the tables alone."""
