"""Data of the user's own: in every form that a function may return, trained and resumed as any other, or refused."""

from pathlib import Path

import pytest
import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.data.own_data import load_own
from skip_conditioning.experiments.train import main

CODE = """
import torch
from torch import nn

x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
y = x[:, :3].argmax(1)


def network():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def tensors():
    return x, y


def dataset():
    return torch.utils.data.TensorDataset(x, y)


def loader():
    return torch.utils.data.DataLoader(dataset(), batch_size=7)


def listed():
    return list(loader())


def split():
    return {"train": (x[:30], y[:30]), "test": (x[30:], y[30:])}


def generated():
    yield x, y


def dictionaries():
    return [{"x": x}]


def ragged():
    return [(x, y), (x[:, :4], y)]


def real():
    return x, x[:, 0]


def failing():
    return 1 / 0


def leaving():
    raise SystemExit(0)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(4), 0


def endless():
    return torch.utils.data.DataLoader(Endless(), 4)


def more_classes():
    inputs, labels = tensors()
    return {"train": (inputs, labels), "test": (inputs, labels + 1)}


def meta():
    return torch.zeros(2, 4, device="meta"), torch.tensor([0, 1])


def infinite():
    return torch.tensor([[1.0], [torch.inf]]), torch.tensor([0, 1])


number = 3
"""


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("form", ["tensors", "dataset", "loader", "listed"])
def test_every_form_gives_the_same_data(form: str) -> None:
    data, plain = load_own(f"own.py:{form}"), load_own("own.py:tensors")
    assert data.num_classes == 3
    assert not len(data.test)
    assert torch.equal(data.train.images, plain.train.images)
    assert torch.equal(data.train.labels, plain.train.labels)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("generated", "train is a generator; return a pair of tensors"),
        ("dictionaries", "train, batch 0 is a dictionary; train holds tensors only"),
        ("ragged", r"samples of shapes \(4,\) and \(5,\); all have to have the same"),
        ("real", "a class index is needed for each sample"),
        ("failing", r"own.py:failing raised ZeroDivisionError: division by zero \(.*own.py, line \d+\)"),
        ("leaving", "own.py:leaving raised SystemExit"),
        ("endless", "train is a DataLoader; return a pair of tensors"),
        ("more_classes", "test holds class 3; train has 0 to 2"),
        ("meta", "train holds tensors without values, of the device meta"),
        ("infinite", "train holds NaN or infinity in sample 1"),
        ("number", "is a int; name a function"),
        ("splitt", "has no 'splitt'.*split"),
    ],
)
def test_what_is_no_data_is_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_own(f"own.py:{name}")
    assert "\n" not in str(error.value)


def train(out: str, *more: str) -> int:
    options = [
        "demo",
        "--model",
        "own.py:network",
        "--data",
        "own.py:split",
        "--out",
        out,
        "--steps",
        "6",
        "--lr",
        "0.1",
    ]
    return main([*options, "--trials", "1", "--probe-size", "8", "--batch-size", "8", *more])


def test_it_is_trained_and_evaluated_as_any_other() -> None:
    assert train("o", "--evaluate-epochs", "1") == 0
    tables = read_experiment("o")
    assert tables.runs["dataset"].tolist() == ["own.py:split"]
    assert {"train", "test", "probe"} == set(tables.metrics["split"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--dataset", "mnist"), "--dataset is for the built-in data sets"),
        (("--normalise",), "--normalise is for images"),
        (("--data", "own.py:tensors", "--evaluate-epochs", "1"), "own.py:tensors returns no test data"),
    ],
)
def test_options_of_images_are_refused(
    more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train("o", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
