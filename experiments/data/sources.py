"""Known data sets, before they are read: name on the Hub, folders, classes and statistics."""

import itertools
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skip_conditioning.diagnostics.errors import InputError

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")

#: Mean and standard deviation of each channel, pixels in [0, 1].
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Source:
    """Description of a data set; what is None is read off the data.

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
        stream: Whether it is too large for host memory, to be decoded while training (``streaming``).
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
    stream: bool = False


# Mean and deviation of MNIST and CIFAR-10: computed from all training images as image_decoding decodes them; of
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
        stream=True,
    ),
}

DATASETS = ("digits", *SOURCES)


def find_source(name: str) -> Source:
    """Description of a data set by its short name or its name on the Hub; of an unknown one with the names only."""
    by_hub_name = {known.hub: known for known in SOURCES.values()}
    return SOURCES.get(name) or by_hub_name.get(name) or Source(name, (name.rsplit("/", 1)[-1],))


def find_folder(name: str, source: Source, data_dir: Path) -> Path:
    """The folder under ``data_dir`` that holds the training split.

    Raises:
        InputError: There is none.
    """
    if not data_dir.is_dir():
        raise InputError(f"data directory {data_dir} does not exist or is no folder; give the one that holds {name}")
    homes = [data_dir / folder for folder in source.folders if (data_dir / folder).is_dir()] + [data_dir]
    # A clone of a Hub repository keeps its Parquet files in one of these.
    for folder in (home / inner for home in homes for inner in ("", "data", "plain_text", source.folders[0])):
        if _split_paths(folder, ("train",)):
            return folder
    entries = ", ".join(sorted(entry.name for entry in homes[0].iterdir())[:5]) or "nothing"
    raise InputError(f"{homes[0]} holds no {name} data: looked for train*.parquet and train/<class>/, found {entries}")


def check_present(name: str, data_dir: Path | None) -> None:
    """Check that a data set lies where it is to be read, before anything is written; not that it can be read.

    Raises:
        InputError: The folder does not exist, or lacks a split.
    """
    if data_dir is not None and name != "digits":
        source = find_source(name)
        folder = find_folder(name, source, data_dir)
        find_split(folder, source.test_splits)


def find_split(folder: Path, splits: Sequence[str]) -> list[Path]:
    """Parquet files or class folders, sorted by name, of the first split that has any.

    Raises:
        InputError: There are none.
    """
    paths = _split_paths(folder, splits)
    if not paths:
        looked_for = " and ".join(f"{split}*.parquet, {split}/<class>/" for split in splits)
        raise InputError(f"{folder} has no test split: looked for {looked_for}")
    return paths


def _split_paths(folder: Path, splits: Sequence[str]) -> list[Path]:
    for split in splits:
        named = [file for file in folder.glob("*.parquet") if re.match(rf"{split}\b|{split}_", file.name)]
        files = _shards(split, named)
        files = files or [entry for entry in folder.glob(f"{split}/[!.]*") if entry.is_dir()]
        if files:
            return sorted(files)
    return []


def _shards(split: str, files: Sequence[Path]) -> list[Path]:
    """Those of the files that make up a split: itself, or its numbered parts, of which none may be missing.

    Raises:
        InputError: A part is missing, or may be there twice: by its name, or beside parts that are named otherwise.
    """
    parts = sorted(file for file in files if re.fullmatch(rf"{split}([-_.]?\d.*)?\.parquet", file.name))
    copies = [file for file in files if re.search(r"\(\d+\)\.parquet$|copy", file.name)]
    if copies:
        raise InputError(f"{copies[0]} looks like a second copy of a part of the {split} split; remove or rename it")
    if parts and len(parts) < len(files):
        others = ", ".join(sorted(file.name for file in {*files} - {*parts}))
        warnings.warn(f"not taken for parts of the {split} split: {others}", stacklevel=2)
    first: dict[tuple[int, ...], Path] = {}
    for file in parts:
        style, numbers = _numbered(file)
        same = first.setdefault(numbers, file)
        if style != _numbered(parts[0])[0] or same is not file:
            other = same if same is not file else parts[0]
            raise InputError(f"{other} and {file.name} may hold the same images of the {split} split; remove one")
    _check_complete(split, first)
    return parts


def _numbered(part: Path) -> tuple[str, tuple[int, ...]]:
    """How a part is named, its number left open, and the numbers in its name; without the hash of the Hub's."""
    name = re.sub(r"(-of-\d+)-[0-9a-f]{8,}\.", r"\1.", part.name)
    numbers = tuple(map(int, re.findall(r"\d+", name)))
    style = re.sub(r"\d+", "#", name)
    return (f"{style} {numbers[1:]}" if "-of-" in name else style), numbers


def _check_complete(split: str, parts: Mapping[tuple[int, ...], Path]) -> None:
    """Refuse parts of which one is missing, by their numbers; of parts that do not say how many there are, warn."""
    there = {numbers[0] for numbers in parts if numbers}
    if not there:
        return
    file = next(iter(parts.values()))
    counted = re.search(r"-of-(\d+)", file.name)
    if not counted and any(len(numbers) > 1 for numbers in parts):  # dates, and what not
        return
    count = int(counted[1]) if counted else max(there) - min(there) + 1
    start = min(there) if not counted else int(0 not in there and count in there)
    first = next(number for number in itertools.count(start) if number not in there)
    if counted and first < start + count:
        raise InputError(
            f"{file.parent}: {count - len(there)} of the {count} parts of the {split} split are missing, the first of "
            f"them {first:0{len(counted[1])}d}-of-{counted[1]}; copy all of them"
        )
    if first < start + count:
        warnings.warn(f"{file.parent}: there is no part {first} of the {split} split, but later ones", stacklevel=3)


def list_images(folders: Sequence[Path]) -> list[list[str]]:
    """Names of the image files in each class folder of a split, sorted; warns of others that are there.

    Raises:
        InputError: A folder holds none.
    """
    images, others = [], []
    for folder in folders:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name[0] != ".")
        images.append([name for name in names if name.lower().endswith(_IMAGE_SUFFIXES)])
        others += [folder / name for name in names if not name.lower().endswith(_IMAGE_SUFFIXES)]
        if not images[-1]:
            raise InputError(f"class folder {folder} holds no images; fill it or remove it from every split")
    others += [entry for entry in folders[0].parent.glob("[!.]*") if not entry.is_dir()]
    if others:
        warnings.warn(
            f"{folders[0].parent}: {len(others)} files or folders are not taken for images of a class, the first of "
            f"them {others[0].relative_to(folders[0].parent)}; images end in {', '.join(_IMAGE_SUFFIXES)}",
            stacklevel=2,
        )
    return images
