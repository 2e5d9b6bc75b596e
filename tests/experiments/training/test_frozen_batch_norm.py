"""Batch norm with the statistics of one batch for good: its values, its spectra, its runs."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.kernel.tangent_kernel import tangent_kernel
from skip_conditioning.diagnostics.measure import spectra
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.config.presets import preset
from skip_conditioning.experiments.data.batches import Batches, BatchOrder, Pixels
from skip_conditioning.experiments.data.datasets import Split
from skip_conditioning.experiments.records.checkpoints import load_into
from skip_conditioning.experiments.train import main, parse
from skip_conditioning.experiments.training.estimate import estimate
from skip_conditioning.experiments.training.frozen_batch_norm import freeze_batch_norms, whole_first_batch
from skip_conditioning.experiments.training.random_streams import rng_states
from skip_conditioning.experiments.training.trainer import Trainer
from tests.experiments.conftest import SMALL
from tests.experiments.data.test_streaming import batches, opened, photo
from tests.experiments.training.test_train_distributed import close, in_two_processes, weights


class Counting(nn.Module):
    """A buffer that every forward pass changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return x


def network(seed=0, *inner):
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), *inner
    made = nn.Sequential(*layers, nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4)).double()
    for module in made:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return made


def images(count=6, seed=1):
    return torch.rand(count, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def frozen(seed=0, *inner):
    made = network(seed, *inner)
    freeze_batch_norms(made, images(), "a network")
    return made


def affine(model):
    """The same map with batch norm written out as an affine map of each channel."""
    layers = []
    for module in model:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            channels, spatial = module.num_features, isinstance(module, nn.BatchNorm2d)
            scale = module.weight / (module.running_var + module.eps).sqrt()
            layer = nn.Conv2d(channels, channels, 1) if spatial else nn.Linear(channels, channels)
            layer.weight.data = torch.diag(scale.detach()).view_as(layer.weight)
            layer.bias.data = (module.bias - scale * module.running_mean).detach()
            layers.append(layer)
        else:
            layers.append(module)
    return nn.Sequential(*layers)


def test_on_its_batch_the_network_computes_what_batch_norm_in_train_mode_does():
    made, whole = frozen(), network()(images())
    for mode in (made.train(), made.eval()):
        torch.testing.assert_close(mode(images()), whole)
    torch.testing.assert_close(made(images()[:2]), whole[:2])
    assert not torch.allclose(made(images(seed=2)), network()(images(seed=2)))


def test_nothing_else_of_the_model_changes():
    inner = nn.Dropout(0.5), Counting()
    before, streams = network(0, *inner).state_dict(), rng_states()
    made = frozen(0, *inner)
    assert all(torch.equal(state, streams[name]) for name, state in rng_states().items())
    after = made.state_dict()
    assert [(name, tensor.shape, tensor.dtype) for name, tensor in before.items()] == [
        (name, tensor.shape, tensor.dtype) for name, tensor in after.items()
    ]
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        *("1.running_mean", "1.running_var", "7.running_mean", "7.running_var")
    }
    assert isinstance(made[1], nn.BatchNorm2d)
    assert not made[1]._forward_pre_hooks
    assert made[5].training  # dropout


def test_training_leaves_the_statistics_as_they_are():
    made, before = frozen(), frozen().state_dict()
    optimizer = torch.optim.SGD(made.parameters(), 0.1)
    for step in range(3):
        made.train()
        cross_entropy(made(images(seed=step)), torch.arange(6) % 4).backward()
        optimizer.step()
    changed = {name for name, tensor in made.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name, _ in made.named_parameters()}


@pytest.mark.parametrize(
    ("map", "layer", "batch_mode"),
    [
        ("tail", "0", "batch"),
        ("tail", "3", "sample"),
        ("network", None, "sample"),
        ("param", "0", "batch"),
    ],
)
def test_spectra_are_those_of_affine_maps(map, layer, batch_mode):
    options = {"map": map, "layers": layer and [layer], "batch_mode": batch_mode}
    pair = [spectra(model, images(4, seed=3), **options) for model in (frozen(), affine(frozen()))]
    assert pair[0]
    for one, other in zip(*(measured.values() for measured in pair), strict=True):
        for first, second in zip(*(x if isinstance(x, list) else [x] for x in (one, other)), strict=True):
            torch.testing.assert_close(torch.as_tensor(first.values), torch.as_tensor(second.values))


def test_its_kernel_is_that_of_affine_maps():
    options = {"layers": ["0", "4"], "dtype": torch.float64}
    measured, expected = (tangent_kernel(model, images(4, seed=3), **options) for model in (frozen(), affine(frozen())))
    torch.testing.assert_close(measured.total, expected.total)
    assert measured.methods == expected.methods
    assert not measured.note


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(2 * self.norm(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 4), "--batch-norm frozen: theirs has no batch norm"),
        (nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), "'0' of theirs keeps no running statistics"),
        (Twice(), "'norm' of theirs is applied several times"),
    ],
)
def test_networks_that_cannot_be_frozen(model, message):
    with pytest.raises(InputError, match=message):
        freeze_batch_norms(model, torch.rand(3, 4), "theirs")


