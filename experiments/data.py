"""Image classification data as uint8 tensors: scikit-learn's digits, Hugging Face data sets, class folders.

Everything is decoded once, into host memory (50,000 CIFAR images take 154 MB): training then moves the bytes
to its device and augments there in batches. With a data directory given, no network and no cache is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diagnostics.errors import InputError
from experiments.data_sources import Statistics, find_source
from experiments.image_records import decode, read_hub, read_local


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


def load_data(
    name: str,
    data_dir: Path | None = None,
    *,
    limit_train: int | None = None,
    limit_test: int | None = None,
    image_size: int | None = None,
    draw: Callable[[int], Tensor] | None = None,
) -> ImageData:
    """Load a data set whole, or its first images, or some drawn of these.

    ``digits`` (bundled with scikit-learn, upsampled bilinearly from 8×8 to 28×28; 1,500 training and 297 test
    images, a fixed stratified split) needs no files. Any other set comes from ``data_dir`` or, without one,
    from the Hugging Face Hub.

    Args:
        name: One of ``data_sources.DATASETS``, or a data set's name on the Hub.
        data_dir: The data set's folder, or the folder that holds it under its name. In it either
            ``train*.parquet`` and ``test*.parquet`` (or ``validation*``; columns as on the Hub), or
            ``train/<class>/`` and ``val/<class>/`` with one image a file, classes numbered by sorted name.
        limit_train: Decode only so many training images. Of Parquet: the first, in official order. Of class
            folders, which are read one image of each class in turn: the first of that order, so that classes
            are evenly represented.
        limit_test: The same for the test split.
        draw: From the number of training images there are (or the limit leaves), the indices of those to take, in
            order. No others are decoded where classes and statistics are known beforehand.
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
        return _drawn(_load_digits(limit_train, limit_test, image_size or 28), draw)
    source = find_source(name)
    if data_dir is None:
        splits = read_hub(name, source, streaming=limit_train is not None)
    else:
        splits = read_local(name, source, data_dir)
    (train_records, classes), (test_records, test_classes) = splits
    if classes and test_classes and (unlike := sorted({*classes} ^ {*test_classes})):
        lacking = "test" if unlike[0] in classes else "training"
        raise InputError(
            f"{name}: class {unlike[0]!r} is missing from the {lacking} split ({len(unlike)} such classes)"
        )
    if classes:
        source = replace(source, num_classes=len(classes))
    source = replace(source, resize=image_size or source.resize)
    train_records = islice(train_records, limit_train)
    if draw and source.num_classes and source.statistics:
        encoded = list(train_records)
        train_records, draw = (encoded[index] for index in draw(len(encoded)).tolist()), None
    train = Split(*decode(train_records, source, f"{name}: the training split"))
    height, width = train.images.shape[-2:]
    num_classes = source.num_classes or int(train.labels.max()) + 1
    like_train = replace(
        source,
        channels=train.images.shape[1],
        size=source.size if source.resize else (height, width),
        num_classes=num_classes,
    )
    test = Split(*decode(islice(test_records, limit_test), like_train, f"{name}: the test split"))
    mean, std = source.statistics or _channel_statistics(train.images)
    return _drawn(ImageData(name, train, test, num_classes, mean, std), draw)


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


def _drawn(data: ImageData, draw: Callable[[int], Tensor] | None) -> ImageData:
    """A data set with the training images that are drawn; with all of them for None."""
    if draw is None:
        return data
    chosen = draw(len(data.train))
    return replace(data, train=Split(data.train.images[chosen], data.train.labels[chosen]))


def _channel_statistics(images: Tensor) -> Statistics:
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
