"""The claims by name, in the order of docs/paper.md §4. Another claim is one module and one line here."""

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.experiments.claims.paper.cifar_claims import CONDITIONING_SPEEDS_CIFAR, SHORTCUT_SPEEDS_CIFAR
from skip_conditioning.experiments.claims.paper.matched_conditioning import MATCHED_CONDITIONING
from skip_conditioning.experiments.claims.paper.paired_claims import (
    MNIST_SPECTRUM_ORDER,
    MNIST_SPEED_ORDER,
    SHORTCUT_SPEEDS_IMAGENET,
)
from skip_conditioning.experiments.claims.paper.skip_shifts_spectrum import SKIP_SHIFTS_SPECTRUM
from skip_conditioning.experiments.claims.paper.spectrum_explains_speed import SPECTRUM_EXPLAINS_SPEED
from skip_conditioning.experiments.claims.paper.theory_claims import (
    CONVERGES_AT_INFINITY,
    LAST_LAYER_UNBOUNDS_CURVATURE,
    NORMALISATION_BOUNDS_CURVATURE,
    PL_ALONG_TRAINING,
    REGULARITY_BOUND,
)
from skip_conditioning.experiments.claims.verdict.claim import Claim
from skip_conditioning.models.user_code import load_attribute

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in (
        SKIP_SHIFTS_SPECTRUM,
        REGULARITY_BOUND,
        PL_ALONG_TRAINING,
        NORMALISATION_BOUNDS_CURVATURE,
        LAST_LAYER_UNBOUNDS_CURVATURE,
        CONVERGES_AT_INFINITY,
        MNIST_SPECTRUM_ORDER,
        MNIST_SPEED_ORDER,
        SHORTCUT_SPEEDS_CIFAR,
        CONDITIONING_SPEEDS_CIFAR,
        SHORTCUT_SPEEDS_IMAGENET,
        SPECTRUM_EXPLAINS_SPEED,
        MATCHED_CONDITIONING,
    )
}


def chosen_claims(names: tuple[str, ...]) -> list[Claim]:
    """The claims with these names in the order of the registry, then the user's own.

    Args:
        names: Of the registry, or ``package.module:NAME`` or ``file.py:NAME`` for a claim of the user's own; all claims
            of the registry if empty.

    Raises:
        InputError: A name is unknown, a module cannot be imported, or two claims have one id.
    """
    own = [_own_claim(name) for name in dict.fromkeys(names) if ":" in name]
    for name in names:
        if ":" not in name and name not in CLAIMS:
            raise InputError(
                f"unknown claim {name!r}; known are {', '.join(CLAIMS)}; your own is given as package.module:NAME."
                f"{near_matches(name, CLAIMS)}"
            )
    claims = [*(claim for name, claim in CLAIMS.items() if not names or name in names), *own]
    for claim in own:
        if claim.id in CLAIMS or [other.id for other in own].count(claim.id) > 1:
            raise InputError(f"there is another claim with the id {claim.id!r}; give yours another")
    return claims


def _own_claim(path: str) -> Claim:
    try:
        claim = load_attribute(path)
    except ImportError as error:
        raise InputError(f"claim {path!r}: {error}") from error
    needed = ("id", "statement", "source", "predicted", "controls", "plans", "registered", "judge")
    missing = [name for name in needed if not hasattr(claim, name)]
    if missing:
        raise InputError(f"claim {path!r} lacks {', '.join(missing)}; docs/claims.md shows how a claim is written")
    assert isinstance(claim.id, str)
    return claim
