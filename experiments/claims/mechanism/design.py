"""The design of an experiment on the mechanism: its arms, what each is for, and the rival explanations."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from skip_conditioning.experiments.claims.verdict.outcome import Direction


class Kind(StrEnum):
    """What an arm is for."""

    SKIP = "the skip itself"
    NO_SKIP = "better conditioning without a skip"
    NO_CONDITIONING = "skip without better conditioning"
    OTHER_SKIP = "another skip"
    GAIN = "skip gain"
    BOTH = "skip and better conditioning"


class AtRate(StrEnum):
    """The learning rates at which arms are compared."""

    EQUAL = "equal"
    BEST = "best"

    @property
    def words(self) -> str:
        """For the report."""
        return {"equal": "all at the base arm's best rate", "best": "each at its own best rate"}[self.value]


#: Measures of conditioning of an initial state, and their direction when conditioning improves. None depends on the
#: scale of the Jacobian.
CONDITIONING: Final[Mapping[str, Direction]] = {
    "effective_rank": Direction.LARGER,
    "isometry_cosine": Direction.LARGER,
    "condition_number": Direction.SMALLER,
    "kernel_effective_rank": Direction.LARGER,
    "kernel_condition_number": Direction.SMALLER,
    "gauss_newton_condition_number": Direction.SMALLER,
}


@dataclass(frozen=True)
class Design:
    """The arms of an experiment on the mechanism, and how it is decided.

    Attributes:
        base: The arm without a skip.
        skip: The arm whose speed is to be explained.
        interventions: The other arms, with the purpose of each.
        skips: The arms that have a skip: the rival explanation M2.
        rivals: Columns of the initial states, each a rival explanation M3 by itself; ``stable_rate`` is the largest
            rate of the pilot sweep at which no run diverged.
        conditioning: The registered sense of conditioning, a name in ``CONDITIONING``; the others are reported.
        doses: Skip gain by arm, the base's 0 among them; empty without a dose–response test.
        factorial: For the mediation: pairs of arms without and with the skip that share an initialisation; empty
            without a mediation.
    """

    base: str
    skip: str
    interventions: Mapping[str, Kind]
    skips: tuple[str, ...]
    rivals: tuple[str, ...] = ("grad_norm", "sharpness", "stable_rate")
    conditioning: str = "effective_rank"
    doses: Mapping[str, float] | None = None
    factorial: tuple[tuple[str, str], ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms, the base first."""
        return (self.base, self.skip, *self.interventions)

    @property
    def better(self) -> Direction:
        """The direction of the registered sense when conditioning improves."""
        return CONDITIONING[self.conditioning]

    def kind(self, arm: str) -> Kind:
        """What an arm is for."""
        return self.interventions.get(arm, Kind.SKIP)
