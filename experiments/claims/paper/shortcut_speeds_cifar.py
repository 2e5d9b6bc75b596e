"""The modified shortcut trains faster on CIFAR, at every learning rate (PAPER.md, sections 3 and 4)."""

from skip_conditioning.experiments.claims.verdict.claim import Contrast, Plan
from skip_conditioning.experiments.claims.verdict.paired_claim import PairedClaim

#: Shared with the claim about ImageNet. The mean log-loss is that of all steps, not smoothed: the arms of a pair see
#: the same batches, whose noise it averages. The others take the mean over the loss window, as a single batch's loss
#: would say little.
ARMS = ("original", "modified")
CONTRASTS = (Contrast("mean_log_loss", "modified", "original", "smaller"),)
SECONDARY = (
    Contrast("final_loss", "modified", "original", "smaller"),
    Contrast("steps_to_threshold", "modified", "original", "smaller"),
)

#: A part of the images drawn once, and two passes at the learning rate before its first decay. All was set by time and
#: by the original arm alone, which learns hardly anything of CIFAR-100 at 0.02 in so few passes of larger batches.
_REDUCED = (
    *("--lr", "0.1", "0.02", "--model-options", "width=8", "--limit-test", "500", "--batch-size", "16"),
    *("--epochs", "2", "--evaluate-epochs", "2", "--loss-window", "50", "--no-diagnostics"),
)

SHORTCUT_SPEEDS_CIFAR = PairedClaim(
    id="shortcut-speeds-cifar",
    statement="A pre-activation ResNet-18 with modified shortcuts trains faster than with the original ones at every "
    "learning rate, on CIFAR-10 and on CIFAR-100.",
    source="MacDonald et al. 2023, section 6 and the figures of CIFAR's losses",
    predicted="mean log training loss over the run smaller of modified than of original, at each of the learning rates",
    controls=(
        "initialisation, data order and augmentation equal for the arms of a trial (paired by seed)",
        "learning rate: the paper's sweep, every rate shown and required; at size reduced 0.1 and 0.02 of it only",
        "size reduced differs from the paper in width 8 instead of 64, 2,000 images of CIFAR-10 and 3,520 of "
        "CIFAR-100, batches of 16 instead of 128, and two epochs, before any rate decays: it tests the start of "
        "training",
        "test accuracy in eval mode; diverged runs count as the slowest",
    ),
    by_size={
        "reduced": {
            "small-cifar10": Plan(
                "paper-cifar10", ARMS, 11, (*_REDUCED, "--subset", "2000", "--loss-threshold", "2.1")
            ),
            "small-cifar100": Plan(
                "paper-cifar100", ARMS, 11, (*_REDUCED, "--subset", "3520", "--loss-threshold", "4.5")
            ),
        },
        "cifar": {
            "cifar10": Plan(preset="paper-cifar10", arms=ARMS, seeds=10),
            "cifar100": Plan(preset="paper-cifar100", arms=ARMS, seeds=10),
        },
    },
    contrasts=CONTRASTS,
    secondary=SECONDARY,
)
