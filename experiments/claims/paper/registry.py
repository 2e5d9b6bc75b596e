"""The claims by name, in the order of PAPER.md, section 4. Another claim is one module and one line here."""

import importlib

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.experiments.claims.paper.mnist_order import MNIST_SPECTRUM_ORDER, MNIST_SPEED_ORDER
from skip_conditioning.experiments.claims.paper.shortcut_speeds_cifar import SHORTCUT_SPEEDS_CIFAR
from skip_conditioning.experiments.claims.paper.shortcut_speeds_imagenet import SHORTCUT_SPEEDS_IMAGENET
from skip_conditioning.experiments.claims.paper.skip_shifts_spectrum import SKIP_SHIFTS_SPECTRUM
from skip_conditioning.experiments.claims.paper.spectrum_explains_speed import SPECTRUM_EXPLAINS_SPEED
from skip_conditioning.experiments.claims.paper.theory_claims import (
    CONVERGES_AT_INFINITY,
    NORMALISATION_BOUNDS_CURVATURE,
    PL_ALONG_TRAINING,
    REGULARITY_BOUND,
)
from skip_conditioning.experiments.claims.verdict.claim import Claim

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
    """The claims of some names, or all of them, in the order of the registry; then those of the user's own.

    Args:
        names: Of the registry, or ``package.module:NAME`` for a claim anywhere on the import path.

    Raises:
        InputError: A name that no claim has, a module that cannot be imported, or two claims of one name.
    """
    own = [_own_claim(name) for name in dict.fromkeys(names) if ":" in name]
    for name in names:
        if ":" not in name and name not in CLAIMS:
            raise InputError(
                f"unknown claim {name!r}; known are {', '.join(CLAIMS)}, and package.module:NAME is one of your own."
                f"{near_matches(name, CLAIMS)}"
            )
    found = [*(claim for name, claim in CLAIMS.items() if not names or name in names), *own]
    for claim in own:
        if claim.id in CLAIMS or [one.id for one in own].count(claim.id) > 1:
            raise InputError(f"there is another claim of the name {claim.id!r}; give yours another id")
    return found


def _own_claim(path: str) -> Claim:
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:
        raise InputError(f"claim {path!r}: cannot import {module_name!r} ({error})") from error
    claim = getattr(module, attribute, None)
    needed = ("id", "statement", "source", "predicted", "controls", "plans", "registered", "judge")
    missing = [name for name in needed if not hasattr(claim, name)]
    if claim is None or missing:
        what = f"has no {attribute!r}" if claim is None else f"{attribute} lacks {', '.join(missing)}"
        raise InputError(f"claim {path!r}: {module_name} {what}; a claim is described in experiments/claims/claim.py")
    assert isinstance(claim.id, str)
    return claim
