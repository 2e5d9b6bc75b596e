"""An experiment: every arm at every learning rate in every trial, each a run in a directory of its own."""

import contextlib
import functools
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from diagnostics.errors import InputError, UnknownLayerError
from diagnostics.forecast import TimeBudget
from diagnostics.monitor import SpectrumMonitor
from diagnostics.tables import write_json
from experiments.batches import INITIALISATION, PROBE, derive_seed
from experiments.cells import Cell, all_cells
from experiments.config import TrainConfig
from experiments.frozen_batch_norm import freeze_batch_norms, whole_first_batch
from experiments.grouping import alike_arms, grouped
from experiments.locks import check_unlocked, locked
from experiments.measurements import measurements, spectra_dtype
from experiments.networks import build_network, check_arms, check_network
from experiments.out_of_memory import is_out_of_memory, out_of_memory_advice
from experiments.outputs import check_out, is_over, prepare_out, read_status, write_status
from experiments.processes import check_compiler, choose_device
from experiments.progress import ProgressBar, StepRecord
from experiments.provenance import device_name, git_revision, versions
from experiments.random_streams import seed_streams
from experiments.ranks import Ranks
from experiments.speed import write_speed
from experiments.step_log import Progress
from experiments.together import JointTrainer, Member
from experiments.training import Trainer, mixed_precision
from experiments.training_data import draw_indices, memory_format, open_data

