"""Image data sets as users have them, odd in one or two ways, read held and streamed; what must come of it is known."""

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.data.datasets import load_data
from skip_conditioning.experiments.data.image_index import StreamedData, open_images
from skip_conditioning.experiments.data.streaming import Decoder, Request
from tests.fuzz import mutations
from tests.fuzz.image_files import Identity, identified, odd_image, plain_image
from tests.fuzz.kind import WrongDataError

_CLASSES = ("bird", "cat", "dog")
_PER_CLASS = {"train": 5, "test": 2}

#: Labels and images of a split.
Pixels = tuple[Tensor, Tensor]


def read(folder: Path) -> None:
    """Read a data set in both ways.

    Raises:
        InputError: Both refuse it.
        WrongDataError: They differ, or the pixels say that classes or images are mixed up, missing or doubled.
    """
    outcomes: list[InputError | tuple[Pixels, ...]] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for way in (_held, _streamed):
            try:
                outcomes.append(way(folder))
            except InputError as error:
                outcomes.append(error)
    held, streamed = outcomes
    if isinstance(held, InputError) and isinstance(streamed, InputError):
        raise held if len(str(held)) > len(str(streamed)) else streamed
    if isinstance(held, InputError) or isinstance(streamed, InputError):
        refused = "held" if isinstance(held, InputError) else "streamed"
        raise WrongDataError(
            f"only {refused} is refused: {[each for each in outcomes if isinstance(each, InputError)]}"
        )
    for mine, other in zip(held, streamed, strict=True):
        if not all(map(torch.equal, mine, other)):
            raise WrongDataError("held and streamed differ")
    _check(held, " ".join(str(warning.message) for warning in said if issubclass(warning.category, UserWarning)))


def _held(folder: Path) -> tuple[Pixels, ...]:
    data = load_data("mine", folder)
    return tuple((part.labels, part.images.expand(-1, 3, -1, -1)[..., 1:-1, 1:-1]) for part in (data.train, data.test))


def _streamed(folder: Path) -> tuple[Pixels, ...]:
    with patch.object(datasets.config, "HF_DATASETS_CACHE", folder / ".cache"):
        data = open_images("mine", folder, image_size=14)  # the central 14 of 16, as they are
    return _decoded(data, data.train), _decoded(data, data.test)


def _decoded(data: StreamedData, images: Any) -> Pixels:
    decoded = Decoder(images, data.size)[Request([*range(len(images.labels))], None)]
    if decoded.problems:
        raise InputError(decoded.problems[0])
    return decoded.labels, decoded.images


def _check(splits: tuple[Pixels, ...], said: str) -> None:
    """Check what was read against what the pixels say, but for what warnings say.

    Raises:
        WrongDataError: Something else was read, and not a word.
    """
    label_of: dict[int, int] = {}
    for (labels, images), (split, count) in zip(splits, _PER_CLASS.items(), strict=True):
        there: list[Identity] = []
        for label, image in zip(labels.tolist(), images, strict=True):
            identity = identified(image)
            if identity is None:
                raise WrongDataError(f"{split}: an image is not as a viewer shows it")
            if label_of.setdefault(identity[0], label) != label and "names its classes" not in said:
                raise WrongDataError(f"{split}: class {identity[0]} is labelled {label} and {label_of[identity[0]]}")
            there.append(identity)
        if len({*there}) < len(there) and not said:
            raise WrongDataError(f"{split}: images are there twice")
        if len(there) < count * len(_CLASSES) and not said:
            raise WrongDataError(f"{split}: {count * len(_CLASSES) - len(there)} images are missing")
    if len({*label_of.values()}) < len(label_of):
        raise WrongDataError(f"classes share a label: {label_of}")


def _rows(split: str) -> list[Identity]:
    return [(label, number) for number in range(_PER_CLASS[split]) for label in range(len(_CLASSES))]


@dataclass
class _Shard:
    """A Parquet file to be written: its name, its columns and the description of these."""

    name: str
    images: list[Any]
    labels: list[Any]
    names: list[str] | None = field(default_factory=lambda: [*_CLASSES])
    label_type: pa.DataType | None = None
    image_type: pa.DataType | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)
    is_described: bool = True

    def write(self, folder: Path, source: random.Random, damage: bool) -> None:
        columns = {"image": pa.array(self.images, self.image_type), "label": pa.array(self.labels, self.label_type)}
        columns |= {name: pa.array(values) for name, values in self.extra.items()}
        table = pa.table(columns)
        if self.is_described:
            label = {"names": self.names, "_type": "ClassLabel"} if self.names else {"dtype": "int64", "_type": "Value"}
            described = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}}).encode()
            described = mutations.json_of(described, source) if damage else described
            table = table.replace_schema_metadata({b"huggingface": described})
        parquet.write_table(table, folder / self.name)


