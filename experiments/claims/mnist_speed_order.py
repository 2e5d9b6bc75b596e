"""The order of the training losses: modified below residual below chain (PAPER.md, sections 3 and 4)."""

from experiments.claims.claim import Contrast
from experiments.claims.mnist_spectrum_order import CONTROLS, PLANS
from experiments.claims.paired_claim import PairedClaim

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
