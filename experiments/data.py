"""Image classification data as uint8 tensors: scikit-learn's digits, Hugging Face data sets, class folders.

Everything is decoded once, into host memory (50,000 CIFAR images take 154 MB): training then moves the bytes
to its device and augments there in batches. With a data directory given, no network and no cache is touched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageOps
from pyarrow import parquet
from torch import Tensor
from torch.nn import functional

from diagnostics.errors import InputError, near_matches

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their classes.

    Attributes:
        images: Shape ``(N, C, H, W)``, uint8.
        labels: Shape ``(N,)``, int64, in ``0 … num_classes - 1``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set in memory.

    Attributes:
        name: The name it was asked for by.
        train: Training images.
        test: Images for evaluation (the validation split where a data set's test labels are secret).
        num_classes: Number of classes, those that a limit left without images included.
        mean: Mean of each channel over the training set, pixels in [0, 1].
        std: Standard deviation of each channel over all pixels of the training set.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class _Source:
    """What is known of a data set before it is read; None is found out from the data."""

    hub: str
    folders: tuple[str, ...]
    num_classes: int | None = None
    channels: int | None = None
    size: tuple[int, int] | None = None
    resize: int | None = None
    label_column: str = "label"
    test_splits: tuple[str, ...] = ("test", "validation", "valid", "val")
    statistics: _Statistics | None = None


# Mean and deviation of MNIST and CIFAR-10: computed from all training images as this module decodes them; of
# CIFAR-100 and ImageNet: the customary published numbers, since a local copy may be a part of the whole.
_SOURCES = {
    "mnist": _Source("ylecun/mnist", ("mnist",), 10, 1, (28, 28), statistics=((0.1307,), (0.3081,))),
    "cifar10": _Source(
        "uoft-cs/cifar10",
        ("cifar10",),
        10,
        3,
        (32, 32),
        statistics=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    "cifar100": _Source(
        "uoft-cs/cifar100",
        ("cifar100",),
        100,
        3,
        (32, 32),
        label_column="fine_label",
        statistics=((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ),
    "imagenet": _Source(
        "ILSVRC/imagenet-1k",
        ("imagenet", "imagenet-1k", "imagenet-sample"),
        1000,
        3,
        resize=224,
        test_splits=("validation", "val", "test"),  # the Hub's test split has no labels
        statistics=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ),
}
DATASETS = ("digits", *_SOURCES)

# Where an image is (for messages), the image encoded as in Hugging Face data sets, its label.
_Record = tuple[str, Any, Any]
# The records of a split and its class names, where it has them.
_Records = tuple[Iterator[_Record], tuple[str, ...] | None]


def load_data(
    name: str,
    data_dir: Path | None = None,
    *,
    limit_train: int | None = None,
    limit_test: int | None = None,
    image_size: int | None = None,
) -> ImageData:
    """Load a data set whole, or its first images.

    ``digits`` (bundled with scikit-learn, upsampled bilinearly from 8×8 to 28×28; 1,500 training and 297 test
    images, a fixed stratified split) needs no files. Any other set comes from ``data_dir`` or, without one,
    from the Hugging Face Hub.

    Args:
        name: One of ``DATASETS``, or a data set's name on the Hub.
        data_dir: The data set's folder, or the folder that holds it under its name. In it either
            ``train*.parquet`` and ``test*.parquet`` (or ``validation*``; columns as on the Hub), or
            ``train/<class>/`` and ``val/<class>/`` with one image a file, classes numbered by sorted name.
        limit_train: Decode only so many training images. Of Parquet: the first, in official order. Of class
            folders, which are read one image of each class in turn: the first of that order, so that classes
            are evenly represented.
        limit_test: The same for the test split.
        image_size: Scale the shorter side to this and crop the centre (bilinear). Default: 224 for
            ``imagenet``, else the images' own size, which must be common to all.

    Raises:
        InputError: An option is out of range, or the data are missing, unreadable or not what they should be.
    """
    for option, value in (
        ("limit_train", limit_train),
        ("limit_test", limit_test),
        ("image_size", image_size),
    ):
        if value is not None and value < 1:
            raise InputError(f"{option} is {value}; it must be at least 1")
    if name == "digits":
        return _load_digits(limit_train, limit_test, image_size or 28)
    by_hub_name = {known.hub: known for known in _SOURCES.values()}
    source = _SOURCES.get(name) or by_hub_name.get(name) or _Source(name, (name.rsplit("/", 1)[-1],))
    if data_dir is None:
        (train_records, classes), (test_records, test_classes) = _read_hub(name, source, limit_train)
    else:
        folder = _find_folder(name, source, data_dir)
        train_records, classes = _read_folder(folder, source, ("train",))
        test_records, test_classes = _read_folder(folder, source, source.test_splits)
    if classes and test_classes and (unlike := sorted({*classes} ^ {*test_classes})):
        lacking = "test" if unlike[0] in classes else "training"
        raise InputError(
            f"{name}: class {unlike[0]!r} is missing from the {lacking} split ({len(unlike)} such classes)"
        )
    if classes:
        source = replace(source, num_classes=len(classes))
    source = replace(source, resize=image_size or source.resize)
    train = _decode(islice(train_records, limit_train), source, f"{name}: the training split")
    height, width = train.images.shape[-2:]
    num_classes = source.num_classes or int(train.labels.max()) + 1
    like_train = replace(
        source,
        channels=train.images.shape[1],
        size=source.size if source.resize else (height, width),
        num_classes=num_classes,
    )
    test = _decode(islice(test_records, limit_test), like_train, f"{name}: the test split")
    mean, std = source.statistics or _channel_statistics(train.images)
    return ImageData(name, train, test, num_classes, mean, std)


def to_float(
    images: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Pixels in [0, 1], or normalised per channel where a mean and a deviation are given.

    Args:
        images: Shape ``(N, C, H, W)``, uint8, on any device.
        mean: ``C`` numbers to subtract (default 0).
        std: ``C`` numbers to divide by afterwards (default 1).
        dtype: Floating point type of the result.
    """
    pixels = images.to(dtype) / 255
    if mean is not None:
        pixels = pixels - torch.tensor(mean, dtype=dtype, device=images.device).view(-1, 1, 1)
    if std is not None:
        pixels = pixels / torch.tensor(std, dtype=dtype, device=images.device).view(-1, 1, 1)
    return pixels


