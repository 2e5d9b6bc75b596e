"""Whether the samples of a batch interact on their way to the outputs, told from backward passes alone."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

#: Powers of two, with either sign, by which a sample's cotangent is multiplied; products with them are exact.
_FACTORS = [sign * 2.0**power for power in range(-16, 16) for sign in (1, -1)]
#: Rounding that passes for exact, in units of ``eps``: sums may be taken in another order on a GPU.
_ROUNDING_UNITS = 16


def interactions(pull_back: Callable[[Tensor], Sequence[Tensor]], cotangent: Tensor) -> list[bool]:
    """Whether what arrives at each of some tensors for one sample depends on the outputs of other samples.

    Backward passes are linear: where samples do not interact, cotangents multiplied by a factor for each sample arrive
    multiplied by that factor. Any two samples have different factors at least once, so that even a weak interaction of
    a single pair shows, down to rounding. Costs one backward pass and another for every factor of 64 in N.

    Args:
        pull_back: Takes a cotangent of the outputs; returns what arrives at the tensors, each ``(N, …)``.
        cotangent: A random one, shape ``(N, O)``.
    """
    if len(cotangent) == 1:
        return [False for _ in pull_back(cotangent)]
    plain = [part.flatten(1) for part in pull_back(cotangent)]
    interact = [False] * len(plain)
    for factors in _factors(cotangent):
        for index, scaled in enumerate(pull_back(factors * cotangent)):
            allowed = _ROUNDING_UNITS * torch.finfo(scaled.dtype).eps * (factors * plain[index]).abs().amax(1)
            moved = (scaled.flatten(1) - factors * plain[index]).abs().amax(1)
            interact[index] |= not bool((moved <= allowed).all())
    return interact


def _factors(cotangent: Tensor) -> Iterator[Tensor]:
    """Factors for all samples, shape ``(N, 1)``: the digits of their numbers to the base 64."""
    numbers = torch.arange(len(cotangent))
    while True:
        yield torch.tensor(_FACTORS)[numbers % len(_FACTORS)].to(cotangent)[:, None]
        numbers = numbers // len(_FACTORS)
        if not bool(numbers.any()):
            return