@pytest.mark.parametrize("batch_size", [4, None])
def test_every_process_takes_the_whole_first_batch(batch_size):
    pixels, labels = torch.randint(256, (10, 1, 4, 4), dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)
    orders = [BatchOrder(10, batch_size, 3, "crop", rank=rank, ranks=2) for rank in range(2)]
    parts = [Batches(Split(pixels, labels), Pixels(None, None), order) for order in orders]
    together = torch.cat([part.at(0)[0] for part in parts])
    assert all(torch.equal(whole_first_batch(part), together) for part in parts)


def test_every_process_decodes_the_whole_first_batch_of_streamed_images(tmp_path):
    for split, name, number in product(("train", "val"), ("bird", "cat"), range(4)):
        place = tmp_path / split / name
        place.mkdir(parents=True, exist_ok=True)
        photo(seed=number).save(place / f"{number}.JPEG")
    data = opened(tmp_path)
    parts = [batches(data, batch_size=6, rank=rank, ranks=2) for rank in range(2)]
    together = torch.cat([part.at(0)[0] for part in parts])
    assert all(torch.equal(whole_first_batch(part), together) for part in parts)


# Whole experiments

FROZEN = ("--batch-norm", "frozen", "--momentum", "0.9", "--fixed-length-steps", "--augment", "crop")


@pytest.mark.parametrize("stop", [0, 3])
def test_a_run_that_is_killed_resumes_to_the_same_bits(train, same_results, monkeypatch, stop):
    whole, step = train("whole", *FROZEN), Trainer._step

    def killed(trainer, network, number):
        if number == stop:
            raise KeyboardInterrupt
        step(trainer, network, number)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", killed)
        assert main([*SMALL, "--out", "killed", *FROZEN]) == 130
    same_results(whole, train("killed", "--resume", *FROZEN))


def test_checkpoints_fit_the_network_and_hold_the_statistics_of_the_first_batch(train):
    import nets

    out = train("out", *FROZEN)
    files = sorted(out.glob("runs/*/checkpoints/step_*.safetensors"))
    statistics = []
    for file in files:
        model = nets.batch_norm()
        load_into(model, file)
        statistics.append(torch.stack([model[2].running_mean, model[2].running_var]))
    assert len(files) > 2
    assert all(torch.equal(later, statistics[0]) for later in statistics)
    assert not torch.equal(statistics[0][1], torch.ones(16))
    assert read_experiment(out).runs["batch_norm"].tolist() == ["frozen"]


def test_the_observer_changes_nothing(train):
    one, other = train("seen", *FROZEN, "--bounds"), train("unseen", *FROZEN, "--no-diagnostics")
    assert all(torch.equal(weights(one)[key], tensor) for key, tensor in weights(other).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nets:dropout", "--arms", "default"), "nets:dropout has no batch norm"),
        (("--sync-batch-norm",), "--sync-batch-norm has nothing to synchronise"),
        (("--model", "nets:bad", "--model-options", "kind=wide", "--arms", "default"), "cannot be applied to a batch"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(nets, capsys, options, message):
    assert main([*SMALL, "--out", "out", "--batch-norm", "frozen", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (nets / "out").exists()


@pytest.mark.slow
def test_two_processes_train_as_one(nets):
    (nets / "doubled.py").write_text(DOUBLE)
    arguments = [*SMALL, "--model", "doubled:norm", "--arms", "default", "--no-diagnostics", *FROZEN]
    both = in_two_processes(nets, [*arguments, "--out", "two"])
    assert [code for code, *_ in both] == [0, 0], both
    assert main([*arguments, "--out", "one"]) == 0
    assert close(weights(nets / "one"), weights(nets / "two"))


DOUBLE = """
from torch import nn

class Double(nn.Module):
    def forward(self, x):
        return x.double().flatten(1)

def norm():
    return nn.Sequential(Double(), nn.Linear(784, 16).double(), nn.BatchNorm1d(16).double(), nn.Linear(16, 10).double())
"""


def test_an_experiment_is_not_resumed_with_another_choice(train, capsys):
    train("out")
    for option in (("--batch-norm", "frozen"), ("--fixed-length-steps",), ("--spectra-dtype", "float64")):
        assert main([*SMALL, "--out", "out", "--resume", *option]) == 2
        assert option[0].strip("-") in capsys.readouterr().err


def test_spectra_in_float64_of_a_training_in_float32(train):
    one, other = train("model"), train("double", "--spectra-dtype", "float64")
    first, second = (read_experiment(out).spectra for out in (one, other))
    assert (second["floor"] < 1e-7 * first["floor"]).all()
    assert second["sigma_max"].tolist() == pytest.approx(first["sigma_max"].tolist(), rel=1e-4)
    assert all(torch.equal(weights(one)[key], tensor) for key, tensor in weights(other).items())


def test_options_are_estimated(nets):
    config = parse([*SMALL, "--out", "o", *FROZEN, "--spectra-dtype", "float64", "--bounds"])
    assert estimate(config).runs == 1
    with pytest.raises(InputError, match="no batch norm"):
        estimate(config.changed(model="nets:dropout", arms=("default",)))
    assert preset("demo").network.batch_norm == "train"
