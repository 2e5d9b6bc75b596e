"""What is known of a data set before it is read: its place on the Hub, its folders, its classes and statistics."""

from dataclasses import dataclass

#: Mean and standard deviation of each channel, pixels in [0, 1].
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Source:
    """What is known of one data set; None is found out from the data.

    Attributes:
        hub: Its name on the Hugging Face Hub.
        folders: Names under which a local copy may lie.
        num_classes: Number of classes.
        channels: 1 (grey) or 3 (colour).
        size: ``(height, width)`` that every image must have.
        resize: Side of the square that every image is scaled and cropped to.
        label_column: The column of the classes.
        test_splits: Names that the split for evaluation may have.
        statistics: Mean and deviation over the training set.
    """

    hub: str
    folders: tuple[str, ...]
    num_classes: int | None = None
    channels: int | None = None
    size: tuple[int, int] | None = None
    resize: int | None = None
    label_column: str = "label"
    test_splits: tuple[str, ...] = ("test", "validation", "valid", "val")
    statistics: Statistics | None = None


# Mean and deviation of MNIST and CIFAR-10: computed from all training images as image_records decodes them; of
# CIFAR-100 and ImageNet: the customary published numbers, since a local copy may be a part of the whole.
SOURCES = {
    "mnist": Source("ylecun/mnist", ("mnist",), 10, 1, (28, 28), statistics=((0.1307,), (0.3081,))),
    "cifar10": Source(
        "uoft-cs/cifar10",
        ("cifar10",),
        10,
        3,
        (32, 32),
        statistics=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    "cifar100": Source(
        "uoft-cs/cifar100",
        ("cifar100",),
        100,
        3,
        (32, 32),
        label_column="fine_label",
        statistics=((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ),
    "imagenet": Source(
        "ILSVRC/imagenet-1k",
        ("imagenet", "imagenet-1k", "imagenet-sample"),
        1000,
        3,
        resize=224,
        test_splits=("validation", "val", "test"),  # the Hub's test split has no labels
        statistics=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ),
}

DATASETS = ("digits", *SOURCES)


def find_source(name: str) -> Source:
    """What is known of a data set, by its short name or its name on the Hub; hardly anything of a stranger."""
    by_hub_name = {known.hub: known for known in SOURCES.values()}
    return SOURCES.get(name) or by_hub_name.get(name) or Source(name, (name.rsplit("/", 1)[-1],))
