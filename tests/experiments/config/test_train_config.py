from dataclasses import fields
from pathlib import Path

import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.monitor import Measurement
from skip_conditioning.experiments.config import options
from skip_conditioning.experiments.config.presets import PRESETS, preset
from skip_conditioning.experiments.config.train_config import (
    TrainConfig,
    flag,
    make_config,
    measurements,
    option_values,
)
from skip_conditioning.experiments.train import parse

# The settings of the paper's released code (docs/paper.md §3)


_CIFAR = {
    **{"model": "preact-resnet18", "arms": ("original", "modified"), "lr": (0.2, 0.1, 0.05, 0.02), "trials": 10},
    **{"batch_size": 128, "epochs": 90, "steps": None, "subset": None, "decay_epochs": 30, "decay_factor": 0.2},
    **{"momentum": 0.0, "weight_decay": 0.0, "normalise": True, "augment": "crop", "evaluate_epochs": 1},
}
PAPER = {
    "mnist": {
        **{"dataset": "mnist", "model": "paper-mnist", "model_options": (), "arms": ("chain", "residual", "modified")},
        **{"subset": 32, "batch_size": None, "steps": 30, "epochs": None, "trials": 10, "lr": (0.1,), "momentum": 0.0},
        **{"weight_decay": 0.0, "decay_epochs": None, "normalise": False, "augment": "none"},
        **{"probe_size": 32, "max_overhead": None, "diagnostics": True},
    },
    "cifar10": {"dataset": "cifar10", **_CIFAR},
    "cifar100": {"dataset": "cifar100", **_CIFAR},
    "imagenet": {
        **{"dataset": "imagenet", "model": "preact-resnet50", "arms": ("original", "modified"), "lr": (0.1,)},
        **{"momentum": 0.9, "weight_decay": 1e-4, "decay_epochs": 30, "decay_factor": 0.1, "batch_size": 256},
        **{"epochs": 90, "steps": None, "normalise": True, "augment": "resized-crop", "evaluate_epochs": 1},
    },
}


@pytest.mark.parametrize("name", PAPER)
def test_settings_of_the_paper(name):
    values = option_values(preset(f"paper-{name}"))
    assert {option: values[option] for option in PAPER[name]} == PAPER[name]


def test_the_papers_mnist_spectra_are_measured_at_every_step():
    (tail,) = preset("paper-mnist").diagnostics.measurements
    assert (tail.map, tail.layers, tail.batch_mode) == ("tail", ("stem",), "batch")
    assert all(tail.schedule(step) for step in range(31))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_sense(name):
    preset(name, out=Path("o")).check()
    assert preset(name).output.experiment == name


# What is refused


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(o, v) for o in ("trials", "steps", "batch_size", "subset", "limit_train", "limit_test") for v in (0, -1)],
        *[(o, 0) for o in ("probe_size", "decay_epochs", "evaluate_epochs", "loss_window", "checkpoints")],
        *[("lr", (value,)) for value in (0.0, -0.1, float("nan"), float("inf"))],
        *[("decay_factor", 0.0), ("max_overhead", -0.05), ("momentum", -0.9), ("weight_decay", float("nan"))],
        *[("seed", -1), ("loss_threshold", float("nan"))],
    ],
)
def test_a_number_out_of_range_is_named(option, value):
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} must be .*; it is") as caught:
        preset("demo", out=Path("o"), **{option: value}).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 60, "epochs": 3}, "either --steps or --epochs"),
        ({"steps": None}, "either --steps or --epochs"),
        ({"lr": ()}, "--lr must name at least one value.*empty"),
        ({"arms": ()}, "--arms must name at least one value.*empty"),
        ({"arms": ("chain", "chain")}, "--arms .*only once; it is chain chain"),
        ({"lr": (0.1, 0.1)}, "--lr .*only once; it is 0.1 0.1"),
    ],
)
def test_options_that_make_no_sense_together(options, message):
    with pytest.raises(InputError, match=message):
        preset("demo", out=Path("o"), **options).check()


def test_every_option_is_documented():
    source = Path(options.__file__).read_text()
    for option in option_values(preset("demo")):
        after = source.partition(f"\n    {option}: ")[2].partition("\n")[2].lstrip()
        assert after.startswith('"""'), option


def test_each_option_is_in_one_group():
    groups = [getattr(preset("demo"), group.name) for group in fields(TrainConfig)]
    names = [option.name for group in groups for option in fields(group)]
    assert len(names) == len(set(names)) == len(option_values(preset("demo")))


