"""The modified shortcut trains faster on CIFAR, at every learning rate (PAPER.md, sections 3 and 4)."""

from experiments.claims.claim import Contrast, Plan
from experiments.claims.paired_claim import PairedClaim

_ARMS = ("original", "modified")

SHORTCUT_SPEEDS_CIFAR = PairedClaim(
    id="shortcut-speeds-cifar",
    statement="A pre-activation ResNet-18 with modified shortcuts trains faster than with the original ones at every "
    "learning rate, on CIFAR-10 and on CIFAR-100.",
    source="MacDonald et al. 2023, section 6 and the figures of CIFAR's losses",
    predicted="mean log training loss over the run smaller of modified than of original, at each of the learning rates",
    controls=(
        "initialisation, data order and augmentation equal for the arms of a trial (paired by seed)",
        "learning rate: the paper's sweep, every rate shown and required",
        "test accuracy in eval mode; diverged runs count as the slowest",
    ),
    by_size={
        "cifar": {
            "cifar10": Plan(preset="paper-cifar10", arms=_ARMS, seeds=10),
            "cifar100": Plan(preset="paper-cifar100", arms=_ARMS, seeds=10),
        }
    },
    contrasts=(Contrast("mean_log_loss", "modified", "original", "smaller"),),
    secondary=(
        Contrast("final_loss", "modified", "original", "smaller"),
        Contrast("steps_to_threshold", "modified", "original", "smaller"),
    ),
)