#: Images that a network is tried on before training, if a step has so many.
_CHECKED = 8


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
        check_arms(config.model, config.arms)
        self.device = choose_device(config.device)
        responsible = self.ranks.is_first and not prepared
        if config.compile:
            check_compiler(self.device)
        if responsible:
            check_unlocked([config.out, *(config.out / "runs").glob("*")])
        if self.ranks.is_first:
            check_out(config, self.ranks.count)
        self.data = open_data(config, self.device, self.ranks)
        self.probe = self.data.probe(
            draw_indices(len(self.data), config.probe_size, config.seed, PROBE, "--probe-size")
        )
        self.cells = list(all_cells(config))
        self._alike: dict[str, str] = {}
        self._estimates: dict[str, list[float]] = {}  # of an arm's measurements, once one of its runs has tried them
        if responsible:
            with tempfile.TemporaryDirectory() as scratch:
                firsts = {cell.arm: cell for cell in reversed(self.cells)}
                for cell in firsts.values():
                    self._check(cell, Path(scratch))
            build = {arm: functools.partial(self._another, firsts[arm], itertools.count()) for arm in config.arms}
            self._alike = alike_arms(config, self.data, self.ranks, build, self._example())

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
        with contextlib.ExitStack() as stack:
            if self.ranks.is_first:
                stack.enter_context(locked(self.config.out))
                prepare_out(self.config, self.probe, self.ranks.count)
            try:
                yield
            except KeyboardInterrupt:
                advice = "to go on, repeat the command with --resume (and without --overwrite)"
                raise KeyboardInterrupt(advice) from None

    def run(self) -> None:
        """Train every run that is not over yet, then write the speed table."""
        with self.prepared():
            runs = self.config.out / "runs"
            groups = grouped(self.cells, self._alike, runs) if self.ranks.is_first else []
            groups = self.ranks.agree(groups)
            pending = {cell for group in groups for cell in group}
            # A group that was begun with more arms or trials than are asked for now is trained whole.
            runs_shown, whole = len(pending.union(self.cells)), self.total_steps() + 1
            with tqdm(
                total=runs_shown * whole, unit="step", dynamic_ncols=True, disable=not self.ranks.is_first
            ) as bar:
                bar.update(whole * (runs_shown - len(pending)))
                for group in groups:
                    bar.set_description(group[0].run_id if len(group) == 1 else f"{len(group)} runs at once")
                    progress = [ProgressBar(bar) for _ in group]
                    self._run(group, progress)
                    for one in progress:
                        one.advance(whole)
            if self.ranks.is_first:
                write_speed(self.config.out)

    def run_cell(self, run_id: str) -> None:
        """Train one run unless it is over, for a process that is within ``prepared()``; its status tells its step."""
        cell = next(cell for cell in self.cells if cell.run_id == run_id)
        if not is_over(self.directory(cell)):
            self._run([cell], [StepRecord(self.directory(cell))])

    def record_failure(self, cell: Cell, reason: str) -> None:
        """Mark a run as failed whose process ended without a word; a reason that the process gave itself stays."""
        directory = self.directory(cell)
        with locked(directory):
            if read_status(directory).get("status") != "failed":
                write_json(self._describe(cell), directory / "config.json")
                write_status(directory, "failed", reason=reason)

    def _run(self, group: Sequence[Cell], progress: Sequence[Progress]) -> None:
        """Train the runs of a group that are not over, several of them together."""
        pending = [cell for cell in group if not is_over(self.directory(cell))]
        with self._locked(pending):
            if self.ranks.is_first:
                together = "\n".join(cell.run_id for cell in group) if len(group) > 1 else ""
                for cell in pending:
                    write_json(self._describe(cell) | {"together": together}, self.directory(cell) / "config.json")
                    write_status(self.directory(cell), "running")
            try:
                if len(group) == 1:
                    self._trainer(group[0]).run(progress[0])
                else:
                    self._train_together(group, progress)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                if self.ranks.is_first:
                    for cell in pending:
                        if not is_over(self.directory(cell)):
                            write_status(self.directory(cell), "failed", reason=reason)
                if not is_out_of_memory(error):
                    raise
                raise InputError(self._out_of_memory(group)) from None

    def _out_of_memory(self, group: Sequence[Cell]) -> str:
        """What to do when the runs of a group do not fit in memory."""
        if len(group) > 1:
            return f"out of memory with {len(group)} runs trained together: give --together no, with another --out"
        size = self.data.batches(0).size_at(0)
        if self.ranks.count > 1:
            return f"out of memory at a batch of {size} images: give a smaller --batch-size, or more processes"

        def try_step(count: int) -> None:
            network = self._build(group[0])
            images, labels = self.data.probe(torch.arange(count))
            with mixed_precision(self.config.precision, self.device):
                logits = network(images.to(self.device))
            cross_entropy(logits.float(), labels.to(self.device)).backward()
            torch.optim.SGD(network.parameters(), 0.1, self.config.momentum).step()

        return out_of_memory_advice(try_step, size)

    def _train_together(self, group: Sequence[Cell], progress: Sequence[Progress]) -> None:
        budget = TimeBudget(self.config.max_overhead)
        trainers = [None if is_over(self.directory(cell)) else self._trainer(cell, budget) for cell in group]
        members = [
            Member(trainer.model if trainer else self._model(cell), trainer, told)
            for cell, trainer, told in zip(group, trainers, progress, strict=True)
        ]
        JointTrainer(members, [cell.lr for cell in group]).run()

    @contextlib.contextmanager
    def _locked(self, cells: Sequence[Cell]) -> Iterator[None]:
        """Hold the directories of runs inside."""
        with contextlib.ExitStack() as stack:
            for cell in cells if self.ranks.is_first else ():
                stack.enter_context(locked(self.directory(cell)))
            yield

    def _check(self, cell: Cell, scratch: Path) -> None:
        """Build, try and measure a run's network once, so that nothing is found wrong with it later."""
        model = self._build(cell)
        check_network(self.config.model, model, self._example(), self.data.num_classes)
        self._freeze(model, cell)
        try:
            self._monitor(model, cell, scratch / cell.run_id)
        except UnknownLayerError as error:
            raise InputError(f"{error} Choose others by --layers.") from error

    def _example(self) -> Tensor:
        """Training images, no more than a step's."""
        count = min(self.data.batches(0).size_at(0), _CHECKED)
        return self.data.probe(torch.arange(count))[0].to(self.device)

    def _trainer(self, cell: Cell, budget: TimeBudget | None = None) -> Trainer:
        """A run's trainer; its measurements are paid from its own budget, or from one that several runs share."""
        model = self._model(cell)
        if self.ranks.rank:  # each process drops other units of its own images
            seed_streams(derive_seed(cell.seed, INITIALISATION, self.ranks.rank))
        monitor = self._monitor(model, cell, self.directory(cell), budget, self.ranks.group)
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

    def _model(self, cell: Cell) -> nn.Module:
        """A run's network as its training begins with it."""
        network = self._build(cell)
        self._freeze(network, cell)
        return network

    def _freeze(self, network: nn.Module, cell: Cell) -> None:
        if self.config.batch_norm == "frozen":
            freeze_batch_norms(network, whole_first_batch(self.data.batches(cell.seed)), self.config.model)

    def _build(self, cell: Cell) -> nn.Module:
        seed_streams(derive_seed(cell.seed, INITIALISATION))
        network = build_network(
            self.config.model,
            cell.arm,
            self.config.model_options,
            num_classes=self.data.num_classes,
            input_shape=self.data.input_shape,
        )
        return network.to(self.device, memory_format=memory_format(self.config))  # type: ignore[call-overload]

    def _another(self, cell: Cell, seeds: Iterator[int]) -> nn.Module:
        """A network like a run's, with the initialisation of the next of some seeds."""
        return self._model(replace(cell, seed=next(seeds)))

    def _monitor(
        self,
        model: nn.Module,
        cell: Cell,
        directory: Path,
        budget: TimeBudget | None = None,
        group: ProcessGroup | None = None,
    ) -> SpectrumMonitor:
        monitor = SpectrumMonitor(
            model,
            self.probe,
            directory,
            maps=measurements(self.config),
            max_overhead=budget or self.config.max_overhead,
            dtype=spectra_dtype(self.config),
            bounds=self.config.bounds,
            run_id=cell.run_id,
            estimates=self._estimates.get(cell.arm),
            group=group,
        )
        self._estimates[cell.arm] = monitor.estimates
        return monitor

    def total_steps(self) -> int:
        """Steps that each run takes."""
        if self.config.steps is not None:
            return self.config.steps
        assert self.config.epochs is not None
        return self.config.epochs * self.data.batches(0).per_epoch

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
            "batch_size": config.batch_size or len(self.data),
            "batch_norm": config.batch_norm,
            "num_classes": self.data.num_classes,
            "input_shape": list(self.data.input_shape),
            "loss_threshold": config.loss_threshold,
            "loss_window": config.loss_window,
        }