def _channel_statistics(images: Tensor) -> _Statistics:
    """Mean and deviation of each channel over all pixels, in [0, 1], from the counts of the 256 values."""
    channels = images.transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
    share, values = counts / channels.shape[1], torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    return tuple(mean.tolist()), tuple((share @ values**2 - mean**2).clamp(min=0).sqrt().tolist())


def _load_digits(limit_train: int | None, limit_test: int | None, size: int) -> ImageData:
    from sklearn.datasets import load_digits  # here, because these libraries take a second to import
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = torch.from_numpy(digits.images)[:, None] * (255 / 16)
    images = functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    images, labels = images.round().to(torch.uint8), torch.from_numpy(digits.target).long()
    order = train_test_split(np.arange(len(labels)), test_size=297, stratify=digits.target, random_state=0)
    train, test = (
        Split(images[chosen[:limit]], labels[chosen[:limit]])
        for chosen, limit in zip(order, (limit_train, limit_test), strict=True)
    )
    return ImageData("digits", train, test, 10, *_channel_statistics(images[order[0]]))


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _find_folder(name: str, source: _Source, data_dir: Path) -> Path:
    """The folder under ``data_dir`` that holds the training split."""
    if not data_dir.is_dir():
        raise InputError(f"data directory {data_dir} does not exist or is no folder; give the one that holds {name}")
    homes = [data_dir / folder for folder in source.folders if (data_dir / folder).is_dir()] + [data_dir]
    # A clone of a Hub repository keeps its Parquet files in one of these.
    for folder in (home / inner for home in homes for inner in ("", "data", "plain_text", source.folders[0])):
        if _find_split(folder, ("train",)):
            return folder
    found = ", ".join(sorted(entry.name for entry in homes[0].iterdir())[:5]) or "nothing"
    raise InputError(f"{homes[0]} holds no {name} data: looked for train*.parquet and train/<class>/, found {found}")


def _find_split(folder: Path, splits: Sequence[str]) -> list[Path]:
    """Parquet files or class folders, sorted by name, of the first split there is any of."""
    for split in splits:
        files = [file for file in folder.glob("*.parquet") if re.match(rf"{split}\b|{split}_", file.name)]
        files = files or [entry for entry in folder.glob(f"{split}/[!.]*") if entry.is_dir()]
        if files:
            return sorted(files)
    return []


def _read_folder(folder: Path, source: _Source, splits: Sequence[str]) -> _Records:
    paths = _find_split(folder, splits)
    if not paths:
        looked_for = " and ".join(f"{split}*.parquet, {split}/<class>/" for split in splits)
        raise InputError(f"{folder} has no test split: looked for {looked_for}")
    if paths[0].is_dir():
        return _read_class_folders(paths)
    files = [_open_parquet(path) for path in paths]
    features = [_features(file.schema_arrow) for file in files]
    columns = [_columns(found, source, str(path)) for found, path in zip(features, paths, strict=True)]
    records = chain.from_iterable(
        _rows(file.iter_batches(_BATCH, columns=names), names, str(path))
        for file, path, names in zip(files, paths, columns, strict=True)
    )
    return records, _class_names(features[0], source, str(paths[0]))


def _read_class_folders(folders: Sequence[Path]) -> _Records:
    """One image of each class in turn, so that every prefix represents the classes evenly."""
    queues = []
    for label, folder in enumerate(folders):
        images = sorted(p for p in folder.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES and p.name[0] != ".")
        if not images:
            raise InputError(f"class folder {folder} holds no images; fill it or remove it from every split")
        queues.append([(str(path), {"bytes": None, "path": str(path)}, label) for path in images])
    in_turn = (record for row in zip_longest(*queues) for record in row if record is not None)
    return in_turn, tuple(folder.name for folder in folders)


