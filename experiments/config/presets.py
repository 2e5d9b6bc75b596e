"""The presets: the paper's experiments, with the settings of its released code, and the demo."""

from typing import Any

import tyro

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.monitoring.monitor import Measurement
from skip_conditioning.diagnostics.monitoring.schedule import at_steps, every
from skip_conditioning.experiments.config.train_config import TrainConfig, make_config
from skip_conditioning.models import arms

#: Steps that the ranking of measures of conditioning reads (``claims.mechanism.measure_ranking``).
_FIRST_STEPS = at_steps(0, 5)

_CIFAR: dict[str, Any] = {
    "model": "preact-resnet18",
    "arms": ("original", "modified"),
    "lr": (0.2, 0.1, 0.05, 0.02),
    "trials": 10,
    "epochs": 90,
    "batch_size": 128,
    "normalise": True,
    "augment": "crop",
    "decay_epochs": 30,
    "decay_factor": 0.2,
    "evaluate_epochs": 1,
    "loss_window": 100,
    "precision": "auto",
    "channels_last": True,
    "keep_epochs": 30,
    "probe_size": 4,
    "measurements": (Measurement("tail", ("stem", "layer1.1", "layer2.1", "layer3.1")), Measurement("layer")),
    "max_overhead": 0.05,
}

_DESCRIPTIONS_AND_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": (
        "Conditioning against speed in a minute or two: handwritten digits bundled with scikit-learn, a residual MLP "
        "of 16 blocks with batch norm at five skip gains and three learning rates.",
        {
            "dataset": "digits",
            "model": "residual-mlp",
            "model_options": ("depth=16", "normaliser=batch"),
            "arms": ("chain", "gain-0.25", "gain-0.5", "residual", "gain-2"),
            "lr": (0.02, 0.1, 0.5),
            "trials": 3,
            "steps": 60,
            "subset": 256,
            "probe_size": 16,
            "measurements": (Measurement("tail", ("stem", "blocks.3", "blocks.7", "blocks.11"), schedule=every(10)),),
            "checkpoints": 30,
        },
    ),
    "paper-mnist": (
        "The paper's MNIST experiment: 32 images drawn once, full-batch SGD, three arms; at every step the spectrum of "
        "the Jacobian of the logits with respect to the stem's output.",
        {
            "dataset": "mnist",
            "model": "paper-mnist",
            "arms": ("chain", "residual", "modified"),
            "lr": (0.1,),
            "trials": 10,
            "steps": 30,
            "subset": 32,
            "measurements": (Measurement("tail", ("stem",), schedule=every(1)),),
            "checkpoints": 10,
        },
    ),
    "interventions": (
        "Interventions on conditioning: a residual MLP with and without skips, with other skips, skip gains and "
        "initialisations, at three learning rates; spectra and tangent kernel at the first steps.",
        {
            "dataset": "digits",
            "model": "residual-mlp",
            "model_options": ("depth=16", "width=32", "normaliser=batch"),
            "arms": tuple(arms("residual-mlp")),
            "lr": (0.25, 0.7, 2.0),
            "trials": 10,
            "steps": 40,
            "subset": 128,
            "checkpoints": 40,
            "probe_size": 8,
            "spectra_dtype": "float64",
            "measurements": (
                Measurement("tail", ("stem", "blocks.3"), schedule=_FIRST_STEPS),
                Measurement("layer", ("blocks.0", "blocks.3", "blocks.7"), schedule=_FIRST_STEPS),
                Measurement("network", schedule=_FIRST_STEPS),
                Measurement("kernel", ("total",), schedule=_FIRST_STEPS),
            ),
        },
    ),
    "paper-network-interventions": (
        "The interventions on the paper's MNIST network, where some shortcuts change shape.",
        {
            "dataset": "mnist",
            "model": "paper-mnist",
            "arms": tuple(arms("paper-mnist")),
            "lr": (0.1, 0.3, 1.0),
            "trials": 10,
            "steps": 30,
            "subset": 32,
            "checkpoints": 30,
            "probe_size": 8,
            "measurements": (Measurement("tail", ("stem",), schedule=_FIRST_STEPS),),
        },
    ),
    "paper-cifar10": (
        "The paper's CIFAR-10 experiment: pre-activation ResNet-18, original against modified shortcuts at four "
        "learning rates.",
        {"dataset": "cifar10", **_CIFAR},
    ),
    "small-cifar10": (
        "A reduced CIFAR-10 experiment for two CPU cores and a quarter of an hour: 4,000 images drawn once, the "
        "ResNet-18 at a quarter of its width, original against modified shortcuts at two learning rates.",
        {
            **_CIFAR,
            "dataset": "cifar10",
            "model_options": ("width=16",),
            "lr": (0.1, 0.02),
            "trials": 3,
            "epochs": 6,
            "subset": 4000,
            "limit_test": 1000,
            "decay_epochs": 2,
            "loss_threshold": 1.6,
            "loss_window": 32,
            "keep_epochs": 2,
            "measurements": (
                Measurement("tail", ("stem", "layer1.1", "layer2.1", "layer3.1"), schedule=every(32)),
                Measurement("layer", schedule=every(192)),
            ),
            "max_overhead": None,
        },
    ),
    "paper-cifar100": (
        "The paper's CIFAR-100 experiment: pre-activation ResNet-18, original against modified shortcuts at four "
        "learning rates.",
        {"dataset": "cifar100", **_CIFAR, "loss_threshold": 1.5},
    ),
    "paper-imagenet": (
        "The paper's ImageNet experiment: pre-activation ResNet-50 (--model preact-resnet18 … 152 for the other "
        "depths), original against modified shortcuts.",
        {
            "dataset": "imagenet",
            "model": "preact-resnet50",
            "arms": ("original", "modified"),
            "lr": (0.1,),
            "trials": 1,
            "epochs": 90,
            "batch_size": 256,
            "normalise": True,
            "augment": "resized-crop",
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "decay_epochs": 30,
            "evaluate_epochs": 1,
            "loss_threshold": 2.5,
            "loss_window": 100,
            "precision": "auto",
            "channels_last": True,
            "keep_epochs": 30,
            "probe_size": 1,
            "measurements": (Measurement("tail", ("layer3.*", "layer4.*")), Measurement("layer")),
            "max_overhead": 0.05,
        },
    ),
}

PRESETS: dict[str, tuple[str, TrainConfig]] = {
    name: (description, make_config(out=tyro.MISSING, experiment=name, **options))
    for name, (description, options) in _DESCRIPTIONS_AND_OPTIONS.items()
}


def preset(name: str, **options: Any) -> TrainConfig:
    """A preset, with other values of some options: ``preset("demo", out=Path("runs/quick"), lr=(0.1,), steps=10)``.

    Args:
        name: Of the preset.
        options: As for ``TrainConfig.changed``; ``out`` has to be given before anything is run.

    Raises:
        InputError: There is no such preset or option; near matches are offered.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}.{near_matches(name, PRESETS)}")
    return PRESETS[name][1].changed(**options)
