"""An experiment: every arm at every learning rate in every trial, each a run in a directory of its own."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diagnostics.errors import InputError, UnknownLayerError
from diagnostics.monitor import SpectrumMonitor
from diagnostics.spectrum import Spectrum
from diagnostics.tables import write_json
from experiments.batches import INITIALISATION, PROBE, SUBSET, Batches, Pixels, derive_seed, generator
from experiments.config import TrainConfig
from experiments.data import Split, load_data
from experiments.locks import check_unlocked, locked
from experiments.networks import build_network, check_arms, check_network
from experiments.outputs import check_out, is_over, prepare_out, read_status, write_status
from experiments.provenance import device_name, git_revision, versions
from experiments.speed import write_speed
from experiments.training import Progress, Trainer

#: Images of the first batch that a network is tried on before training.
_CHECKED = 8

#: Seconds between two records of the step at which a run in a process of its own is.
_RECORD_EVERY = 1.0


@dataclass(frozen=True)
class Cell:
    """One run: an arm at a learning rate in a trial.

    Attributes:
        seed: The trial's; all its arms and learning rates share initialisation and data order.
    """

    arm: str
    lr: float
    trial: int
    seed: int

    @property
    def run_id(self) -> str:
        """Name of the run and of its directory."""
        return f"{self.arm}-lr{self.lr:g}-trial{self.trial:02d}"


class Experiment:
    """An experiment ready to run: options checked, data loaded, every arm built and measured once.

    Args:
        config: The options.
        prepared: Whether another process has tried the networks already and is within ``prepared()``, for which this
            one runs single cells.

    Raises:
        InputError: Whatever is wrong with the options, the data, the model or the output directory, before
            anything is written; or another process writes to that.
    """

    def __init__(self, config: TrainConfig, *, prepared: bool = False) -> None:
        config.check()
        check_arms(config.model, config.arms)
        if not prepared:
            check_unlocked([config.out, *(config.out / "runs").glob("*")])
        check_out(config)
        self.config, self.device = config, choose_device(config.device)
        self.data = load_data(
            config.dataset,
            config.data_dir,
            limit_train=config.limit_train,
            # That a test split is there is checked also where it is never evaluated.
            limit_test=config.limit_test if config.evaluate_epochs else 1,
            draw=None if config.subset is None else lambda count: self._draw(count, config.subset, SUBSET, "--subset"),
        )
        self.pixels = Pixels.of(self.data, config.normalise)
        chosen = self._draw(len(self.data.train), config.probe_size, PROBE, "--probe-size")
        self.probe = (self.pixels(self.data.train.images[chosen]), self.data.train.labels[chosen])
        self.train, self.test = (
            Split(split.images.to(self.device), split.labels.to(self.device))
            for split in (self.data.train, self.data.test)
        )
        if not prepared:
            with tempfile.TemporaryDirectory() as scratch:
                for cell in {cell.arm: cell for cell in self.cells()}.values():
                    self._check(cell, Path(scratch))

    def cells(self) -> Iterator[Cell]:
        """Every run, the arms of a trial next to each other."""
        for trial in range(self.config.trials):
            for lr in self.config.lr:
                for arm in self.config.arms:
                    yield Cell(arm, lr, trial, derive_seed(self.config.seed, trial))

    def directory(self, cell: Cell) -> Path:
        """Where a run has its tables and checkpoints."""
        return self.config.out / "runs" / cell.run_id

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """Hold the experiment's directory inside, made, emptied with ``--overwrite`` and described.

        Raises:
            InputError: Another process writes there, or it cannot be written.
            KeyboardInterrupt: Like that within, and says how to go on.
        """
        with locked(self.config.out):
            prepare_out(self.config, self.probe)
            try:
                yield
            except KeyboardInterrupt:
                advice = "to go on, repeat the command with --resume (and without --overwrite)"
                raise KeyboardInterrupt(advice) from None

    def run(self) -> None:
        """Train every run that is not over yet, then write the speed table."""
        every = list(self.cells())
        with self.prepared():
            with tqdm(total=len(every) * (self.total_steps() + 1), unit="step", dynamic_ncols=True) as bar:
                for cell in every:
                    end = bar.n + self.total_steps() + 1
                    bar.set_description(cell.run_id)
                    self._run(cell, _Progress(bar))
                    bar.update(end - bar.n)
            write_speed(self.config.out)

    def run_cell(self, run_id: str) -> None:
        """Train one run unless it is over, for a process that is within ``prepared()``; its status tells its step."""
        cell = next(cell for cell in self.cells() if cell.run_id == run_id)
        self._run(cell, _StepRecord(self.directory(cell)))

    def record_failure(self, cell: Cell, reason: str) -> None:
        """Mark a run as failed whose process ended without a word; a reason that the process gave itself stays."""
        directory = self.directory(cell)
        with locked(directory):
            if read_status(directory).get("status") != "failed":
                write_json(self._describe(cell), directory / "config.json")
                write_status(directory, "failed", reason=reason)

    def _run(self, cell: Cell, progress: Progress) -> None:
        directory = self.directory(cell)
        if is_over(directory):
            return
        with locked(directory):
            write_status(directory, "running")
            write_json(self._describe(cell), directory / "config.json")
            try:
                self._trainer(cell, directory).run(progress)
            except Exception as error:
                write_status(directory, "failed", reason=f"{type(error).__name__}: {error}")
                raise

    def _check(self, cell: Cell, scratch: Path) -> None:
        """Build, try and measure a run's network once, so that nothing is found wrong with it later."""
        model = self._model(cell)
        images, _ = self._batches(cell.seed).at(0)
        check_network(self.config.model, model, images[:_CHECKED], self.data.num_classes)
        try:
            self._monitor(model, cell, scratch / cell.run_id)
        except UnknownLayerError as error:
            raise InputError(f"{error} Choose others by --layers.") from error

    def _trainer(self, cell: Cell, directory: Path) -> Trainer:
        model = self._model(cell)
        return Trainer(
            config=self.config,
            model=model,
            batches=self._batches(cell.seed),
            test=self.test,
            pixels=self.pixels,
            monitor=self._monitor(model, cell, directory),
            directory=directory,
            lr=cell.lr,
            total_steps=self.total_steps(),
        )

    def _model(self, cell: Cell) -> nn.Module:
        torch.manual_seed(derive_seed(cell.seed, INITIALISATION))
        shape = self.train.images.shape[1:]
        network = build_network(
            self.config.model,
            cell.arm,
            self.config.model_options,
            num_classes=self.data.num_classes,
            input_shape=tuple(shape),
        )
        return network.to(self.device)

    def _batches(self, seed: int) -> Batches:
        config = self.config
        return Batches(self.train.images, self.train.labels, self.pixels, config.batch_size, config.augment, seed)

    def _monitor(self, model: nn.Module, cell: Cell, directory: Path) -> SpectrumMonitor:
        measurements = self.config.measurements if self.config.diagnostics else ()
        if self.config.layers is not None:
            measurements = tuple(replace(measurement, layers=self.config.layers) for measurement in measurements)
        return SpectrumMonitor(
            model,
            self.probe,
            directory,
            maps=measurements,
            max_overhead=self.config.max_overhead,
            bounds=self.config.bounds,
            run_id=cell.run_id,
        )

    def total_steps(self) -> int:
        """Steps that each run takes."""
        if self.config.steps is not None:
            return self.config.steps
        assert self.config.epochs is not None
        return self.config.epochs * self._batches(0).per_epoch

    def _draw(self, count: int, size: int | None, purpose: int, option: str) -> Tensor:
        """Indices of some of ``count`` images, drawn once for the whole experiment; all in order for None."""
        if size is None or size == count:
            return torch.arange(count)
        if size > count:
            raise InputError(f"{option} {size} is more than the {count} training images there are")
        return torch.randperm(count, generator=generator(self.config.seed, purpose))[:size]

    def _describe(self, cell: Cell) -> dict[str, Any]:
        config = self.config
        return {
            "run_id": cell.run_id,
            "experiment": config.experiment,
            "dataset": config.dataset,
            "model": config.model,
            "model_options": " ".join(config.model_options),
            "arm": cell.arm,
            "trial": cell.trial,
            "seed": cell.seed,
            "lr": cell.lr,
            "device": device_name(self.device),
            "versions": versions(),
            "git_revision": git_revision(),
            "total_steps": self.total_steps(),
            "batch_size": config.batch_size or len(self.train),
            "num_classes": self.data.num_classes,
            "input_shape": list(self.train.images.shape[1:]),
            "loss_threshold": config.loss_threshold,
            "loss_window": config.loss_window,
        }


