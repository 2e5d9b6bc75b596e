"""Error rates of several looks at the results of an experiment that grows."""

from typing import Final

#: The share of the level that the first look at the results spends; each later one spends half of what is left, so that
#: all looks together never spend more than the level (Lan & DeMets 1983).
FIRST_LOOK_SHARE: Final = 0.8


def level_at(level: float, look: int) -> float:
    """The part of a family-wise error rate that a look at the results may spend; the first look is 1."""
    return level * (FIRST_LOOK_SHARE if look == 1 else (1 - FIRST_LOOK_SHARE) / 2 ** (look - 1))
