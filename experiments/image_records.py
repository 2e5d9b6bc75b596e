"""Image records on disk or on the Hugging Face Hub: found, read, and decoded to uint8 tensors.

Reading is lazy: of a data set that is limited to its first images no more is read or decoded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageOps
from pyarrow import parquet
from torch import Tensor

from diagnostics.errors import InputError, near_matches
from experiments.data_sources import DATASETS, Source

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
_BATCH = 256

#: Where an image is (for messages), the image encoded as in Hugging Face data sets, its label.
Record = tuple[str, Any, Any]
#: The records of a split and its class names, where it has them.
Records = tuple[Iterator[Record], tuple[str, ...] | None]


def read_local(name: str, source: Source, data_dir: Path) -> tuple[Records, Records]:
    """The training and the test split found in a folder, or in the folder of that name in it.

    Raises:
        InputError: There is no such folder, a split is missing, or a file is not what it should be.
    """
    folder = _find_folder(name, source, data_dir)
    return _read_folder(folder, source, ("train",)), _read_folder(folder, source, source.test_splits)


def read_hub(name: str, source: Source, *, streaming: bool) -> tuple[Records, Records]:
    """The training and the test split on the Hugging Face Hub.

    Args:
        name: The name it was asked for by.
        source: What is known of it.
        streaming: Fetch only what is read; else the whole set is downloaded, once, to Hugging Face's own cache.

    Raises:
        InputError: It cannot be fetched, or a split or a column is missing.
    """
    import datasets  # here, because it takes a second to import

    try:
        found = datasets.load_dataset(source.hub, streaming=streaming)
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


def decode(records: Iterator[Record], source: Source, what: str) -> tuple[Tensor, Tensor]:
    """Decode images in threads (Pillow releases the interpreter lock), all to one shape.

    Args:
        records: As read.
        source: What the images must be; what it leaves open is taken from the first ones.
        what: The split, for messages.

    Returns:
        Images, shape ``(N, C, H, W)``, uint8, and labels, shape ``(N,)``, int64.

    Raises:
        InputError: There are no images, one is damaged or unlike the others, or a label is out of range.
    """
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
    return torch.cat(images), torch.cat(labels)


def _find_folder(name: str, source: Source, data_dir: Path) -> Path:
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


def _read_folder(folder: Path, source: Source, splits: Sequence[str]) -> Records:
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


def _read_class_folders(folders: Sequence[Path]) -> Records:
    """One image of each class in turn, so that every prefix represents the classes evenly."""
    queues = []
    for label, folder in enumerate(folders):
        images = sorted(p for p in folder.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES and p.name[0] != ".")
        if not images:
            raise InputError(f"class folder {folder} holds no images; fill it or remove it from every split")
        queues.append([(str(path), {"bytes": None, "path": str(path)}, label) for path in images])
    in_turn = (record for row in zip_longest(*queues) for record in row if record is not None)
    return in_turn, tuple(folder.name for folder in folders)


def _open_parquet(path: Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({_line(error)}); copy it again") from error


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    import datasets

    return datasets.Features.from_arrow_schema(schema)


def _columns(features: Mapping[str, Any], source: Source, where: str) -> tuple[str, str]:
    """Names of the image and the label column."""
    image = next((column for column in ("image", "img") if column in features), None)
    if image is None or source.label_column not in features:
        raise InputError(
            f"{where} has the columns {', '.join(features) or 'none'}; needed are 'image' or 'img', and"
            f" {source.label_column!r}"
        )
    return image, source.label_column


def _class_names(features: Mapping[str, Any], source: Source, where: str) -> tuple[str, ...] | None:
    names = getattr(features[source.label_column], "names", None)
    if names and source.num_classes and len(names) != source.num_classes:
        raise InputError(f"{where} has {len(names)} classes, not {source.num_classes}: it is another data set")
    return tuple(names) if names else None


def _rows(batches: Iterator[Any], columns: tuple[str, str], where: str) -> Iterator[Record]:
    row = 0
    try:
        for batch in batches:
            for image, label in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
                yield f"{where}, row {row}", image, label
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where} cannot be read from row {row} on ({_line(error)}); copy it again") from error


def _decode_chunk(records: Sequence[Record], source: Source) -> tuple[Tensor, Tensor]:
    pixels, labels = zip(*(_decode_one(record, source) for record in records), strict=True)
    images = torch.from_numpy(np.stack(pixels))
    return images.permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def _open_image(where: str, encoded: Any) -> Image.Image:
    import datasets

    try:
        return datasets.Image().decode_example(encoded)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, zlib.error, ...
        raise InputError(f"{where}: not a readable image ({_line(error)}); replace or remove it") from error


def _decode_one(record: Record, source: Source) -> tuple[np.ndarray, int]:
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


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