def test_data_directory_comes_from_the_environment(monkeypatch):
    given = {"out": Path("out"), "experiment": "mine", "dataset": "mnist", "model": "paper-mnist"}
    monkeypatch.setenv("SKIP_DATA_DIR", "somewhere")
    assert make_config(**given).data.data_dir == Path("somewhere")
    monkeypatch.setenv("SKIP_DATA_DIR", "")
    assert make_config(**given).data.data_dir is None


def test_without_a_preset_layers_are_measured():
    config = make_config(out=Path("out"), experiment="mine", dataset="mnist", model="paper-mnist", lr=(0.1,))
    assert config.diagnostics.measurements == (Measurement("layer"),)
    assert config.optimisation.lr == (0.1,)


# Changed in Python


def test_options_are_changed_by_their_own_names():
    config = preset("demo", lr=(0.3,), arms=("chain",), out=Path("o"), probe_size=4, subset=64)
    assert (config.optimisation.lr, config.network.arms, config.output.out) == ((0.3,), ("chain",), Path("o"))
    assert (config.diagnostics.probe_size, config.data.subset) == (4, 64)
    others = {name for name, value in option_values(config).items() if value != option_values(preset("demo"))[name]}
    assert others == {"lr", "arms", "out", "probe_size", "subset"}
    assert config.changed() == config


@pytest.mark.parametrize(
    ("given", "steps", "epochs", "model_options"),
    [
        ({"epochs": 3}, None, 3, ("depth=16", "normaliser=batch")),
        ({"steps": 7}, 7, None, ("depth=16", "normaliser=batch")),
        ({"steps": 7, "epochs": 3}, 7, 3, ("depth=16", "normaliser=batch")),
        ({"model": "residual-mlp"}, 60, None, ()),
        ({"model": "residual-mlp", "model_options": ("depth=2",)}, 60, None, ("depth=2",)),
    ],
)
def test_options_given_set_others_aside_as_on_the_command_line(given, steps, epochs, model_options):
    config = preset("demo", **given)
    assert (config.optimisation.steps, config.optimisation.epochs) == (steps, epochs)
    assert config.network.model_options == model_options
    words = []
    for name, value in given.items():
        words += [flag(name), *(value if isinstance(value, tuple) else [str(value)])]
    assert parse(["demo", "--out", "o", *words]) == config.changed(out=Path("o"))


def test_one_value_stands_for_a_tuple_of_it_and_other_kinds_are_refused():
    config = preset("demo", lr=0.1, arms="chain", layers=["stem"], out=Path("o"))
    assert config == preset("demo", lr=(0.1,), arms=("chain",), layers=("stem",), out=Path("o"))
    for name, value in {"trials": (3,), "steps": "10", "lr": ("a",)}.items():
        with pytest.raises(InputError, match=f"--{name} must be"):
            config.changed(**{name: value}).check()


def test_an_unknown_option_or_preset_is_named_with_its_near_matches():
    with pytest.raises(InputError, match=r"no option 'stesp' .*Did you mean 'steps'"):
        preset("demo", stesp=3)
    with pytest.raises(InputError, match="no option 'learning_rate'"):
        preset("demo").changed(learning_rate=3)
    with pytest.raises(InputError, match=r"unknown preset 'dmeo'; known are demo, .*Did you mean 'demo'"):
        preset("dmeo")


def test_a_preset_needs_a_directory():
    with pytest.raises(InputError, match="--out"):
        preset("demo").check()


@pytest.mark.parametrize(
    ("given", "arms", "layers"),
    [
        ({"model": "torch.nn:Identity"}, ("default",), ()),
        ({"model": "preact-resnet18"}, ("original",), ()),
        ({"model": "residual-mlp"}, ("chain", "gain-0.25", "gain-0.5", "residual", "gain-2"), None),
        ({"model": "torch.nn:Identity", "arms": ("a",), "layers": ("b",)}, ("a",), ("b",)),
    ],
)
def test_another_network_has_its_own_arms_and_layers(given, arms, layers):
    config = preset("demo", **given)
    assert (config.network.arms, config.diagnostics.layers) == (arms, layers)
    assert [measurement.layers for measurement in measurements(config)] == [
        ("stem", "blocks.3", "blocks.7", "blocks.11") if layers is None else layers or None
    ]
