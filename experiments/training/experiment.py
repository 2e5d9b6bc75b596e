"""An experiment: every arm at every learning rate in every trial, each a run in a directory of its own."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from tqdm import tqdm

from skip_conditioning.diagnostics.errors import InputError, UnknownLayerError
from skip_conditioning.diagnostics.monitoring.monitor import SpectrumMonitor
from skip_conditioning.diagnostics.tables import write_json
from skip_conditioning.experiments.config.train_config import TrainConfig, measurements, spectra_dtype
from skip_conditioning.experiments.data.batches import INITIALISATION, PROBE, derive_seed
from skip_conditioning.experiments.data.training_data import draw_indices, memory_format, open_data
from skip_conditioning.experiments.processes.group import check_compiler, choose_device
from skip_conditioning.experiments.processes.ranks import Ranks
from skip_conditioning.experiments.records.directory import check_out, is_over, prepare_out, read_status, write_status
from skip_conditioning.experiments.records.locks import check_unlocked, locked
from skip_conditioning.experiments.records.loggers import check_loggers
from skip_conditioning.experiments.records.provenance import device_name, git_revision, versions
from skip_conditioning.experiments.records.speed import write_speed
from skip_conditioning.experiments.training.frozen_batch_norm import freeze_batch_norms, whole_first_batch
from skip_conditioning.experiments.training.networks import build_network, check_arms, check_network
from skip_conditioning.experiments.training.progress import ProgressBar, StepRecord
from skip_conditioning.experiments.training.random_streams import seed_streams
from skip_conditioning.experiments.training.runs import Cell, all_cells
from skip_conditioning.experiments.training.step_log import Progress
from skip_conditioning.experiments.training.trainer import Trainer

#: Images that a network is tried on before training, if a step has so many.
_CHECKED = 8
#: How torch's CPU allocator, which raises a plain RuntimeError, words it.
_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


class Experiment:
    """An experiment ready to run: options checked, data loaded, every arm built and measured once.

    Args:
        config: The options.
        prepared: Whether another process has tried the networks already and is within ``prepared()``, for which this
            one runs single cells.
        ranks: The processes that train each run together.

    Raises:
        InputError: Whatever is wrong with the options, the data, the model or the output directory, before
            anything is written; or another process writes to that.
    """

    def __init__(self, config: TrainConfig, *, prepared: bool = False, ranks: Ranks | None = None) -> None:
        self.config, self.ranks = config, ranks or Ranks()
        config.check()
        check_loggers(config.output.log)
        check_arms(config.network.model, config.network.arms)
        self.device = choose_device(config.optimisation.device)
        responsible = self.ranks.is_first and not prepared
        if config.optimisation.compile:
            check_compiler(self.device)
        if config.network.sync_batch_norm:
            self.ranks.check_sync_batch_norm(self.device)
        if responsible:
            check_unlocked([config.output.out, *(config.output.out / "runs").glob("*")])
        if self.ranks.is_first:
            check_out(config, self.ranks.count)
        self.data = open_data(config, self.device, self.ranks)
        self.probe = self.data.probe(
            draw_indices(len(self.data), config.diagnostics.probe_size, config.optimisation.seed, PROBE, "--probe-size")
        )
        self.cells = list(all_cells(config))
        self._estimates: dict[str, list[float]] = {}  # of an arm's measurements, once one of its runs has tried them
        if responsible:
            with tempfile.TemporaryDirectory() as scratch:
                firsts = {cell.arm: cell for cell in reversed(self.cells)}
                for cell in firsts.values():
                    self._check(cell, Path(scratch))

    def directory(self, cell: Cell) -> Path:
        """Where a run has its tables and checkpoints."""
        return self.config.output.out / "runs" / cell.run_id

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """Hold the experiment's directory inside, made, emptied with ``--overwrite`` and described.

        Raises:
            InputError: Another process writes there, or it cannot be written.
            KeyboardInterrupt: Like that within, and says how to go on.
        """
        with contextlib.ExitStack() as stack:
            if self.ranks.is_first:
                stack.enter_context(locked(self.config.output.out))
                prepare_out(self.config, self.probe, self.ranks.count)
            try:
                yield
            except KeyboardInterrupt:
                advice = "to go on, repeat the command with --resume (and without --overwrite)"
                raise KeyboardInterrupt(advice) from None

    def run(self) -> None:
        """Train every run that is not over yet, then write the speed table."""
        with self.prepared():
            pending = [cell for cell in self.cells if not is_over(self.directory(cell))] if self.ranks.is_first else []
            pending = self.ranks.agree(pending)
            whole = self.total_steps() + 1
            with tqdm(
                total=len(self.cells) * whole, unit="step", dynamic_ncols=True, disable=not self.ranks.is_first
            ) as bar:
                bar.update(whole * (len(self.cells) - len(pending)))
                for cell in pending:
                    bar.set_description(cell.run_id)
                    progress = ProgressBar(bar)
                    self._run(cell, progress)
                    progress.advance(whole)
            if self.ranks.is_first:
                write_speed(self.config.output.out)

    def run_cell(self, run_id: str) -> None:
        """Train one run unless it is over, for a process that is within ``prepared()``; its status tells its step."""
        cell = next(cell for cell in self.cells if cell.run_id == run_id)
        if not is_over(self.directory(cell)):
            self._run(cell, StepRecord(self.directory(cell)))

    def record_failure(self, cell: Cell, reason: str) -> None:
        """Mark a run as failed whose process ended without a word; a reason that the process gave itself stays."""
        directory = self.directory(cell)
        with locked(directory):
            if read_status(directory).get("status") != "failed":
                write_json(self._describe(cell), directory / "config.json")
                write_status(directory, "failed", reason=reason)

    def _run(self, cell: Cell, progress: Progress) -> None:
        """Train a run, with its directory held."""
        directory = self.directory(cell)
        with clear_memory_errors(), locked(directory) if self.ranks.is_first else contextlib.nullcontext():
            if self.ranks.is_first:
                write_json(self._describe(cell), directory / "config.json")
                write_status(directory, "running")
            try:
                self._trainer(cell).run(progress)
            except Exception as error:
                if self.ranks.is_first and not is_over(directory):
                    write_status(directory, "failed", reason=f"{type(error).__name__}: {error}")
                raise

    def _check(self, cell: Cell, scratch: Path) -> None:
        """Build, try and measure a run's network once, so that nothing is found wrong with it later."""
        model = self._build(cell)
        check_network(self.config.network.model, model, self._example(), self.data.num_classes)
        self._freeze(model, cell)
        try:
            self._monitor(model, cell, scratch / cell.run_id)
        except UnknownLayerError as error:
            raise InputError(f"{error} Choose others by --layers.") from error

    def _example(self) -> Tensor:
        """Training images, no more than a step's."""
        count = min(self.data.batches(0).size_at(0), _CHECKED)
        return self.data.probe(torch.arange(count))[0].to(self.device)

    def _trainer(self, cell: Cell) -> Trainer:
        model = self._build(cell)
        self._freeze(model, cell)
        if self.ranks.rank:  # each process drops other units of its own images
            seed_streams(derive_seed(cell.seed, INITIALISATION, self.ranks.rank))
        monitor = self._monitor(model, cell, self.directory(cell), self.ranks.group)
        return Trainer(
            config=self.config,
            model=model,
            batches=self.data.batches(cell.seed),
            test=self.data.test(),
            monitor=monitor,
            directory=self.directory(cell),
            lr=cell.lr,
            total_steps=self.total_steps(),
            ranks=self.ranks,
        )

    def _freeze(self, network: nn.Module, cell: Cell) -> None:
        if self.config.network.batch_norm == "frozen":
            freeze_batch_norms(network, whole_first_batch(self.data.batches(cell.seed)), self.config.network.model)

    def _build(self, cell: Cell) -> nn.Module:
        seed_streams(derive_seed(cell.seed, INITIALISATION))
        network = build_network(
            self.config.network.model,
            cell.arm,
            self.config.network.model_options,
            num_classes=self.data.num_classes,
            input_shape=self.data.input_shape,
        )
        return network.to(self.device, memory_format=memory_format(self.config))  # type: ignore[call-overload]

    def _monitor(
        self, model: nn.Module, cell: Cell, directory: Path, group: ProcessGroup | None = None
    ) -> SpectrumMonitor:
        monitor = SpectrumMonitor(
            model,
            self.probe,
            directory,
            maps=measurements(self.config),
            max_overhead=self.config.diagnostics.max_overhead,
            dtype=spectra_dtype(self.config),
            bounds=self.config.diagnostics.bounds,
            run_id=cell.run_id,
            estimates=self._estimates.get(cell.arm),
            group=group,
        )
        self._estimates[cell.arm] = monitor.estimates
        return monitor

    def total_steps(self) -> int:
        """Steps that each run takes."""
        if self.config.optimisation.steps is not None:
            return self.config.optimisation.steps
        assert self.config.optimisation.epochs is not None
        return self.config.optimisation.epochs * self.data.batches(0).per_epoch

    def _describe(self, cell: Cell) -> dict[str, Any]:
        config = self.config
        return {
            "run_id": cell.run_id,
            "experiment": config.output.experiment,
            "dataset": config.data.dataset,
            "model": config.network.model,
            "model_options": " ".join(config.network.model_options),
            "arm": cell.arm,
            "trial": cell.trial,
            "seed": cell.seed,
            "lr": cell.lr,
            "device": device_name(self.device),
            "versions": versions(),
            "git_revision": git_revision(),
            "total_steps": self.total_steps(),
            "batch_size": config.optimisation.batch_size or len(self.data),
            "batch_norm": config.network.batch_norm,
            "num_classes": self.data.num_classes,
            "input_shape": list(self.data.input_shape),
            "loss_threshold": config.output.loss_threshold,
            "loss_window": config.output.loss_window,
        }


@contextlib.contextmanager
def clear_memory_errors() -> Iterator[None]:
    """Turn an error for want of memory, on a GPU or not, into one line that names the way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise InputError("out of memory; give a smaller --batch-size, or more processes (torchrun)") from error
