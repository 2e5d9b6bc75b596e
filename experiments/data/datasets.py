"""Image classification data as uint8 tensors: scikit-learn's digits, Hugging Face data sets, class folders.

Everything is decoded once, into host memory (50,000 CIFAR images take 154 MB): training then moves the bytes
to its device and augments there in batches. Data sets too large for this are streamed (``streaming``). With a data
directory given, no network and no cache is touched.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.data.image_decoding import UnreadableImageError, open_image
from skip_conditioning.experiments.data.image_records import Record, check_classes, label_problem, read_hub, read_local
from skip_conditioning.experiments.data.sources import Source, Statistics, find_source

_CHUNK = 256
_NAMED = 20  # of the images left out
_MOST_CLASSES = 10**6  # more are no numbers of classes


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
        name: Its name, as given to `load_data`.
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
    skip_corrupt: bool = False,
) -> ImageData:
    """Load a data set whole, or its first images, or some drawn of these.

    ``digits`` (bundled with scikit-learn, upsampled bilinearly from 8×8 to 28×28; 1,500 training and 297 test
    images, a fixed stratified split) needs no files. Any other set comes from ``data_dir`` or, without one,
    from the Hugging Face Hub.

    Args:
        name: One of ``sources.DATASETS``, or a data set's name on the Hub.
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
        skip_corrupt: Leave out images that cannot be read, and name them in a warning, instead of an error.

    Raises:
        InputError: An option is out of range, or the data are missing, unreadable or not what they should be.
    """
    check_positive(limit_train=limit_train, limit_test=limit_test, image_size=image_size)
    if name == "digits":
        return _drawn(_load_digits(limit_train, limit_test, image_size or 28), draw)
    source = find_source(name)
    if data_dir is None:
        splits = read_hub(name, source, streaming=limit_train is not None)
    else:
        splits = read_local(name, source, data_dir)
    (train_records, classes), (test_records, test_classes) = splits
    check_classes(name, classes, test_classes)
    if classes:
        source = replace(source, num_classes=len(classes))
    source = replace(source, resize=image_size or source.resize)
    train_records = islice(train_records, limit_train)
    if draw and source.num_classes and source.statistics:
        encoded = list(train_records)
        train_records, draw = (encoded[index] for index in draw(len(encoded)).tolist()), None
    train = Split(*_decode(train_records, source, f"{name}: the training split", skip_corrupt=skip_corrupt))
    height, width = train.images.shape[-2:]
    num_classes = source.num_classes or count_classes(name, train.labels)
    like_train = replace(
        source,
        channels=train.images.shape[1],
        size=source.size if source.resize else (height, width),
        num_classes=num_classes,
    )
    test_records = islice(test_records, limit_test)
    test = Split(*_decode(test_records, like_train, f"{name}: the test split", skip_corrupt=skip_corrupt))
    mean, std = source.statistics or _channel_statistics(train.images)
    return _drawn(ImageData(name, train, test, num_classes, mean, std), draw)


def _decode(
    records: Iterator[Record], source: Source, what: str, *, skip_corrupt: bool = False
) -> tuple[Tensor, Tensor]:
    """Decode images in threads (Pillow releases the interpreter lock), all to one shape.

    Args:
        records: As read.
        source: Channels and size of the images; those it does not give are taken from the first images.
        what: Name of the split in messages.
        skip_corrupt: Leave unreadable images out, and name them in a warning.

    Returns:
        Images, shape ``(N, C, H, W)``, uint8, and labels, shape ``(N,)``, int64.

    Raises:
        InputError: There are no images, one is damaged or unlike the others, or a label is out of range.
    """
    head = list(islice(records, _CHUNK))
    if not head:
        raise InputError(f"{what} holds no images")
    source = _described(head, source, skip_corrupt)
    chunks = chain([head], iter(lambda: list(islice(records, _CHUNK)), []))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = list(pool.map(lambda chunk: _decode_chunk(chunk, source, skip_corrupt), chunks))
    images, labels, left_out = zip(*decoded, strict=True)
    if problems := [*chain.from_iterable(left_out)]:
        named = "; ".join(problems[:_NAMED]) + ("; …" if len(problems) > _NAMED else "")
        warnings.warn(f"{what}: {len(problems)} unreadable images are left out: {named}", stacklevel=3)
    kept = [part for part in images if len(part)]
    if not kept:
        raise InputError(f"{what} holds no readable images")
    return torch.cat(kept), torch.cat(labels)


def _described(head: Sequence[Record], source: Source, skip_corrupt: bool) -> Source:
    """The source with the channels and size of the first images, if it gives none."""
    if source.channels is not None and (source.size is not None or source.resize is not None):
        return source
    opened = []
    for where, encoded, _ in head:
        try:
            opened.append(open_image(where, encoded))
        except UnreadableImageError:
            if not skip_corrupt:
                raise
    if opened and source.channels is None:
        source = replace(source, channels=3 if any(image.mode != "L" for image in opened) else 1)
    if opened and source.size is None and source.resize is None:
        source = replace(source, size=(opened[0].height, opened[0].width))
    return source


def _decode_chunk(records: Sequence[Record], source: Source, skip_corrupt: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Images, ``(N, C, H, W)``, labels, and the errors of those left out."""
    pixels, labels, left_out = [], [], []
    for record in records:
        try:
            image, label = _decode_one(record, source)
        except UnreadableImageError as error:
            if not skip_corrupt:
                raise
            left_out.append(str(error))
        else:
            pixels.append(image)
            labels.append(label)
    images = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0, 1, 1, 1, dtype=torch.uint8)
    return images.permute(0, 3, 1, 2).contiguous(), torch.tensor(labels, dtype=torch.int64), left_out


