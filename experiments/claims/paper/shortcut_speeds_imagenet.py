"""The modified shortcut trains faster on ImageNet, at every depth (PAPER.md, sections 3 and 4)."""

from skip_conditioning.experiments.claims.paper.shortcut_speeds_cifar import ARMS, CONTRASTS, SECONDARY
from skip_conditioning.experiments.claims.verdict.claim import Plan
from skip_conditioning.experiments.claims.verdict.paired_claim import PairedClaim

#: With which one pair in disagreement does not undo a verdict at size reduced.
_SEEDS = 11

#: 320 images of ten classes drawn once, and four passes at the learning rate before its first decay: the paper's 0.1
#: scaled with the batch, as at 0.1 the loss of the original ResNet-34 rises in batches of 32. All was set by time and
#: by the original arm alone. Images are decoded in the process that trains.
_REDUCED = (
    *("--model-options", "width=8", "--subset", "320", "--limit-test", "100", "--batch-size", "32", "--epochs", "4"),
    *("--lr", "0.0125", "--evaluate-epochs", "4", "--loss-threshold", "2.25", "--loss-window", "10"),
    *("--workers", "0", "--no-diagnostics"),
)

SHORTCUT_SPEEDS_IMAGENET = PairedClaim(
    id="shortcut-speeds-imagenet",
    statement="Pre-activation ResNets with modified shortcuts train faster on ImageNet than with the original ones, "
    "at every depth: 18, 34, 50, 101 and 152 layers.",
    source="MacDonald et al. 2023, section 6 and the figures of ImageNet's losses",
    predicted="mean log training loss over the run smaller of modified than of original, at each depth",
    controls=(
        "initialisation, data order and augmentation equal for the arms of a trial (paired by seed)",
        f"{_SEEDS} trials a depth where the paper has one, from which no rule could decide (five depths need nine or "
        "more); at size cifar that is 110 runs of 90 epochs, some 2·10²⁰ multiply-adds or three months of one GPU at "
        "50 TFLOP/s, eleven times the cost of one trial",
        "learning rate 0.1 only, the paper's; at size reduced 0.0125, which is as large for the smaller batch",
        "size reduced differs from the paper in the data (320 images of ten classes), width 8 instead of 64, depths 18 "
        "and 34 only, batches of 32 instead of 256, and 40 steps, in which no rate decays: it tests the start of "
        "training, and cannot speak for the other depths",
        "test accuracy in eval mode; diverged runs count as the slowest",
    ),
    by_size={
        "reduced": {
            f"imagenet-resnet{depth}": Plan(
                "paper-imagenet", ARMS, _SEEDS, ("--model", f"preact-resnet{depth}", *_REDUCED)
            )
            for depth in (18, 34)
        },
        "cifar": {
            f"imagenet-resnet{depth}": Plan("paper-imagenet", ARMS, _SEEDS, ("--model", f"preact-resnet{depth}"))
            for depth in (18, 34, 50, 101, 152)
        },
    },
    contrasts=CONTRASTS,
    secondary=SECONDARY,
)
