"""Image records on disk or on the Hugging Face Hub: found and read, one by one; ``image_decoding`` decodes them.

Reading is lazy: of a data set that is limited to its first images no more is read or decoded.
"""

from __future__ import annotations

import warnings
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
        features = dataset[split].features
        columns = find_columns(features or {}, features and features.arrow_schema, source, source.hub)
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
    elif train or test:
        warnings.warn(
            f"{name}: only the {'training' if train else 'test'} split names its classes; the other one is taken to "
            "number them alike",
            stacklevel=3,
        )


def _check_order(first: Sequence[str], second: Sequence[str], where: str, other: str) -> None:
    """Refuse class names that are not those of another file or split, in its order: labels are numbers."""
    if [*first] == [*second]:
        return
    number = next((k for k, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    number = min(len(first), len(second)) if number is None else number
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
    features, names_by_file = zip(
        *(described_columns(file.schema_arrow, source, path) for file, path in zip(files, paths, strict=True)),
        strict=True,
    )
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


def described_columns(schema: pa.Schema, source: Source, path: Path) -> tuple[Mapping[str, Any], tuple[str, str]]:
    """Columns as Hugging Face's ``datasets`` describes them, and the names of those of the images and the labels.

    Raises:
        InputError: The description of the columns is damaged, or they do not hold images and labels.
    """
    import datasets

    try:
        features = datasets.Features.from_arrow_schema(schema)
    except Exception as error:  # whatever a damaged description leads to
        raise InputError(
            f"{path}: the description of its columns (the metadata 'huggingface') is damaged ({one_line(error)}); copy "
            "it again, or save it anew"
        ) from error
    return features, find_columns(features, schema, source, str(path))


def find_columns(features: Mapping[str, Any], schema: pa.Schema, source: Source, where: str) -> tuple[str, str]:
    """Names of the image and the label column; what these hold counts, and not how they are described."""
    image = next((column for column in ("image", "img") if column in features), None)
    if image is None or source.label_column not in features:
        raise InputError(
            f"{where} has the columns {', '.join(features) or 'none'}; needed are 'image' or 'img', and"
            f" {source.label_column!r}"
        )
    kinds = []
    for column in (image, source.label_column):
        if schema.get_field_index(column) < 0:
            raise InputError(f"{where} has two columns {column!r}; remove one")
        kinds.append(schema.field(column).type)
    content = kinds[0].field("bytes").type if pa.types.is_struct(kinds[0]) and "bytes" in kinds[0].names else kinds[0]
    if str(content).removeprefix("large_") not in ("binary", "string"):
        raise InputError(
            f"{where}: the column {image!r} holds no images but {kinds[0]}; save them encoded, as PNG or JPEG"
        )
    if not pa.types.is_integer(kinds[1]):
        raise InputError(
            f"{where}: the column {source.label_column!r} holds {kinds[1]}; save the classes as integers from 0"
        )
    return image, source.label_column


def class_names(features: Mapping[str, Any], source: Source, where: str) -> tuple[str, ...] | None:
    """Names of the classes, where the label column has them."""
    names = getattr(features[source.label_column], "names", None)
    if names and not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: a name of a class is no text; save the names of the classes anew")
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
