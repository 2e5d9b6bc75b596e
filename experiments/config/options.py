"""The options of an experiment, in groups: each field is an option of the training command."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from skip_conditioning.diagnostics.monitoring.monitor import Measurement


def _data_dir() -> Path | None:
    return Path(os.environ["SKIP_DATA_DIR"]) if os.environ.get("SKIP_DATA_DIR") else None


@dataclass(frozen=True)
class DataOptions:
    """Training and test images."""

    dataset: str
    """digits (bundled), mnist, cifar10, cifar100, imagenet, or a Hugging Face Hub name."""

    data_dir: Path | None = field(default_factory=_data_dir)
    """Folder with Parquet files or class folders, by default $SKIP_DATA_DIR; None fetches the data set from the Hub."""

    subset: int | None = None
    """Train on this many images only, drawn once with --seed for all runs; None for all."""

    limit_train: int | None = None
    """Read only the first so many training images, for a quick try; None for all."""

    limit_test: int | None = None
    """Read only the first so many test images; None for all."""

    normalise: bool = False
    """Normalise each channel by its mean and standard deviation; otherwise pixels are in [0, 1]."""

    augment: Literal["none", "crop", "resized-crop"] = "none"
    """Change batches at random: crop (after padding by 4) or resized-crop (of 8 to 100 % of the area), with flips."""

    skip_corrupt: bool = False
    """Leave out images that cannot be read, with a warning that names them; otherwise the first is an error."""

    workers: int | None = None
    """Processes that decode images of a streamed data set (imagenet); 0 for none, None for one a core, at most 16."""


@dataclass(frozen=True)
class NetworkOptions:
    """The network, and the variants of it that are compared."""

    model: str
    """A name listed by `python -m models`, or package.module:factory for a network of your own."""

    model_options: tuple[str, ...] = ()
    """Options of the model, each name=value, such as depth=16 (`python -m models` lists them)."""

    arms: tuple[str, ...] = ()
    """Variants of the model to compare; those of a factory are its attribute `arms`, or else there is one, default."""

    batch_norm: Literal["train", "frozen"] = "train"
    """train: statistics of each batch; frozen: those of the first batch at initialisation, for good."""

    sync_batch_norm: bool = False
    """With several processes (torchrun) on GPUs: batch norm over the whole batch instead of each process's part."""


@dataclass(frozen=True)
class OptimisationOptions:
    """How each run trains, and how many runs there are."""

    lr: tuple[float, ...] = ()
    """Learning rates; every arm and trial is run with each."""

    trials: int = 1
    """Number of trials: initialisations and data orders, each shared by all arms and learning rates."""

    seed: int = 0
    """Number from which the subset, the probe and the seed of every trial are derived."""

    steps: int | None = None
    """Optimiser steps of a run; given alone, it takes the place of the preset's --epochs."""

    epochs: int | None = None
    """Passes over the training images of a run; given alone, it takes the place of the preset's --steps."""

    batch_size: int | None = None
    """Images per step; None for all of them at every step."""

    momentum: float = 0.0
    """Momentum of SGD."""

    weight_decay: float = 0.0
    """Weight decay of SGD."""

    fixed_length_steps: bool = False
    """Divide each gradient by its norm over all parameters, so that every step has length lr."""

    decay_epochs: int | None = None
    """Multiply the learning rate by --decay-factor every so many epochs; None for never."""

    decay_factor: float = 0.1
    """What the learning rate is multiplied by every --decay-epochs."""

    device: str = "auto"
    """cpu, cuda, cuda:1 and so on; auto for a GPU if there is one."""

    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of forward passes in training (bfloat16: autocast); auto is bfloat16 on a GPU. Spectra never are in bfloat16."""

    channels_last: bool = False
    """Keep images and convolutions with the channels last in memory, which GPUs and some CPUs convolve faster."""

    compile: bool = False
    """Train with torch.compile; needs a C++ compiler, and a minute or so for each arm to start."""

    processes: int = 1
    """Runs trained at once on this machine's CPU, each by a process of one thread; 1: one by one, with all threads."""


@dataclass(frozen=True)
class DiagnosticsOptions:
    """What is measured while training."""

    diagnostics: bool = True
    """Measure spectra while training; the training is the same without."""

    measurements: tyro.conf.Suppress[tuple[Measurement, ...]] = (Measurement("layer"),)
    """Maps, their layers and their schedules."""

    layers: tuple[str, ...] | None = None
    """Layers to measure, names or globs such as blocks.*; None for those of the preset."""

    measure_until: int | None = None
    """Take no measurements after this step; None for all that the preset schedules."""

    probe_size: int = 32
    """Training images in the probe, the fixed batch on which spectra are measured."""

    spectra_dtype: Literal["model", "float64"] = "model"
    """Precision of spectra's Jacobians; float64 resolves condition numbers up to 1e12 or so, in twice the time."""

    max_overhead: float | None = None
    """Share of the training time that diagnostics may take, such as 0.05; None measures whenever it is due."""

    bounds: bool = False
    """Log the PŁ chain on the probe, |∇ℓ|² between its floor and ceiling, at steps 0, 1, 2, 3, 4, 6, 10 and so on."""


@dataclass(frozen=True)
class OutputOptions:
    """What is recorded, and where."""

    out: Path
    """Directory to make for the experiment's runs, tables and checkpoints."""

    experiment: tyro.conf.Suppress[str]
    """Name of the preset."""

    evaluate_epochs: int | None = None
    """Evaluate on the test images, in eval mode, every so many epochs and at the end; None for never."""

    loss_threshold: float = 0.5
    """Speed is the number of steps until the training loss is as small as this; to be fixed beforehand."""

    loss_window: int = 1
    """Compare with the threshold the mean training loss of the last so many steps; 1 is right for full batches."""

    checkpoints: int | None = None
    """Save a checkpoint every so many steps, besides the first and the last; None for once an epoch."""

    keep_epochs: int | None = None
    """Keep the weights of every so many epochs, the first and the last, others until the next; None keeps all."""

    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also log loss, accuracy, learning rate and the spectra's ends to TensorBoard or (offline) Weights & Biases."""

    estimate: bool = False
    """Time a few steps, print the hours, memory and disk that the experiment will take, and write nothing."""

    resume: bool = False
    """Go on with the experiment in --out: finished runs stay, interrupted ones continue from their last checkpoint."""

    overwrite: bool = False
    """Replace the experiment in --out: everything in that directory is removed first."""
