"""Random access to the encoded images of a data set that is too large to be decoded whole.

Everything that can be checked without decoding is checked when it is opened. What is kept in memory for each image is
its label and its file name or row: about 40 bytes.
"""

from __future__ import annotations

import bisect
import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.data.datasets import check_positive, count_classes
from skip_conditioning.experiments.data.image_decoding import encoded_file, one_line
from skip_conditioning.experiments.data.image_records import (
    check_classes,
    class_names,
    described_columns,
    find_columns,
    hub_splits,
    label_problem,
    load_hub,
    names_of_files,
    open_parquet,
)
from skip_conditioning.experiments.data.sources import (
    SOURCES,
    Source,
    find_folder,
    find_source,
    find_split,
    list_images,
)


class EncodedImages(Protocol):
    """The encoded images of a split, and their labels, by index; it can be sent to another process.

    Attributes:
        labels: Shape ``(N,)``, int64.
    """

    @property
    def labels(self) -> Tensor:
        """Shape ``(N,)``, int64."""

    def where(self, index: int) -> str:
        """Name of an image in messages: its file, or its table and row."""

    def encoded(self, index: int) -> str | BytesIO:
        """What Pillow opens: a path, or the file's content."""

    def taking(self, chosen: Tensor) -> EncodedImages:
        """Some of the images, by their indices, in that order."""


@dataclass(frozen=True, eq=False)
class FolderImages:
    """One file an image, in a folder for each class.

    Attributes:
        folders: Folders of the classes.
        files: Names in these, shape ``(N,)``, as bytes: worker processes share an array, but come to copy a list.
        labels: Shape ``(N,)``, int64; they number the folders.
    """

    folders: tuple[Path, ...]
    files: np.ndarray
    labels: Tensor

    def where(self, index: int) -> str:
        """The image's path."""
        return str(self.folders[int(self.labels[index])] / os.fsdecode(self.files[index]))

    def encoded(self, index: int) -> str | BytesIO:
        """The image's path, that of a file."""
        return encoded_file({"path": self.where(index)})

    def taking(self, chosen: Tensor) -> FolderImages:
        """Some of the images, by their indices, in that order."""
        return replace(self, files=self.files[chosen.numpy()], labels=self.labels[chosen])


@dataclass(frozen=True, eq=False)
class TableImages:
    """Images in a column of a Hugging Face data set, which maps its files into memory.

    Attributes:
        table: The data set, images not decoded.
        column: Name of the column of the images.
        parts: Names of the files it is made of, and the row of the table at which each ends.
        rows: Row of each image in the table, shape ``(N,)``.
        labels: Shape ``(N,)``, int64.
    """

    table: Any
    column: str
    parts: tuple[tuple[str, int], ...]
    rows: Tensor
    labels: Tensor

    def where(self, index: int) -> str:
        """File and row in it."""
        return _row_name(self.parts, int(self.rows[index]))

    def encoded(self, index: int) -> str | BytesIO:
        """The file's content, or its path where the table holds only that."""
        return encoded_file(self.table[int(self.rows[index])][self.column])

    def taking(self, chosen: Tensor) -> TableImages:
        """Some of the images, by their indices, in that order."""
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen])


@dataclass(frozen=True, eq=False)
class StreamedData:
    """A data set whose images are decoded when they are needed.

    Attributes:
        name: Its name, as given to `open_images`.
        train: Training images.
        test: Images for evaluation.
        num_classes: Number of classes.
        mean: Mean of each channel over the training set, pixels in [0, 1].
        std: Standard deviation of each channel.
        size: Side of the squares that the network sees.
        skip_corrupt: Leave unreadable images out of their batches, each named in a warning once, instead of an error.
        unreadable: Descriptions of those that were met so far.
    """

    name: str
    train: EncodedImages
    test: EncodedImages
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int = 224
    skip_corrupt: bool = False
    unreadable: set[str] = field(default_factory=set)


def open_images(
    name: str,
    data_dir: Path | None = None,
    *,
    limit_train: int | None = None,
    limit_test: int | None = None,
    image_size: int | None = None,
    draw: Callable[[int], Tensor] | None = None,
    skip_corrupt: bool = False,
) -> StreamedData:
    """Find a data set where ``load_data`` does, and decode nothing yet.

    Parquet files, local or from the Hub, are read through Hugging Face's ``datasets``, which copies them once, whole,
    to its own cache (``HF_HOME``, by default in the home directory; as large as the files), and maps that into memory.
    Class folders are read where they are.

    Args:
        name: As for ``load_data``. Grey images become colour; channels of a data set whose statistics are not known
            are normalised as ImageNet's.
        data_dir: As for ``load_data``.
        limit_train: Only the first training images, in ``load_data``'s order. Further local Parquet files are not
            touched.
        limit_test: The same for the test split.
        image_size: Side of the squares that the network sees. Default: the source's own, else 224.
        draw: From the number of training images there are (or the limit leaves), the indices of those to take.
        skip_corrupt: Whether unreadable images are left out later, with a warning (``StreamedData``).

    Raises:
        InputError: An option is out of range, a split or a column is missing, a class has no images in one of the
            splits, or a label is out of range.
    """
    check_positive(limit_train=limit_train, limit_test=limit_test, image_size=image_size)
    source = find_source(name)
    if data_dir is None:
        splits = load_hub(name, source)
        train_split, test_split = hub_splits(splits, source)
        train, classes = _hub_table(splits[train_split], source, train_split, limit_train)
        known = replace(source, num_classes=_count_classes(name, train, classes, source))
        test, test_classes = _hub_table(splits[test_split], known, test_split, limit_test)
    else:
        folder = find_folder(name, source, data_dir)
        train, classes = _open_split(find_split(folder, ("train",)), source, limit_train)
        known = replace(source, num_classes=_count_classes(name, train, classes, source))
        test, test_classes = _open_split(find_split(folder, source.test_splits), known, limit_test)
    check_classes(name, classes, test_classes)
    if draw:
        train = train.taking(draw(len(train.labels)))
    mean, std = source.statistics or SOURCES["imagenet"].statistics or ((), ())
    size = image_size or source.resize or StreamedData.size
    return StreamedData(name, train, test, known.num_classes or 0, mean, std, size, skip_corrupt)


