"""The design of an experiment on the mechanism: its arms, what each is for, and what is measured of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal[
    "the skip itself",
    "better conditioning without a skip",
    "skip without better conditioning",
    "another skip",
    "skip gain",
    "skip and better conditioning",
]

#: Possible mediators: measures of conditioning, names in ``run_measures.MEASURES``, and their direction when
#: conditioning improves. None depends on the scale of the Jacobian. κ is about the worst direction alone; the others
#: are about all directions, and say something also where some are lost for good, as behind batch norm in train mode.
MEDIATORS: Final[Mapping[str, Literal["smaller", "larger"]]] = {
    "condition_number": "smaller",
    "effective_rank": "larger",
    "isometry_cosine": "larger",
}


@dataclass(frozen=True)
class Design:
    """The arms of an experiment on the mechanism, and how it is decided.

    Attributes:
        base: The arm without a skip.
        skip: The arm whose speed is to be explained.
        interventions: The other arms, with the purpose of each.
        doses: Skip gain by arm, the base's 0 among them; empty without a dose–response test.
        factorial: For the mediation: pairs of arms without and with the skip that share an initialisation; empty
            without a mediation.
        mediators: Measures of conditioning, names in ``MEDIATORS``, each tested by itself.
        speed: The measure of speed, a name in ``run_measures.MEASURES`` of which less is faster.
        alike: By mediator: its ratios between ``1 / alike`` and ``alike`` count as no change. κ ranges over many orders
            of magnitude, the others over one or two.
        share: The mediation supports the mechanism if more than this share of the skip's effect passes through the
            mediator.
    """

    base: str
    skip: str
    interventions: Mapping[str, Kind]
    doses: Mapping[str, float]
    factorial: tuple[tuple[str, str], ...] = ()
    mediators: tuple[str, ...] = tuple(MEDIATORS)
    speed: str = "mean_log_loss"
    alike: Mapping[str, float] = field(
        default_factory=lambda: {"condition_number": 1.25, "effective_rank": 1.05, "isometry_cosine": 1.05}
    )
    share: float = 0.5

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms, the base first."""
        paired_arms = (arm for pair in self.factorial for arm in pair)
        return tuple(dict.fromkeys((self.base, self.skip, *self.interventions, *self.doses, *paired_arms)))

    @property
    def shares(self) -> int:
        """Number of equal shares of the level: mediators, times comparisons, dose–response and mediation."""
        return len(self.mediators) * (1 + bool(self.doses) + bool(self.factorial))

    @property
    def comparisons(self) -> tuple[tuple[str, str], ...]:
        """The skip against the base, then each intervention against both."""
        return (
            (self.skip, self.base),
            *((arm, other) for arm in self.interventions for other in (self.base, self.skip)),
        )
