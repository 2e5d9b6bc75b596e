"""The options of a training experiment, and the presets: the paper's experiments and the demo."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from diagnostics.errors import InputError
from diagnostics.monitor import Measurement
from diagnostics.schedule import every

DATA_DIR = "SKIP_DATA_DIR"


@dataclass(frozen=True)
class TrainConfig:
    """One experiment: every arm, learning rate and trial of it is a run.

    Runs of one trial share their initialisation and data order, so that arms are compared in pairs.
    """

    out: Path
    """Directory to make for the experiment's runs, tables and checkpoints."""

    experiment: tyro.conf.Fixed[str]
    """Name of the preset."""

    dataset: str
    """digits (bundled), mnist, cifar10, cifar100, imagenet, or a Hugging Face Hub name."""

    model: str
    """A name listed by `python -m models`, or package.module:factory for a network of your own."""

    model_options: tuple[str, ...] = ()
    """Options of the model, each name=value, such as depth=16 (`python -m models` lists them)."""

    arms: tuple[str, ...] = ()
    """Variants of the model to compare."""

    lr: tuple[float, ...] = ()
    """Learning rates; each is run with every arm and trial."""

    trials: int = 1
    """Number of trials (an initialisation and a data order each)."""

    steps: int | None = None
    """Optimiser steps of a run; this or --epochs."""

    epochs: int | None = None
    """Passes over the training images of a run; this or --steps."""

    batch_size: int | None = None
    """Images per step; None for all of them at every step."""

    subset: int | None = None
    """Train on this many images only, drawn once with the seed; None for all."""

    limit_train: int | None = None
    """Read only this many training images from disk, for a quick try."""

    limit_test: int | None = None
    """Read only this many test images from disk."""

    data_dir: Path | None = field(
        default_factory=lambda: Path(os.environ[DATA_DIR]) if DATA_DIR in os.environ else None
    )
    """Folder with the data set in Hugging Face Parquet layout or class folders. Default: $SKIP_DATA_DIR if set,
    else the data set is fetched from the Hub."""

    normalise: bool = False
    """Normalise each channel by its mean and standard deviation; otherwise pixels are in [0, 1]."""

    augment: bool = False
    """Random crops (padding 4) and horizontal flips."""

    momentum: float = 0.0
    """Momentum of SGD."""

    weight_decay: float = 0.0
    """Weight decay of SGD."""

    decay_epochs: int | None = None
    """Multiply the learning rate by --decay-factor every this many epochs; None for never."""

    decay_factor: float = 0.1
    """See --decay-epochs."""

    evaluate_epochs: int | None = None
    """Evaluate on the test images (in eval mode) every this many epochs and at the end; None for never."""

    loss_threshold: float = 0.5
    """Speed is the number of steps until the training loss is this small; fixed beforehand."""

    loss_window: int = 1
    """Average the training loss over this many steps before comparing it; 1 for full batches."""

    seed: int = 0
    """Trial number k uses the seed derived from (seed, k)."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 and so on."""

    diagnostics: bool = True
    """Measure spectra while training."""

    probe_size: int = 32
    """Training images in the probe, the fixed batch on which spectra are measured."""

    measurements: tyro.conf.Suppress[tuple[Measurement, ...]] = (Measurement("tail"),)

    max_overhead: float | None = None
    """Share of the training time that diagnostics may take, such as 0.05; None measures whenever it is due."""

    checkpoints: int | None = None
    """Save a checkpoint every this many steps, besides the first and last; None for once an epoch."""

    resume: bool = False
    """Go on with the experiment in --out: finished runs stay, interrupted ones continue from their checkpoint."""

    overwrite: bool = False
    """Replace the experiment in --out."""

    def check(self) -> None:
        """Raise ``InputError`` for options that make no sense, by themselves or together."""
        if (self.steps is None) == (self.epochs is None):
            raise InputError("give either --steps or --epochs (None for the other, which a preset may have set)")
        for name in ("trials", "steps", "epochs", "batch_size", "subset", "probe_size", "decay_epochs", "checkpoints"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1; it is {value}")
        if not self.lr or any(not 0 < lr < float("inf") for lr in self.lr):
            raise InputError(f"--lr needs positive numbers; it is {' '.join(map(str, self.lr)) or 'empty'}")
        for name in ("arms", "lr"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(
                    f"--{name} must name each value once, and at least one; it is {' '.join(map(str, values))}"
                )
        if self.seed < 0:
            raise InputError(f"--seed must not be negative; it is {self.seed}")


_CIFAR = {
    "model": "preact-resnet18",
    "arms": ("original", "modified"),
    "lr": (0.2, 0.1, 0.05, 0.02),
    "trials": 10,
    "epochs": 90,
    "batch_size": 128,
    "normalise": True,
    "augment": True,
    "decay_epochs": 30,
    "decay_factor": 0.2,
    "evaluate_epochs": 1,
    "loss_window": 100,
    "probe_size": 4,
    "measurements": (Measurement("tail", ("stem", "layer1.1", "layer2.1", "layer3.1")),),
    "max_overhead": 0.05,
}

_DESCRIPTIONS_AND_OPTIONS: dict[str, tuple[str, dict]] = {
    "demo": (
        "Handwritten digits bundled with scikit-learn, a 16-block residual MLP with batch norm at five skip gains "
        "and three learning rates: conditioning against speed in a minute or two.",
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
        "PAPER.md section 3: 32 MNIST images drawn once, full-batch SGD, the spectrum of the Jacobian behind the "
        "stem at every step.",
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
    "paper-cifar10": (
        "CIFAR-10, pre-activation ResNet-18, original against modified shortcuts at four learning rates.",
        {"dataset": "cifar10", **_CIFAR},
    ),
    "paper-cifar100": (
        "CIFAR-100, pre-activation ResNet-18, original against modified shortcuts at four learning rates.",
        {"dataset": "cifar100", **_CIFAR, "loss_threshold": 1.5},
    ),
    "paper-imagenet": (
        "ImageNet, pre-activation ResNet-50 (--model preact-resnet18 … 152 for the other depths), original against "
        "modified shortcuts.",
        {
            "dataset": "imagenet",
            "model": "preact-resnet50",
            "arms": ("original", "modified"),
            "lr": (0.1,),
            "trials": 1,
            "epochs": 90,
            "batch_size": 256,
            "normalise": True,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "decay_epochs": 30,
            "evaluate_epochs": 1,
            "loss_threshold": 2.5,
            "loss_window": 100,
            "probe_size": 1,
            "measurements": (Measurement("tail", ("layer3.*", "layer4.*")),),
            "max_overhead": 0.05,
        },
    ),
}

PRESETS: dict[str, tuple[str, TrainConfig]] = {
    name: (description, TrainConfig(out=tyro.MISSING, experiment=name, **options))
    for name, (description, options) in _DESCRIPTIONS_AND_OPTIONS.items()
}
