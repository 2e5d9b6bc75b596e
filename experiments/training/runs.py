"""The runs of an experiment, and what each is made of: its network, the monitor that measures it, and the trainer."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.errors import InputError, UnknownLayerError
from skip_conditioning.diagnostics.monitoring.monitor import SpectrumMonitor
from skip_conditioning.experiments.config.train_config import (
    TrainConfig,
    measurements,
    rates_by_arm,
    spectra_dtype,
)
from skip_conditioning.experiments.data.batches import INITIALISATION, derive_seed
from skip_conditioning.experiments.data.training_data import TrainingData, memory_format
from skip_conditioning.experiments.processes.machine import device_name, git_revision, versions
from skip_conditioning.experiments.processes.ranks import Ranks
from skip_conditioning.experiments.training.frozen_batch_norm import freeze_batch_norms, whole_first_batch
from skip_conditioning.experiments.training.networks import build_network, check_network
from skip_conditioning.experiments.training.random_streams import seed_streams
from skip_conditioning.experiments.training.trainer import Trainer

#: Images that a network is tried on before training, if a step has so many.
_TRIED_ON = 8


@dataclass(frozen=True)
class Run:
    """An arm at a learning rate in a trial.

    Attributes:
        arm: Variant of the model.
        lr: Learning rate at the start.
        trial: Number of the trial, from 0.
        seed: The trial's; all its arms and learning rates share initialisation and data order.
    """

    arm: str
    lr: float
    trial: int
    seed: int

    @property
    def run_id(self) -> str:
        """Name of the run and of its directory."""
        short = f"{self.lr:g}"
        return f"{self.arm}-lr{short if float(short) == self.lr else repr(self.lr)}-trial{self.trial:02d}"


def all_runs(config: TrainConfig) -> Iterator[Run]:
    """Every run, the arms of a trial at a learning rate next to each other."""
    rates = rates_by_arm(config)
    for trial in range(config.optimisation.trials):
        for lr in dict.fromkeys(lr for own in rates.values() for lr in own):
            for arm in config.network.arms:
                if lr in rates[arm]:
                    yield Run(arm, lr, trial, derive_seed(config.optimisation.seed, trial))


class RunFactory:
    """Makes the networks, monitors and trainers of an experiment's runs.

    Args:
        config: The options.
        data: Training and test images.
        probe: The fixed batch ``(x, y)`` that spectra are measured on.
        device: Where the networks are trained.
        ranks: The processes that train each run together.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        probe: tuple[Tensor, Tensor],
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.config, self.data, self.probe, self.device, self.ranks = config, data, probe, device, ranks
        self._measurement_seconds: dict[str, list[float]] = {}  # by the arm, once one of its runs was measured

    @property
    def total_steps(self) -> int:
        """Steps that each run takes."""
        options = self.config.optimisation
        if options.steps is not None:
            return options.steps
        assert options.epochs is not None
        return options.epochs * self.data.batches(0).per_epoch

    def network(self, run: Run) -> nn.Module:
        """The network of a run at its initialisation, in train mode; seeds the global random streams."""
        options = self.config.network
        seed_streams(derive_seed(run.seed, INITIALISATION))
        network = build_network(
            options.model,
            run.arm,
            options.model_options,
            num_classes=self.data.num_classes,
            input_shape=self.data.input_shape,
        )
        return network.to(self.device, memory_format=memory_format(self.config))  # type: ignore[call-overload]

    def initial_network(self, run: Run) -> nn.Module:
        """The network that a run begins with: as ``network``, its batch norms frozen if the options say so."""
        network = self.network(run)
        self._freeze(network, run)
        return network

    def trainer(self, run: Run, directory: Path) -> Trainer:
        """What trains a run, from its initialisation or its last checkpoint, and writes to its directory."""
        network = self.initial_network(run)
        if self.ranks.rank:  # each process drops other units of its own images
            seed_streams(derive_seed(run.seed, INITIALISATION, self.ranks.rank))
        return Trainer(
            config=self.config,
            model=network,
            batches=self.data.batches(run.seed),
            test=self.data.test(),
            monitor=self._monitor(network, run, directory, self.ranks.group),
            directory=directory,
            lr=run.lr,
            total_steps=self.total_steps,
            ranks=self.ranks,
        )

    def check(self, runs: Iterable[Run]) -> None:
        """Build, try and measure the network of each run once, so that no error is left for later.

        Raises:
            InputError: A network cannot be trained on the data, or a measurement cannot be made.
        """
        with tempfile.TemporaryDirectory() as scratch:
            for run in runs:
                self._check(run, Path(scratch))

    def description(self, run: Run) -> dict[str, Any]:
        """What the ``config.json`` of a run holds: the row of the runs table, without its status."""
        config = self.config
        return {
            "run_id": run.run_id,
            "experiment": config.output.experiment,
            "dataset": config.data.dataset,
            "model": config.network.model,
            "model_options": " ".join(config.network.model_options),
            "arm": run.arm,
            "trial": run.trial,
            "seed": run.seed,
            "lr": run.lr,
            "device": device_name(self.device),
            "versions": versions(),
            "git_revision": git_revision(),
            "total_steps": self.total_steps,
            "batch_size": config.optimisation.batch_size or len(self.data),
            "batch_norm": config.network.batch_norm,
            "num_classes": self.data.num_classes,
            "input_shape": list(self.data.input_shape),
            "loss_threshold": config.output.loss_threshold,
            "loss_window": config.output.loss_window,
        }

    def _check(self, run: Run, scratch: Path) -> None:
        network = self.network(run)
        check_network(self.config.network.model, network, self._example(), self.data.num_classes)
        self._freeze(network, run)
        try:
            self._monitor(network, run, scratch / run.run_id)
        except UnknownLayerError as error:
            raise InputError(f"{error} Choose others by --layers.") from error

    def _example(self) -> Tensor:
        """Training images, no more than a step's."""
        count = min(self.data.batches(0).size_at(0), _TRIED_ON)
        return self.data.probe(torch.arange(count))[0].to(self.device)

    def _freeze(self, network: nn.Module, run: Run) -> None:
        options = self.config.network
        if options.batch_norm == "frozen":
            freeze_batch_norms(network, whole_first_batch(self.data.batches(run.seed)), options.model)

    def _monitor(
        self, network: nn.Module, run: Run, directory: Path, group: ProcessGroup | None = None
    ) -> SpectrumMonitor:
        options = self.config.diagnostics
        monitor = SpectrumMonitor(
            network,
            self.probe,
            directory,
            maps=measurements(self.config),
            max_overhead=options.max_overhead,
            dtype=spectra_dtype(self.config),
            bounds=options.bounds,
            name=run.run_id,
            resume=True,
            estimates=self._measurement_seconds.get(run.arm),
            group=group,
        )
        self._measurement_seconds[run.arm] = monitor.estimates
        return monitor
