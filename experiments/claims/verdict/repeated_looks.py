"""Looking at a verdict again after seeds were added: how much of the level each look may spend."""

from typing import Final, Protocol, Self, runtime_checkable

from skip_conditioning.experiments.claims.verdict.claim import Size

#: The share of the level that the first look at the verdict spends. Each later one, after ``--seeds`` was raised,
#: spends half of what is left, so that all together never spend more than the level.
FIRST_LOOK: Final = 0.8

WORDS: Final = (
    f"the first look spends {FIRST_LOOK:g} of the level, each later one (after --seeds was raised) half of what is left"
)


def level_at(level: float, look: int) -> float:
    """The part of a family-wise error rate that a look may spend; the first is 1."""
    return level * (FIRST_LOOK if look == 1 else (1 - FIRST_LOOK) / 2 ** (look - 1))


@runtime_checkable
class Repeatable(Protocol):
    """A claim decided by trained seeds, whose verdict may be looked at again with more of them."""

    def at_look(self, look: int) -> Self:
        """The claim at a later look, which spends less of the level."""

    def fewest_seeds(self, name: str, size: Size, rates: int) -> int:
        """The fewest trials with which every comparison in one of its experiments could come out.

        Args:
            name: Of the plan.
            size: Of the experiments.
            rates: Learning rates in it.
        """