#: The images of a split and its class names, where it has them.
_Opened = tuple[EncodedImages, tuple[str, ...] | None]


def _count_classes(name: str, train: EncodedImages, classes: Sequence[str] | None, source: Source) -> int:
    if classes:
        return len(classes)
    return source.num_classes or count_classes(name, train.labels)


def _open_split(paths: Sequence[Path], source: Source, limit: int | None) -> _Opened:
    if paths[0].is_dir():
        return _open_folders(paths, limit)
    return _open_parquet(paths, source, limit)


def _open_folders(folders: Sequence[Path], limit: int | None) -> _Opened:
    """One image of each class in turn, as ``image_records`` reads them."""
    names = [np.array([os.fsencode(image) for image in images]) for images in list_images(folders)]
    labels = np.repeat(np.arange(len(folders)), [len(part) for part in names])
    turns = np.concatenate([np.arange(len(part)) for part in names])
    order = np.lexsort((labels, turns))[:limit]
    images = FolderImages(tuple(folders), np.concatenate(names)[order], torch.from_numpy(labels[order]))
    return images, tuple(folder.name for folder in folders)


def _open_parquet(paths: Sequence[Path], source: Source, limit: int | None) -> _Opened:
    import datasets  # here, because it takes a second to import

    ends: list[int] = []
    features = []
    for path in paths:
        if limit is None or not ends or ends[-1] < limit:
            file = open_parquet(path)
            described, columns = described_columns(file.schema_arrow, source, path)
            features.append(described)
            ends.append((ends[-1] if ends else 0) + file.metadata.num_rows)
    names = names_of_files(features, source, paths[: len(ends)])
    files = [str(path) for path in paths[: len(ends)]]
    if not ends[-1]:
        raise InputError(f"{files[0]} holds no images, nor does any other file of its split")
    kinds = datasets.Features({columns[0]: datasets.Image(decode=False), columns[1]: datasets.Value("int64")})
    escaped = {"train": [*map(glob.escape, files)]}
    try:
        table = datasets.load_dataset("parquet", data_files=escaped, split="train", columns=[*columns], features=kinds)
    except Exception as error:  # whatever goes wrong is wrapped, with the reason as its cause
        raise InputError(
            f"{paths[0].parent}: the Parquet files cannot be read into Hugging Face's cache"
            f" ({one_line(error.__cause__ or error)}); copy them again, or set HF_HOME to a folder with space"
        ) from error
    return _open_table(table, columns, _with_classes(source, names), tuple(zip(files, ends, strict=True)), limit), names


def _hub_table(table: Any, source: Source, split: str, limit: int | None) -> _Opened:
    import datasets

    where = f"{source.hub}, {split} split"
    columns = find_columns(table.features, table.features.arrow_schema, source, where)
    names = class_names(table.features, source, where)
    table = table.cast_column(columns[0], datasets.Image(decode=False))
    return _open_table(table, columns, _with_classes(source, names), ((where, len(table)),), limit), names


def _with_classes(source: Source, names: Sequence[str] | None) -> Source:
    return replace(source, num_classes=len(names)) if names else source


def _open_table(
    table: Any, columns: tuple[str, str], source: Source, parts: tuple[tuple[str, int], ...], limit: int | None
) -> TableImages:
    if not len(table):
        raise InputError(f"{parts[0][0]} holds no images")
    column, label_column = columns
    labels = table.data.column(label_column).slice(0, limit).to_pylist()
    for row, label in enumerate(labels):
        if problem := label_problem(label, source.num_classes):
            raise InputError(f"{_row_name(parts, row)}: {problem}")
    encoded = table.select_columns([column])
    return TableImages(encoded, column, parts, torch.arange(len(labels)), torch.tensor(labels))


def _row_name(parts: Sequence[tuple[str, int]], row: int) -> str:
    part = bisect.bisect_right([end for _, end in parts], row)
    first = parts[part - 1][1] if part else 0
    return f"{parts[part][0]}, row {row - first}"
