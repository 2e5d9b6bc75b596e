"""Image records on disk or on the Hugging Face Hub: found and read, one by one; ``image_decoding`` decodes them.

Reading is lazy: of a data set that is limited to its first images no more is read or decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.tables.files import regular
from skip_conditioning.experiments.data.image_decoding import one_line
from skip_conditioning.experiments.data.sources import DATASETS, Source, find_folder, find_split, list_images

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
    folder = find_folder(name, source, data_dir)
    return _read_folder(folder, source, ("train",)), _read_folder(folder, source, source.test_splits)


def read_hub(name: str, source: Source, *, streaming: bool) -> tuple[Records, Records]:
    """The training and the test split on the Hugging Face Hub.

    Args:
        name: Its name, as given by the user.
        source: Description of the data set.
        streaming: Fetch only what is read; else the whole set is downloaded, once, to Hugging Face's own cache.

    Raises:
        InputError: It cannot be fetched, or a split or a column is missing.
    """
    dataset = load_hub(name, source, streaming=streaming)
    halves = []
    for split in hub_splits(dataset, source):
        features = dataset[split].features or {}
        columns = find_columns(features, source, source.hub)
        batches = dataset[split].select_columns(list(columns)).with_format("arrow").iter(_BATCH)
        rows = _rows(batches, columns, f"{source.hub}, {split} split")
        halves.append((rows, class_names(features, source, source.hub)))
    return halves[0], halves[1]


def load_hub(name: str, source: Source, *, streaming: bool = False) -> Mapping[str, Any]:
    """All splits on the Hugging Face Hub, by name.

    Raises:
        InputError: They cannot be fetched.
    """
    if "/" not in name and name not in DATASETS and (hint := near_matches(name, DATASETS)):
        raise InputError(f"unknown data set {name!r}.{hint} One of the Hub's has its owner's name too, as owner/name.")
    import datasets  # here, because it takes a second to import

    try:
        dataset: Mapping[str, Any] = datasets.load_dataset(source.hub, streaming=streaming)
    except Exception as error:  # the Hub's client raises a dozen unrelated classes
        known = f", or a known name ({', '.join(DATASETS)})."
        raise InputError(
            f"data set {name!r} cannot be loaded from the Hugging Face Hub ({one_line(error)}); give --data-dir, or "
            f"SKIP_DATA_DIR, with a local copy{'' if name in DATASETS else known}"
        ) from error
    return dataset


def hub_splits(dataset: Mapping[str, Any], source: Source) -> tuple[str, str]:
    """Names of the training and the test split among those on the Hub."""
    names = []
    for splits in (("train",), source.test_splits):
        split = next((split for split in splits if split in dataset), None)
        if split is None:
            raise InputError(f"{source.hub} has no split {' or '.join(splits)}, only {', '.join(dataset)}")
        names.append(split)
    return names[0], names[1]


def check_classes(name: str, train: Sequence[str] | None, test: Sequence[str] | None) -> None:
    """Refuse splits of different classes, or of the same in another order; None where a split does not name its own."""
    if train and test and (unlike := sorted({*train} ^ {*test})):
        lacking = "test" if unlike[0] in train else "training"
        raise InputError(
            f"{name}: class {unlike[0]!r} is missing from the {lacking} split ({len(unlike)} such classes)"
        )
    if train and test:
        _check_order(train, test, f"{name}: the test split", "the training split")


def _check_order(first: Sequence[str], second: Sequence[str], where: str, other: str) -> None:
    """Refuse class names that are not those of another file or split, in its order: labels are numbers."""
    if [*first] == [*second]:
        return
    number = next((k for k, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), len(second))
    names = [repr(names[number]) if number < len(names) else "missing" for names in (second, first)]
    raise InputError(
        f"{where} numbers its classes differently: class {number} is {names[0]}, in {other} {names[1]}; save both with "
        "the same class names, in the same order"
    )


def names_of_files(features: Sequence[Mapping[str, Any]], source: Source, paths: Sequence[Path]) -> Any:
    """Names of the classes in the files of a split, where the label column has them.

    Raises:
        InputError: A file numbers them differently from the first.
    """
    named = [class_names(columns, source, str(path)) for columns, path in zip(features, paths, strict=True)]
    for names, path in zip(named, paths, strict=True):
        _check_order(named[0] or (), names or (), str(path), str(paths[0]))
    return named[0]


def _read_folder(folder: Path, source: Source, splits: Sequence[str]) -> Records:
    paths = find_split(folder, splits)
    if paths[0].is_dir():
        return _read_class_folders(paths)
    files = [open_parquet(path) for path in paths]
    features = [parquet_features(file.schema_arrow, path) for file, path in zip(files, paths, strict=True)]
    names_by_file = [find_columns(columns, source, str(path)) for columns, path in zip(features, paths, strict=True)]
    records = chain.from_iterable(
        _rows(file.iter_batches(_BATCH, columns=names), names, str(path))
        for file, path, names in zip(files, paths, names_by_file, strict=True)
    )
    return records, names_of_files(features, source, paths)


def _read_class_folders(folders: Sequence[Path]) -> Records:
    """One image of each class in turn, so that every prefix represents the classes evenly."""
    rows = zip_longest(*list_images(folders))
    in_turn = (
        (path, {"bytes": None, "path": path}, label)
        for row in rows
        for label, (folder, image) in enumerate(zip(folders, row, strict=True))
        if image is not None
        for path in (str(folder / image),)
    )
    return in_turn, tuple(folder.name for folder in folders)


def open_parquet(path: Path) -> parquet.ParquetFile:
    """A Parquet file, of which only the footer is read yet."""
    try:
        return parquet.ParquetFile(regular(path))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({one_line(error)}); copy it again") from error


def parquet_features(schema: pa.Schema, path: Path) -> Mapping[str, Any]:
    """Columns and their types as Hugging Face's ``datasets`` sees them.

    Raises:
        InputError: Its description of the columns is damaged.
    """
    import datasets

    try:
        return datasets.Features.from_arrow_schema(schema)
    except Exception as error:  # whatever a damaged description leads to
        raise InputError(
            f"{path}: the description of its columns (the metadata 'huggingface') is damaged ({one_line(error)}); copy "
            "it again, or save it anew"
        ) from error


def find_columns(features: Mapping[str, Any], source: Source, where: str) -> tuple[str, str]:
    """Names of the image and the label column."""
    image = next((column for column in ("image", "img") if column in features), None)
    if image is None or source.label_column not in features:
        raise InputError(
            f"{where} has the columns {', '.join(features) or 'none'}; needed are 'image' or 'img', and"
            f" {source.label_column!r}"
        )
    kind = features[image]
    is_image = type(kind).__name__ == "Image" or (isinstance(kind, Mapping) and "bytes" in kind)
    if not is_image and getattr(kind, "dtype", None) not in ("binary", "large_binary", "string", "large_string"):
        raise InputError(f"{where}: the column {image!r} holds no images but {kind}; save them encoded, as PNG or JPEG")
    return image, source.label_column


def class_names(features: Mapping[str, Any], source: Source, where: str) -> tuple[str, ...] | None:
    """Names of the classes, where the label column has them."""
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
        raise InputError(f"{where} cannot be read from row {row} on ({one_line(error)}); copy it again") from error


def label_problem(label: object, num_classes: int | None) -> str | None:
    """What is wrong with a label that is no integer in ``0 … num_classes - 1``."""
    if isinstance(label, int) and label >= 0 and (not num_classes or label < num_classes):
        return None
    allowed = f"0 to {num_classes - 1}" if num_classes else "an integer from 0"
    return f"label {label!r} is out of range, it must be {allowed}"