def _decode_one(record: Record, source: Source) -> tuple[np.ndarray, Any]:
    """One image, uint8, shape ``(H, W, C)``, and its label, both checked."""
    where, encoded, label = record
    if problem := label_problem(label, source.num_classes):
        raise InputError(f"{where}: {problem}")
    image = open_image(where, encoded)
    if source.size and (image.height, image.width) != source.size:
        height, width = source.size
        raise InputError(
            f"{where}: the image has {image.height}×{image.width} pixels, not {height}×{width}: it is of"
            " another data set, or an image size to scale to is needed"
        )
    if source.channels == 1 and image.mode == "RGB":
        raise InputError(f"{where}: the image is in colour, but this data set's are grey; replace or convert it")
    image = image.convert("L" if source.channels == 1 else "RGB")
    if source.resize and image.size != (source.resize, source.resize):
        image = ImageOps.fit(image, (source.resize, source.resize), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1), label


def count_classes(name: str, labels: Tensor) -> int:
    """The classes that labels without names stand for, ``0`` to the largest; warns of those without images.

    Args:
        name: The data set's.
        labels: Those of the training images, shape ``(N,)``.

    Raises:
        InputError: A label is no number of a class.
    """
    count = int(labels.max()) + 1
    if count > _MOST_CLASSES:
        raise InputError(f"{name}: a label is {count - 1}; number the classes from 0")
    empty = sorted({*range(count)} - {*labels.unique().tolist()})
    if empty:
        warnings.warn(
            f"{name}: the labels go to {count - 1}, so there are taken to be {count} classes, but {len(empty)} of them "
            f"have no training images ({', '.join(map(str, empty[:5]))}{', …' if len(empty) > 5 else ''})",
            stacklevel=3,
        )
    return count


def check_positive(**options: int | None) -> None:
    """Refuse an option below 1, by its name; None is allowed."""
    for option, value in options.items():
        if value is not None and value < 1:
            raise InputError(f"{option} is {value}; it must be at least 1")


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
        pixels = pixels - _per_channel(tuple(mean), dtype, images.device)
    if std is not None:
        pixels = pixels / _per_channel(tuple(std), dtype, images.device)
    return pixels


@functools.cache
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Shape ``(C, 1, 1)``; moved to a device only once, as a step must not wait for it."""
    return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)


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
