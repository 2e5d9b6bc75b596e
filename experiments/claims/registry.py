"""The claims by name, in the order of PAPER.md, section 4. Another claim is one module and one line here."""

from diagnostics.errors import InputError, near_matches
from experiments.claims.claim import Claim
from experiments.claims.mnist_spectrum_order import MNIST_SPECTRUM_ORDER
from experiments.claims.mnist_speed_order import MNIST_SPEED_ORDER
from experiments.claims.shortcut_speeds_cifar import SHORTCUT_SPEEDS_CIFAR
from experiments.claims.shortcut_speeds_imagenet import SHORTCUT_SPEEDS_IMAGENET
from experiments.claims.skip_shifts_spectrum import SKIP_SHIFTS_SPECTRUM
from experiments.claims.spectrum_explains_speed import SPECTRUM_EXPLAINS_SPEED
from experiments.claims.theory_claims import (
    CONVERGES_AT_INFINITY,
    NORMALISATION_BOUNDS_CURVATURE,
    PL_ALONG_TRAINING,
    REGULARITY_BOUND,
)

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in (
        SKIP_SHIFTS_SPECTRUM,
        REGULARITY_BOUND,
        PL_ALONG_TRAINING,
        NORMALISATION_BOUNDS_CURVATURE,
        CONVERGES_AT_INFINITY,
        MNIST_SPECTRUM_ORDER,
        MNIST_SPEED_ORDER,
        SHORTCUT_SPEEDS_CIFAR,
        SHORTCUT_SPEEDS_IMAGENET,
        SPECTRUM_EXPLAINS_SPEED,
    )
}


def chosen(names: tuple[str, ...]) -> list[Claim]:
    """The claims of some names, or all of them, in the order of the registry.

    Raises:
        InputError: A name that no claim has.
    """
    for name in names:
        if name not in CLAIMS:
            raise InputError(f"unknown claim {name!r}; known are {', '.join(CLAIMS)}.{near_matches(name, CLAIMS)}")
    return [claim for name, claim in CLAIMS.items() if not names or name in names]
