"""Training in bfloat16 and with the channels last: what changes, and what does not."""

import pytest
import torch

from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.train import parse
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.experiments.training.trainer import is_half


def table(out, name):
    return getattr(read_experiment(out), name)


def test_bfloat16_is_for_forward_passes_only(train):
    """Weights, losses and spectra are float32; the loss moves by no more than eight bits of mantissa explain."""
    full, half = train("full"), train("half", "--precision", "bfloat16")
    losses = [table(out, "metrics").query("split == 'train'")["loss"].to_numpy() for out in (full, half)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=0.03)
    spectra = [table(out, "spectra").query("step == 0") for out in (full, half)]
    assert spectra[1]["values"].iloc[0].tolist() == spectra[0]["values"].iloc[0].tolist()
    assert set(table(half, "spectra")["dtype"]) == {"float32"}


@pytest.mark.parametrize(
    ("precision", "device", "half"),
    [("auto", "cpu", False), ("auto", "cuda", True), ("float32", "cuda", False), ("bfloat16", "cpu", True)],
)
def test_auto_is_bfloat16_on_a_gpu_alone(precision, device, half):
    assert is_half(precision, torch.device(device)) == half


def test_channels_last_is_a_matter_of_memory_only(train, small):
    options = ("--model", "paper-mnist", "--arms", "modified", "--layers", "stem", "--augment", "crop")
    made = Runner(parse([*small, *options, "--channels-last", "--out", "o"]))
    model = made.factory.network(made.runs[0])
    weight = model.block1.branch[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    images, _ = made.data.batches(0).at(0)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert made.probe[0].is_contiguous()
    first, last = train("first", *options), train("last", *options, "--channels-last")
    metrics = [table(out, "metrics").query("split == 'train' and step < 3")["loss"] for out in (first, last)]
    assert metrics[1].tolist() == pytest.approx(metrics[0].tolist(), rel=1e-3)
    sizes = [table(out, "spectra").query("step == 0")["sigma_max"].item() for out in (first, last)]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-4)