def write_tables(folder: Path, source: random.Random) -> Path:
    """Parquet files with one or two oddities."""
    count = source.choice((1, 2, 3))
    shards = []
    for split in _PER_CLASS:
        rows, style = _rows(split), source.choice((f"{split}-%05d-of-%05d.parquet", f"{split}-%d.parquet"))
        for part in range(count):
            chosen = rows[part::count]
            images = [{"bytes": plain_image((label, number)), "path": None} for label, number in chosen]
            name = style % ((part, count) if "-of-" in style else part)
            shards.append(_Shard(name, images, [label for label, _ in chosen]))
    damage = False
    for _ in range(source.choice((1, 1, 2))):
        oddity = source.choice(_TABLE_ODDITIES)
        damage = damage or oddity is _damaged_description
        oddity(shards, source.choice(shards), source)
    for shard in shards:
        shard.write(folder, source, damage and source.random() < 0.5)
    return folder


def _other_order(shards: list[_Shard], shard: _Shard, source: random.Random) -> None:
    """Class names in another order, and the labels that belong to them."""
    names = [*(shard.names or _CLASSES)]
    source.shuffle(names)
    if shard.is_described and all(type(label) is int and 0 <= label < len(names) for label in shard.labels):
        shard.labels = [names.index((shard.names or _CLASSES)[label]) for label in shard.labels]
        shard.names = names


def _other_names(shards: list[_Shard], shard: _Shard, source: random.Random) -> None:
    shard.names = source.choice((None, ["bird", "cat"], [*_CLASSES, "eel"], ["a", "b", "c"], [], ["bird"] * 3))


def _other_labels(shards: list[_Shard], shard: _Shard, source: random.Random) -> None:
    """A label that is none, or all of them in another type."""
    kind = source.choice((None, pa.int8(), pa.uint64(), pa.float32(), pa.string(), pa.bool_(), pa.list_(pa.int64())))
    value = source.choice((None, -1, 3, 2**62, 1.5, True, "cat", [1], {"a": 1}))
    if kind is None:
        shard.labels[source.randrange(len(shard.labels))] = value
        if type(value) not in (int, type(None)):
            shard.labels = [value] * len(shard.labels)
    else:
        shard.label_type = kind
        as_kind = {"string": str, "bool": bool, "float": float}.get(str(kind), lambda label: label)
        shard.labels = [[label] if str(kind).startswith("list") else as_kind(label) for label in shard.labels]
    if source.random() < 0.5:
        _no_names(shards, shard, source)


def _no_names(shards: list[_Shard], shard: _Shard, source: random.Random) -> None:
    """No description of the columns in any file, or in one, where the labels mean the same without."""
    for each in shards if source.random() < 0.5 else [shard]:
        each.is_described = each.names != [*_CLASSES]


def _other_images(shards: list[_Shard], shard: _Shard, source: random.Random) -> None:
    """Images in some format; as bytes, paths, numbers; or none."""
    way, chosen = source.randrange(4), source.randrange(len(shard.images))
    label = shard.labels[chosen] if shard.labels[chosen] in range(4) else 0
    if way == 0:
        shard.images[chosen] = {"bytes": odd_image((label, 15), source), "path": None}
    elif way == 1:
        shard.images[chosen] = source.choice((None, {"bytes": None, "path": None}))
    elif way == 2:
        paths = (
            "nowhere.png",
            "../../etc/passwd",
            "/dev/zero",
            "/",
            "",
            "a\0b",
            "https://example.org/a.png",
            "~",
            "x\n",
        )
        shard.images[chosen] = {"bytes": None, "path": source.choice(paths)}
    else:
        kinds: tuple[tuple[Callable[[Any], Any], pa.DataType | None], ...] = (
            (lambda image: image and image["bytes"], pa.binary()),
            (lambda image: image and image["bytes"], pa.large_binary()),
            (lambda image: "image.png", pa.string()),
            (lambda image: 7, pa.int64()),
            (lambda image: [*range(256)], pa.list_(pa.uint8())),
            (lambda image: [[0] * 16] * 16, None),
            (lambda image: image and {"bytes": image["bytes"]}, None),
            (lambda image: {"path": "image.png"}, None),
            (lambda image: None, pa.null()),
        )
        convert, kind = source.choice(kinds)
        for each in shards if source.random() < 0.7 else [shard]:
            each.images, each.image_type = [convert(image) for image in each.images], kind
    if source.random() < 0.5:
        _no_names(shards, shard, source)


