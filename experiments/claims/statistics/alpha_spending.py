"""Looking at results several times: which part of the error rate each look may spend (Lan & DeMets 1983)."""

from typing import Final

#: The share of the level that the first look spends; each later one spends half of what is left, so that all looks
#: together never spend more than the level.
FIRST_LOOK_SHARE: Final = 0.8


def level_at(level: float, look: int) -> float:
    """The part of a family-wise error rate that a look may spend.

    Args:
        level: Of all looks together.
        look: Its number, from 1 on.
    """
    return level * (FIRST_LOOK_SHARE if look == 1 else (1 - FIRST_LOOK_SHARE) / 2 ** (look - 1))
