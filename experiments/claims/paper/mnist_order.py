"""The order of the singular values: chain < residual < modified (PAPER.md, sections 3 and 4)."""

from typing import Literal

from skip_conditioning.experiments.claims.verdict.claim import Contrast, Plan, Size
from skip_conditioning.experiments.claims.verdict.paired_claim import PairedClaim

#: Trained once for both claims about this experiment. The demo's digits have MNIST's shape; its probe is a quarter of
#: the batch, which makes the Jacobians sixteen times smaller. No
#: step after the 20th is asked about, and with a constant learning rate none changes those before.
PLANS: dict[Size, dict[str, Plan]] = {
    "demo": {
        "paper-mnist": Plan(
            preset="paper-mnist",
            arms=("chain", "residual", "modified"),
            seeds=10,
            options=("--dataset", "digits", "--steps", "20", "--probe-size", "8", "--measure-until", "9"),
        )
    },
    "mnist": {
        "paper-mnist": Plan(
            preset="paper-mnist",
            arms=("chain", "residual", "modified"),
            seeds=30,
            options=("--steps", "20", "--measure-until", "9"),
        )
    },
}

#: Shared by both: what the paper's comparison holds equal, and what it does not.
CONTROLS = (
    "initialisation, images and their order equal for the arms of a trial (paired by seed)",
    "batch norm in train mode in all arms, as in the paper",
    "learning rate 0.1 only, the paper's: in the chain the block convolutions feed batch norm, so that their "
    "effective step is lr/|w|², and with a skip it is not; a sweep is left to spectrum-explains-speed",
    "diverged runs count as the slowest",
)

_PREDICTED: tuple[tuple[str, Literal["smaller", "larger"]], ...] = (
    ("sigma_mean", "larger"),
    ("sigma_gmean", "larger"),
    ("sigma_min", "larger"),
    ("condition_number", "smaller"),
)
_PAIRS = (("residual", "chain"), ("modified", "residual"))

MNIST_SPECTRUM_ORDER = PairedClaim(
    id="mnist-spectrum-order",
    statement="The singular values of the Jacobian behind the stem are ordered chain < residual < modified over the "
    "first 10 steps, and the condition numbers the other way round.",
    source="MacDonald et al. 2023, section 6 and the figure of MNIST's spectra",
    predicted="mean, geometric mean and smallest singular value larger, and κ smaller, of residual than of chain and "
    "of modified than of residual",
    controls=CONTROLS,
    by_size=PLANS,
    contrasts=tuple(
        Contrast(measure, arm, other, predicted) for arm, other in _PAIRS for measure, predicted in _PREDICTED
    ),
)


#: Fixed beforehand.
_STEPS = (2, 5, 10, 20)

MNIST_SPEED_ORDER = PairedClaim(
    id="mnist-speed-order",
    statement="Training is ordered by speed chain < residual < modified.",
    source="MacDonald et al. 2023, section 6 and the figure of MNIST's losses",
    predicted=f"training loss at steps {', '.join(map(str, _STEPS))} smaller of residual than of chain and of modified "
    "than of residual",
    controls=CONTROLS,
    by_size=PLANS,
    contrasts=tuple(
        Contrast(f"loss_at_step_{step}", arm, other, "smaller")
        for arm, other in (("residual", "chain"), ("modified", "residual"))
        for step in _STEPS
    ),
)
