"""The options of an experiment, in groups: each field is an option of the training command."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from skip_conditioning.diagnostics.monitoring.monitor import Measurement


def default_data_dir() -> Path | None:
    """The folder that ``$SKIP_DATA_DIR`` names; None without it."""
    return Path(os.environ["SKIP_DATA_DIR"]) if os.environ.get("SKIP_DATA_DIR") else None


@dataclass(frozen=True)
class DataOptions:
    """Training and test images."""

    dataset: str
    """digits (bundled), mnist, cifar10, cifar100, imagenet, or a Hugging Face Hub name."""

    data: str | None = None
    """package.module:batches or file.py:batches in place of --dataset: a function of yours that returns tensors
    (inputs, class indices), a Dataset or a DataLoader of them, or {"train": ..., "test": ...}."""

    data_dir: Path | None = field(default_factory=default_data_dir)
    """Folder with Parquet files or class folders, by default $SKIP_DATA_DIR; None downloads it from the Hub."""

    subset: int | None = None
    """Train on this many images, drawn at random once for all runs; None for all."""

    limit_train: int | None = None
    """Use only this many training images, the first ones, for a quick try; None for all."""

    limit_test: int | None = None
    """Use only this many test images, the first ones; None for all."""

    normalise: bool = False
    """Normalise each channel to mean 0 and standard deviation 1; otherwise pixels are in [0, 1]."""

    augment: Literal["none", "crop", "resized-crop"] = "none"
    """Random flips with random crops: crop (after padding by 4) or resized-crop (8 to 100 % of the area)."""

    skip_corrupt: bool = False
    """Leave out images that cannot be read, with a warning that names them; otherwise training stops at the first."""

    workers: int | None = None
    """Processes that decode images, for imagenet; 0 for none, None for one per core, at most 16."""


@dataclass(frozen=True)
class NetworkOptions:
    """The network, and the variants of it to compare."""

    model: str
    """A name listed by `skip-conditioning models`, or package.module:factory or file.py:factory for one of your own."""

    model_options: tuple[str, ...] = ()
    """Options of the model, each name=value, such as depth=16; `skip-conditioning models` lists them."""

    arms: tuple[str, ...] = ()
    """Variants of the model to compare. Another --model has its own: a factory of yours all that it lists as
    factory.arms, or only `default`; a network that lacks some of the preset's its usual one."""

    batch_norm: Literal["train", "frozen"] = "train"
    """Statistics of batch norm: of each batch (train), or always of the first batch at initialisation (frozen)."""

    sync_batch_norm: bool = False
    """On several GPUs (torchrun), take the statistics of batch norm over the whole batch, not each process's part."""


@dataclass(frozen=True)
class OptimisationOptions:
    """How each run trains, and how many runs there are."""

    lr: tuple[float, ...] = ()
    """Learning rates; every arm is trained with each, in every trial."""

    arm_lr: tuple[str, ...] = ()
    """Learning rates of single arms in place of --lr, each arm=rate, such as chain=0.25 chain=0.5."""

    trials: int = 1
    """Number of trials; each has an initialisation and a data order, shared by all arms and learning rates."""

    seed: int = 0
    """Seed of the whole experiment: of the subset, the probe and every trial."""

    steps: int | None = None
    """Length of a run in optimiser steps; replaces the preset's --epochs."""

    epochs: int | None = None
    """Length of a run in passes over the training images; replaces the preset's --steps."""

    batch_size: int | None = None
    """Images per step; None for all of them (full batch)."""

    momentum: float = 0.0
    """Momentum of SGD."""

    weight_decay: float = 0.0
    """Weight decay of SGD."""

    fixed_length_steps: bool = False
    """Divide each gradient by its norm over all parameters, so that every step has length lr."""

    decay_epochs: int | None = None
    """Multiply the learning rate by --decay-factor every this many epochs; None for never."""

    decay_factor: float = 0.1
    """Factor by which the learning rate decays."""

    device: str = "auto"
    """cpu, cuda, cuda:1 and so on; auto is a GPU if there is one, else the CPU."""

    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Precision of training, not of spectra: bfloat16 is autocast; auto is bfloat16 on a GPU, float32 on a CPU."""

    channels_last: bool = False
    """Use the channels-last memory format, in which GPUs and some CPUs convolve faster."""

    compile: bool = False
    """Train with torch.compile, which needs a C++ compiler and takes a minute or so to start each arm."""

    processes: int = 1
    """Runs trained at once on a CPU, each in a process of one thread; 1 trains them in turn, with all threads."""


@dataclass(frozen=True)
class DiagnosticsOptions:
    """What is measured while training."""

    diagnostics: bool = True
    """Measure spectra while training, which does not change the training."""

    measurements: tyro.conf.Suppress[tuple[Measurement, ...]] = (Measurement("layer"),)
    """Maps, their layers and their schedules."""

    layers: tuple[str, ...] | None = None
    """Layers to measure, names or globs such as blocks.*; None for those of the preset, or the blocks of a --model with
    arms of its own."""

    measure_until: int | None = None
    """Last step at which to measure; None for the preset's schedule to its end."""

    probe_size: int = 32
    """Number of training images in the probe, the fixed batch on which spectra are measured."""

    spectra_dtype: Literal["model", "float64"] = "model"
    """Precision of Jacobians; float64 resolves condition numbers up to about 1e12, in twice the time."""

    max_overhead: float | None = None
    """Largest share of the training time that diagnostics may take, such as 0.05; None for no limit."""

    bounds: bool = False
    """Log |∇ℓ|² on the probe between its lower and upper PŁ bounds, at steps 0, 1, 2, 3, 4, 6, 10 and so on."""


@dataclass(frozen=True)
class OutputOptions:
    """What is recorded, and where."""

    out: Path
    """Directory for the experiment's runs, tables and checkpoints; it is made."""

    experiment: tyro.conf.Suppress[str]
    """Name of the preset."""

    evaluate_epochs: int | None = None
    """Evaluate on the test images every this many epochs and at the end; None for never."""

    loss_threshold: float = 0.5
    """Training loss to reach: the speed of a run is the number of steps that it takes. Fix it before looking."""

    loss_window: int = 1
    """Steps over whose mean training loss the threshold is reached; 1 for full batches, more for noisy mini-batches."""

    checkpoints: int | None = None
    """Save a checkpoint every this many steps, and at the first and the last; None for once an epoch."""

    keep_epochs: int | None = None
    """Keep the checkpoints of every this many epochs, the first and the last, and remove the others; None keeps all."""

    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Log loss, accuracy, learning rate and extreme singular values to TensorBoard or Weights & Biases (offline)."""

    estimate: bool = False
    """Time a few steps, print the hours, memory and disk space that the experiment will take, and write nothing."""

    resume: bool = False
    """Continue the experiment in --out: finished runs stay, interrupted ones go on from their last checkpoint."""

    overwrite: bool = False
    """Remove everything in --out first, and start anew."""