def _read_hub(name: str, source: _Source, limit_train: int | None) -> tuple[_Records, _Records]:
    import datasets  # here, because it takes a second to import

    try:
        # A whole set is downloaded once, to Hugging Face's own cache; a few images are streamed.
        found = datasets.load_dataset(source.hub, streaming=limit_train is not None)
    except Exception as error:  # the Hub's client raises a dozen unrelated classes
        raise InputError(
            f"data set {name!r} cannot be loaded from the Hugging Face Hub ({_line(error)}); give --data-dir"
            f" with a local copy, or a known name ({', '.join(DATASETS)}).{near_matches(name, DATASETS)}"
        ) from error
    halves = []
    for splits in (("train",), source.test_splits):
        split = next((split for split in splits if split in found), None)
        if split is None:
            raise InputError(f"{source.hub} has no split {' or '.join(splits)}, only {', '.join(found)}")
        features = found[split].features or {}
        columns = _columns(features, source, source.hub)
        batches = found[split].select_columns(list(columns)).with_format("arrow").iter(_BATCH)
        rows = _rows(batches, columns, f"{source.hub}, {split} split")
        halves.append((rows, _class_names(features, source, source.hub)))
    return halves[0], halves[1]


def _open_parquet(path: Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({_line(error)}); copy it again") from error


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    import datasets

    return datasets.Features.from_arrow_schema(schema)


def _columns(features: Mapping[str, Any], source: _Source, where: str) -> tuple[str, str]:
    """Names of the image and the label column."""
    image = next((column for column in ("image", "img") if column in features), None)
    if image is None or source.label_column not in features:
        raise InputError(
            f"{where} has the columns {', '.join(features) or 'none'}; needed are 'image' or 'img', and"
            f" {source.label_column!r}"
        )
    return image, source.label_column


def _class_names(features: Mapping[str, Any], source: _Source, where: str) -> tuple[str, ...] | None:
    names = getattr(features[source.label_column], "names", None)
    if names and source.num_classes and len(names) != source.num_classes:
        raise InputError(f"{where} has {len(names)} classes, not {source.num_classes}: it is another data set")
    return tuple(names) if names else None


def _rows(batches: Iterator[Any], columns: tuple[str, str], where: str) -> Iterator[_Record]:
    row = 0
    try:
        for batch in batches:
            for image, label in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
                yield f"{where}, row {row}", image, label
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where} cannot be read from row {row} on ({_line(error)}); copy it again") from error


def _decode(records: Iterator[_Record], source: _Source, what: str) -> Split:
    """Decode images in threads (Pillow releases the interpreter lock), all to one shape."""
    head = list(islice(records, _BATCH))
    if not head:
        raise InputError(f"{what} holds no images")
    if source.channels is None:
        in_colour = any(_open_image(*record[:2]).mode not in ("1", "L") for record in head)
        source = replace(source, channels=3 if in_colour else 1)
    if source.size is None and source.resize is None:
        first = _open_image(*head[0][:2])
        source = replace(source, size=(first.height, first.width))
    chunks = chain([head], iter(lambda: list(islice(records, _BATCH)), []))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images, labels = zip(*pool.map(lambda chunk: _decode_chunk(chunk, source), chunks), strict=True)
    return Split(torch.cat(images), torch.cat(labels))


def _decode_chunk(records: Sequence[_Record], source: _Source) -> tuple[Tensor, Tensor]:
    pixels, labels = zip(*(_decode_one(record, source) for record in records), strict=True)
    images = torch.from_numpy(np.stack(pixels))
    return images.permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def _open_image(where: str, encoded: Any) -> Image.Image:
    import datasets

    try:
        return datasets.Image().decode_example(encoded)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, zlib.error, ...
        raise InputError(f"{where}: not a readable image ({_line(error)}); replace or remove it") from error


def _decode_one(record: _Record, source: _Source) -> tuple[np.ndarray, int]:
    """One image, uint8, shape ``(H, W, C)``, and its label, both checked."""
    where, encoded, label = record
    if not isinstance(label, int) or label < 0 or (source.num_classes and label >= source.num_classes):
        allowed = f"0 to {source.num_classes - 1}" if source.num_classes else "an integer from 0"
        raise InputError(f"{where}: label {label!r} is out of range, it must be {allowed}")
    image = _open_image(where, encoded)
    if source.size and (image.height, image.width) != source.size:
        height, width = source.size
        raise InputError(
            f"{where}: the image has {image.height}×{image.width} pixels, not {height}×{width}: it is of"
            " another data set, or an image size to scale to is needed"
        )
    if source.channels == 1 and image.mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
        raise InputError(f"{where}: the image is in colour, but this data set's are grey; replace or convert it")
    image = image.convert("L" if source.channels == 1 else "RGB")
    if source.resize and image.size != (source.resize, source.resize):
        image = ImageOps.fit(image, (source.resize, source.resize), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1), label
