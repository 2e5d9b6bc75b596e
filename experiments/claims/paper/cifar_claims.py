"""The paper's central prediction, on CIFAR, that better conditioned shortcuts train faster; and why they do.

The modified shortcut differs from the original one in more than conditioning: it throws no pixel away, and its output
is larger. ``pooled-1x1`` has all pixels and exactly the original's singular values, ``rescaled`` the modified one's
scale. See docs/paper.md §3 and §4, and ``models/preact_resnet.py``.
"""

from typing import Final

from skip_conditioning.experiments.claims.paper.paired_claims import SEED
from skip_conditioning.experiments.claims.paper.shared_gain import SharedGain
from skip_conditioning.experiments.claims.verdict.claim import Plan, Size
from skip_conditioning.experiments.claims.verdict.outcome import Comparison, Direction
from skip_conditioning.experiments.claims.verdict.paired_claim import PairedClaim
from skip_conditioning.experiments.claims.verdict.step_thresholds import Thresholds
from skip_conditioning.experiments.config.presets import preset

_ARMS: Final = ("original", "modified", "pooled-1x1")
_CONTROLS: Final = {"pooled-1x1": "all pixels, the original's singular values", "rescaled": "the scale of modified"}
#: Steps of a reduced run, in which no rate decays; losses of mini-batches are averaged over windows of a sixth of them.
_STEPS, _WINDOW = 300, 51
_THRESHOLDS: Final = Thresholds("original", 2, shares=(0.2, 0.35, 0.5, 0.65, 0.8), window=_WINDOW)


def _reduced(name: str, lr: tuple[float, ...], trials: int, arms: tuple[str, ...]) -> Plan:
    """All images, batches, augmentation and optimiser of the paper; width 16 instead of 64, and 300 steps."""
    return Plan(
        preset(
            name, arms=arms, lr=lr, trials=trials, epochs=None, steps=_STEPS,
            model_options=("width=16",), channels_last=True, loss_window=_WINDOW, diagnostics=False, seed=SEED,
        )
    )  # fmt: skip


_AT_PAPERS_RATE: Final = _reduced("paper-cifar10", (0.1,), 14, _ARMS)
_BY_SIZE: Final[dict[Size, dict[str, Plan]]] = {
    "reduced": {
        "cifar10": _AT_PAPERS_RATE,
        "cifar10-other-rates": _reduced("paper-cifar10", (0.02, 0.2), 11, _ARMS),
        "cifar100-part": _reduced("paper-cifar100", (0.1,), 10, _ARMS),
    },
    "cifar": {
        "cifar10": Plan(preset("paper-cifar10", arms=_ARMS, trials=12)),
        "cifar100": Plan(preset("paper-cifar100", arms=_ARMS, trials=12)),
    },
}

SHORTCUT_SPEEDS_CIFAR = PairedClaim(
    id="shortcut-speeds-cifar",
    statement="A pre-activation ResNet-18 with modified shortcuts trains faster than with the original ones at every "
    "learning rate, on CIFAR-10 and on CIFAR-100.",
    source="MacDonald et al. 2023, section 6 and the figures of CIFAR's losses",
    predicted="fewer steps to the thresholds of modified than of original, at each of the learning rates",
    controls=(
        "initialisation, data order and augmentation equal for the arms of a trial",
        "learning rate: the paper's sweep, every rate shown and required; at size reduced 0.02, 0.1 and 0.2 of it",
        "size reduced differs from the paper in width 16 instead of 64, 300 steps instead of 90 epochs, before any "
        "rate decays, and only the part of CIFAR-100 that is there: it tests the start of training",
        "diverged runs count as the slowest",
    ),
    by_size=_BY_SIZE,
    comparisons=(Comparison("steps", "modified", "original", Direction.SMALLER),),
    secondary=(
        Comparison("steps", "pooled-1x1", "original", Direction.SMALLER),
        Comparison("steps", "modified", "pooled-1x1", Direction.SMALLER),
        *(
            Comparison(measure, "modified", "original", Direction.SMALLER)
            for measure in ("mean_log_loss", "loss_at_step_100", "loss_at_step_200", "final_loss", "test_error")
        ),
    ),
    thresholds=_THRESHOLDS,
)

CONDITIONING_SPEEDS_CIFAR = SharedGain(
    id="conditioning-speeds-cifar",
    statement="The modified shortcut trains faster because it is better conditioned, and not because it throws no "
    "pixel away or has a larger output.",
    source="what MacDonald et al. 2023, section 6, implies; docs/paper.md §4",
    predicted="pooled-1x1, which has the original's singular values and all pixels, and rescaled, the original at the "
    "scale of modified, get less than a quarter of what modified gains in steps",
    arm="modified",
    base="original",
    controls_of=_CONTROLS,
    by_size={"reduced": {"cifar10": _reduced("paper-cifar10", (0.1,), 14, (*_ARMS, "rescaled", "plain-pooled-1x1"))}},
    thresholds=_THRESHOLDS,
    controls=(
        "initialisation, data order and augmentation equal for the arms of a trial; all arms share all parameters",
        "plain-pooled-1x1, half of the singular values of pooled-1x1, stands beside them and decides nothing",
        "learning rate 0.1 only",
        "as in shortcut-speeds-cifar: width 16, 300 steps",
    ),
)
