import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.presets import PRESETS
from skip_conditioning.experiments.config.train_config import TrainConfig


def preset(name):
    return PRESETS[name][1]


# The settings of the paper's released code, as PAPER.md (section 3) has them


def test_paper_mnist():
    config = preset("paper-mnist")
    assert (config.dataset, config.model, config.model_options) == ("mnist", "paper-mnist", ())
    assert config.arms == ("chain", "residual", "modified")
    assert (config.subset, config.batch_size, config.steps, config.epochs, config.trials) == (32, None, 30, None, 10)
    assert (config.lr, config.momentum, config.weight_decay, config.decay_epochs) == ((0.1,), 0.0, 0.0, None)
    assert (config.normalise, config.augment) == (False, "none")
    (tail,) = config.measurements
    assert (tail.map, tail.layers, tail.batch_mode) == ("tail", ("stem",), "batch")
    assert all(tail.schedule(step) for step in range(31))
    assert (config.probe_size, config.max_overhead, config.diagnostics) == (32, None, True)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_paper_cifar(name):
    config = preset(f"paper-{name}")
    assert (config.dataset, config.model, config.arms) == (name, "preact-resnet18", ("original", "modified"))
    assert config.lr == (0.2, 0.1, 0.05, 0.02)
    assert (config.batch_size, config.epochs, config.steps, config.trials, config.subset) == (128, 90, None, 10, None)
    assert (config.decay_epochs, config.decay_factor) == (30, 0.2)
    assert (config.momentum, config.weight_decay) == (0.0, 0.0)
    assert (config.normalise, config.augment, config.evaluate_epochs) == (True, "crop", 1)


def test_paper_imagenet():
    config = preset("paper-imagenet")
    assert (config.dataset, config.model, config.arms) == ("imagenet", "preact-resnet50", ("original", "modified"))
    assert (config.lr, config.momentum, config.weight_decay) == ((0.1,), 0.9, 1e-4)
    assert (config.decay_epochs, config.decay_factor) == (30, 0.1)
    assert (config.batch_size, config.epochs, config.steps) == (256, 90, None)
    assert (config.normalise, config.augment, config.evaluate_epochs) == (True, "resized-crop", 1)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_sense(name):
    preset(name).check()
    assert preset(name).experiment == name


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
        replace(preset("demo"), **{option: value}).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, "either --steps or --epochs"),
        ({"steps": None}, "either --steps or --epochs"),
        ({"lr": ()}, "--lr must name at least one value.*empty"),
        ({"arms": ()}, "--arms must name at least one value.*empty"),
        ({"arms": ("chain", "chain")}, "--arms .*only once; it is chain chain"),
        ({"lr": (0.1, 0.1)}, "--lr .*only once; it is 0.1 0.1"),
    ],
)
def test_options_that_make_no_sense_together(options, message):
    with pytest.raises(InputError, match=message):
        replace(preset("demo"), **options).check()


def test_every_option_is_documented():
    source = (Path(__file__).parents[2] / "experiments" / "config.py").read_text()
    for option in fields(TrainConfig):
        after = source.partition(f"\n    {option.name}: ")[2].partition("\n")[2].lstrip()
        assert option.name == "measurements" or after.startswith('"""'), option.name


def test_data_directory_comes_from_the_environment(monkeypatch):
    options = {"out": Path("out"), "experiment": "mine", "dataset": "mnist", "model": "paper-mnist"}
    monkeypatch.setenv("SKIP_DATA_DIR", "somewhere")
    assert TrainConfig(**options).data_dir == Path("somewhere")
    monkeypatch.setenv("SKIP_DATA_DIR", "")
    assert TrainConfig(**options).data_dir is None


def test_a_log_whose_package_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(InputError, match=rf"--log {name} .*pip install 'skip-conditioning\[{name}\]'"):
            replace(preset("demo"), log=(name,)).check()


def test_a_folder_named_like_a_package_is_not_that_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(InputError, match="--log wandb"):
        replace(preset("demo"), log=("wandb",)).check()
