"""What a user's function for ``--data`` may return: it is trained on as it is, or refused in one line."""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from skip_conditioning.experiments.data import own_data
from skip_conditioning.experiments.data.own_data import load_own
from tests.fuzz.kind import Made, WrongDataError

_COUNT = 6


class _Endless(IterableDataset[Any]):
    """Says nothing of its end."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat((torch.zeros(3), 0))


class _Liar:
    """Its length is another than that of what it gives."""

    def __init__(self, length: Any) -> None:
        self.length = length

    def __len__(self) -> Any:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if index >= _COUNT:
            raise IndexError(index)
        return torch.full((3,), float(index)), index % 2


def _inputs(source: random.Random) -> Any:
    """Inputs whose first number is their place, or something else."""
    places = torch.arange(float(_COUNT)).view(-1, 1).expand(-1, 3).clone()
    odd: tuple[Callable[[], Any], ...] = (
        lambda: places.double(),
        lambda: places.to(torch.uint8),
        lambda: places.half(),
        lambda: places.to(torch.complex64),
        lambda: places.bool(),
        lambda: places.to_sparse(),
        lambda: places.to("meta"),
        lambda: places.numpy(),
        lambda: places.tolist(),
        lambda: places.requires_grad_(),
        lambda: places[:0],
        lambda: places[:, :0],
        lambda: places[0, 0],
        lambda: places * torch.nan,
        lambda: places + torch.inf,
        lambda: torch.nested.nested_tensor([places[0], places[1, :2]]),
        lambda: torch.quantize_per_tensor(places, 0.1, 0, torch.qint8),
        lambda: ["text"] * _COUNT,
        lambda: np.array([None] * _COUNT),
    )
    return source.choice(odd)() if source.random() < 0.5 else places


def _labels(source: random.Random) -> Any:
    plain = torch.arange(_COUNT) % 2
    odd: tuple[Callable[[], Any], ...] = (
        *(lambda kind=kind: plain.to(kind) for kind in (torch.float32, torch.int8, torch.uint8, torch.bool)),
        *(lambda value=value: plain + value for value in (-1, 1, 2**40, 2**62)),
        lambda: plain.to(torch.complex64),
        lambda: torch.eye(2)[plain],
        lambda: torch.eye(2, dtype=torch.int64)[plain],
        lambda: plain[:, None],
        lambda: plain[:-1],
        lambda: plain[0],
        lambda: plain.to("meta"),
        lambda: plain.numpy(),
        lambda: ["a", "b"] * (_COUNT // 2),
        lambda: None,
    )
    return source.choice(odd)() if source.random() < 0.5 else plain


def _part(source: random.Random) -> Any:
    pair = (_inputs(source), _labels(source))
    forms: tuple[Callable[[], Any], ...] = (
        *(lambda: pair,) * 4,
        lambda: [pair, pair],
        lambda: [*pair],
        lambda: [pair, tuple(part[:1] for part in pair)],
        lambda: TensorDataset(*pair),
        lambda: DataLoader(TensorDataset(*pair), batch_size=4),
        lambda: DataLoader(_Endless(), batch_size=2),
        lambda: DataLoader([]),
        lambda: {"x": pair[0], "y": pair[1]},
        lambda: iter([pair]),
        lambda: _Liar(source.choice((_COUNT, _COUNT + 1, 0, -1, 2.5, None, 10**30))),
        lambda: source.choice((None, 3, "text", b"", [], (), [[]], [None], [(pair[0],)], object(), Path(), pair[0])),
        lambda: (*pair, pair[1]),
    )
    return source.choice(forms)()


def _make(folder: Path, source: random.Random) -> Callable[[], Any]:
    def batches() -> Any:
        part = _part(source)
        whole: tuple[Callable[[], Any], ...] = (
            *(lambda: part,) * 3,
            lambda: {"train": part},
            lambda: {"train": part, "test": _part(source)},
            lambda: {"train": part, "test": None, "more": 3},
            lambda: {"test": part},
            lambda: source.choice((SystemExit(0), KeyError(), StopIteration(), RecursionError("x" * 10**6))),
        )
        data = source.choice(whole)()
        if isinstance(data, BaseException):
            raise data
        return data

    return batches


def _read(batches: Callable[[], Any]) -> None:
    """Load the data, and compare what is kept with what was given.

    Raises:
        InputError: They are refused.
        WrongDataError: Inputs and labels are others.
    """
    given: list[Any] = []

    def once() -> Any:
        given.append(batches())
        return given[0]

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(own_data, "load_attribute", lambda _: once))
        data = load_own("mine:batches")
    for part in (data.train, data.test):
        if len(part.images) != len(part.labels) or (len(part) and int(part.labels.max()) >= 2**20):
            raise WrongDataError(f"{len(part.images)} inputs, {len(part.labels)} labels to {part.labels.max()}")
        if part.images.numel() and not _is_in_place(values := part.images.flatten(1)[:, 0].float()):
            raise WrongDataError(f"inputs are {values.tolist()}")
    if data.num_classes > 2 and not _has_label_of(given[0], data.num_classes - 1):
        raise WrongDataError(f"{data.num_classes} classes")


def _is_in_place(values: Tensor) -> bool:
    """Whether these are the places, once or again and again; of truth values, whether all but the first are true."""
    again = torch.arange(len(values)) % _COUNT
    return torch.equal(values, again.float()) or torch.equal(values, (again > 0).float()) or len(values) == _COUNT + 1


def _has_label_of(given: Any, label: int) -> bool:
    return f"{label}" in f"{given}" or not isinstance(given, tuple)


def kind() -> Made:
    """The kind of functions for ``--data``."""
    return Made("data of one's own", _make, _read)