class _Progress:
    """Shows step, loss and the worst κ of the latest spectra on a bar; called after every step of one run."""

    def __init__(self, bar: tqdm) -> None:
        self.bar, self.start, self.kappa = bar, bar.n, "–"

    def __call__(self, step: int, loss: float, spectra: dict[str, Spectrum]) -> None:
        if spectra:
            worst = max(spectra.values(), key=lambda spectrum: spectrum.condition_number)
            self.kappa = f"{'' if worst.resolved else '≥'}{worst.condition_number:.3g}"
        self.bar.set_postfix_str(f"step {step}, loss {loss:.3g}, κ {self.kappa}", refresh=False)
        self.bar.update(self.start + step + 1 - self.bar.n)


class _StepRecord:
    """Records the step in a run's status every now and then; called after every step."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.written = directory, -_RECORD_EVERY

    def __call__(self, step: int, loss: float, spectra: dict[str, Spectrum]) -> None:
        if time.monotonic() >= self.written + _RECORD_EVERY:
            write_status(self.directory, "running", step=step)
            self.written = time.monotonic()


def choose_device(name: str) -> torch.device:
    """A device by name; ``auto`` is a GPU if there is one.

    Raises:
        InputError: No such device, or it is not there.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}); try --device cpu") from error
    return device
