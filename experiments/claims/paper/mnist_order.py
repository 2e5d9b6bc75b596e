"""Claims: on MNIST both conditioning and speed are ordered chain < residual < modified (docs/paper.md §3 and §4)."""

from typing import Final

from skip_conditioning.experiments.claims.verdict.claim import Comparison, Plan, Size
from skip_conditioning.experiments.claims.verdict.paired_claim import PairedClaim
from skip_conditioning.experiments.config.presets import preset

#: The arms compared, the one that is predicted to be better first.
_PAIRS: Final = (("residual", "chain"), ("modified", "residual"))
#: Steps at which losses are compared, fixed beforehand.
_STEPS: Final = (2, 5, 10, 20)

#: Trained once for both claims. No step after the 20th is compared, and with a constant learning rate none changes the
#: steps before. The demo's digits have MNIST's shape; its probe is a quarter of the batch, which makes the Jacobians
#: sixteen times smaller.
_PLANS: Final[dict[Size, dict[str, Plan]]] = {
    "demo": {
        "paper-mnist": Plan(preset("paper-mnist", dataset="digits", trials=10, steps=20, probe_size=8, measure_until=9))
    },
    "mnist": {"paper-mnist": Plan(preset("paper-mnist", trials=30, steps=20, measure_until=9))},
}

_CONTROLS: Final = (
    "initialisation, images and their order equal for the arms of a trial",
    "batch norm in train mode in all arms, as in the paper",
    "learning rate 0.1 only, as in the paper: in the chain the block convolutions feed batch norm, so their effective "
    "step is lr/|w|², and with a skip it is not; spectrum-explains-speed has the sweep",
    "diverged runs count as the slowest",
)

MNIST_SPECTRUM_ORDER = PairedClaim(
    id="mnist-spectrum-order",
    statement="The singular values of the Jacobian behind the stem are ordered chain < residual < modified over the "
    "first 10 steps, and the condition numbers the other way round.",
    source="MacDonald et al. 2023, section 6 and the figure of MNIST's spectra",
    predicted="mean, geometric mean and smallest singular value larger, and κ smaller, of residual than of chain and "
    "of modified than of residual",
    controls=_CONTROLS,
    by_size=_PLANS,
    comparisons=tuple(
        comparison
        for arm, other in _PAIRS
        for comparison in (
            Comparison("sigma_mean", arm, other, "larger"),
            Comparison("sigma_gmean", arm, other, "larger"),
            Comparison("sigma_min", arm, other, "larger"),
            Comparison("condition_number", arm, other, "smaller"),
        )
    ),
)

MNIST_SPEED_ORDER = PairedClaim(
    id="mnist-speed-order",
    statement="Training is ordered by speed chain < residual < modified.",
    source="MacDonald et al. 2023, section 6 and the figure of MNIST's losses",
    predicted=f"training loss at steps {', '.join(map(str, _STEPS))} smaller of residual than of chain and of modified "
    "than of residual",
    controls=_CONTROLS,
    by_size=_PLANS,
    comparisons=tuple(
        Comparison(f"loss_at_step_{step}", arm, other, "smaller") for arm, other in _PAIRS for step in _STEPS
    ),
)