def _other_files(shards: list[_Shard], shard: _Shard, source: random.Random) -> None:
    """A shard that is missing, there twice under another name, or empty."""
    way = source.randrange(4)
    middle = shard.name.endswith("-1.parquet") and shards[-1].name.endswith("2.parquet")
    if way == 0 and ("-of-" in shard.name or middle):  # else nobody can tell
        shards.remove(shard)
    elif way == 1:
        stem, split = shard.name.removesuffix(".parquet"), shard.name.partition("-")[0]
        names = (f"{stem} (1)", f"{stem}-copy", f"Copy of {stem}", f"{stem}_old", f"{stem}.bak", split, f"{split}_0")
        other = (f"{split}-00000-of-00001", f"{split}-7", f"{split}-000", f"{split}ing", f".{stem}", f"{stem}.1")
        shards.append(_Shard(**{**vars(shard), "name": f"{source.choice(names + other)}.parquet"}))
    elif way == 2:
        shards.append(
            _Shard(shard.name.partition("-")[0] + "_unlabelled.parquet", shard.images, [0] * len(shard.images))
        )
    else:
        shard.extra["split"] = ["train"] * len(shard.labels)


def _damaged_description(shards: list[_Shard], shard: _Shard, source: random.Random) -> None:
    """See ``_Shard.write``."""


_TABLE_ODDITIES = (
    *(_other_order, _other_order, _other_names, _other_labels, _no_names, _other_images, _other_images),
    *(_other_files, _other_files, _damaged_description),
)


def write_folders(folder: Path, source: random.Random) -> Path:
    """Class folders with some odd images, and something in them that does not belong there."""
    for split in _PER_CLASS:
        for label, number in _rows(split):
            path = folder / split / _CLASSES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(
                odd_image((label, number), source) if source.random() < 0.03 else plain_image((label, number))
            )
    images = sorted(folder.rglob("*.png"))
    for _ in range(source.choice((0, 1, 1, 2))):
        image = source.choice(images)
        if image.exists():
            source.choice(_FOLDER_ODDITIES)(image)
    return folder


def _aside(image: Path) -> None:
    (image.parent / "more").mkdir()
    image.rename(image.parent / "more" / image.name)


def _as_table(image: Path) -> None:
    """The same split as a Parquet file too."""
    split = image.parent.parent
    rows = _rows(split.name)
    contents = [{"bytes": plain_image(row), "path": None} for row in rows]
    _Shard(f"{split.name}.parquet", contents, [label for label, _ in rows]).write(split.parent, random.Random(0), False)


_FOLDER_ODDITIES: tuple[Callable[[Path], object], ...] = (
    _aside,
    _as_table,
    lambda image: image.rename(image.with_suffix(".gif")),
    lambda image: image.rename(image.with_suffix(".PNG")),
    lambda image: image.rename(image.with_suffix("")),
    lambda image: image.rename(image.parent.parent / image.name),
    lambda image: image.rename(image.with_name(os.fsdecode(b"\xff\xfe\n.png"))),
    lambda image: image.rename(image.with_name("$(x) %s {0} [1].png")),
    lambda image: image.parent.rename(image.parent.with_name("Cat")),
    lambda image: image.parent.rename(image.parent.with_name("caf\u0065\u0301")),
    lambda image: image.parent.rename(image.parent.with_name("." + image.parent.name)),
    lambda image: shutil.rmtree(image.parent),
    lambda image: (image.parent.parent / "empty").mkdir(),
    lambda image: (image.parent / "Thumbs.db").write_bytes(b"x"),
    lambda image: (image.unlink(), os.mkfifo(image)),
    lambda image: (image.unlink(), image.mkdir()),
    lambda image: (image.unlink(), image.symlink_to("nowhere.png")),
    lambda image: (image.unlink(), image.symlink_to(image.name)),
    lambda image: (image.unlink(), image.symlink_to("/dev/zero")),
)
