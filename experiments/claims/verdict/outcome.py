"""What a verdict is: one of seven values, the comparison or statement that it is about, its numbers, and why.

Code reads the fields; the words of the report are made from them in ``wording``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Verdict(StrEnum):
    """What the registered rule finds."""

    SUPPORTED = "supported"
    SUPPORTED_SMALL = "supported, small"
    NO_EFFECT = "no effect"
    REVERSED = "reversed"
    UNDECIDED = "undecided"
    VACUOUS = "vacuous"
    NOT_TESTED = "not tested"

    @property
    def is_supported(self) -> bool:
        """Whether the prediction came true, whatever the size."""
        return self in (Verdict.SUPPORTED, Verdict.SUPPORTED_SMALL)


class Reason(StrEnum):
    """Why a comparison is vacuous, undecided or not tested, where the numbers alone do not say it."""

    NOT_MEASURED = "not measured in any pair"
    UNKNOWN_ORDER = "in most pairs it is open which run is larger"
    TOO_FEW_PAIRS = "too few pairs for an interval"
    NO_FALL = "the loss of the base arm's pilot runs hardly falls, so there are no thresholds"
    RATE_AT_END = "the best learning rate of an arm is an end of the grid, so a better one may lie outside"
    OTHER_SIZE = "nothing is trained for it at this size"
    NO_PREMISE = "the skip is not both better conditioned and faster, so there is nothing to explain"
    NO_GAIN = "the arm is not faster, so there is no gain to share"
    NOT_ALL_BEATEN = "conditioning predicts better than the skip as such, but not than every rival"
    RIVAL_BETTER = "the skip as such, or a rival, predicts the speed of arms left out better than conditioning does"
    NOT_IDENTIFIED = "the initialisations disagree, so the share is not identified"
    VIOLATED = "a check of a theorem fails"


class Direction(StrEnum):
    """What is predicted of the ratio of an arm's measure to the other arm's."""

    SMALLER = "smaller"
    LARGER = "larger"
    EQUAL = "equal"


@dataclass(frozen=True)
class Comparison:
    """Two arms to be compared trial by trial: the ratio of a measure of one to that of the other.

    Attributes:
        measure: A name in ``run_measures.MEASURES``, or ``loss_at_step_N``.
        arm: The arm that the prediction is about.
        other: The arm that it is compared with.
        predicted: Whether the measure of ``arm`` is predicted to be smaller or larger than that of ``other``, or equal
            within the margin.
        map: Of the spectrum that a measure of conditioning reads; empty for the first that was measured.
        layer: Of that spectrum; empty for the first that was measured.
    """

    measure: str
    arm: str
    other: str
    predicted: Direction
    map: str = ""
    layer: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "predicted", Direction(self.predicted))


@dataclass(frozen=True)
class Finding:
    """The outcome of one comparison or statement: one row of the table ``verdicts``.

    Attributes:
        what: The comparison or the statement, in words.
        verdict: On this one alone, after the correction.
        numbers: Effect sizes, ends of intervals and their level, p values, numbers of pairs and so on, by name.
        reason: Why it is vacuous, undecided or not tested.
        note: More for the reader.
        decides: Whether the verdict on the claim rests on it; otherwise it is secondary, shown for information.
        comparison: What was compared, if two arms were.
        experiment: Name of the experiment that it rests on.
        lr: Learning rate of the runs compared; None where each arm has its own.
    """

    what: str
    verdict: Verdict
    numbers: Mapping[str, float] = field(default_factory=dict)
    reason: Reason | None = None
    note: str = ""
    decides: bool = True
    comparison: Comparison | None = None
    experiment: str = ""
    lr: float | None = None


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim.

    Attributes:
        verdict: Of the claim as a whole.
        findings: Those that decide, then the secondary ones.
        answer: What was seen, in a sentence that a reader of the paper understands.
        change: What would change the verdict: more trials (how many), other learning rates, and so on.
        figures: SVG files in the claim's folder, in the order of the report.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    answer: str
    change: str
    figures: tuple[Path, ...] = ()

    @property
    def deciding(self) -> tuple[Finding, ...]:
        """The findings that the verdict rests on."""
        return tuple(finding for finding in self.findings if finding.decides)

    @property
    def parts(self) -> Counter[Verdict]:
        """How many of the parts of the claim have each verdict."""
        return Counter(finding.verdict for finding in self.deciding)


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim that predicts several parts at once, all of which it needs.

    It is reversed where any part is, has no effect where any part has none, and is supported where all are, but small
    where all are small. Parts that were vacuous or not tested leave it undecided, unless there are no others.
    """
    tested = [verdict for verdict in verdicts if verdict not in (Verdict.VACUOUS, Verdict.NOT_TESTED)]
    if not tested:
        return Verdict.VACUOUS if Verdict.VACUOUS in verdicts else Verdict.NOT_TESTED
    for verdict in (Verdict.REVERSED, Verdict.NO_EFFECT):
        if verdict in tested:
            return verdict
    if Verdict.UNDECIDED in tested or len(tested) < len(verdicts):
        return Verdict.UNDECIDED
    return Verdict.SUPPORTED if Verdict.SUPPORTED in tested else Verdict.SUPPORTED_SMALL
