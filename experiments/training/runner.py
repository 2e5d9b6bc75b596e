"""Trains an experiment: every arm at every learning rate in every trial, each a run in a directory of its own."""

import contextlib

from tqdm import tqdm

from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.data.batches import PROBE
from skip_conditioning.experiments.data.training_data import draw_indices, open_data
from skip_conditioning.experiments.processes.machine import check_compiler, choose_device, clear_memory_errors
from skip_conditioning.experiments.processes.ranks import Ranks
from skip_conditioning.experiments.records.directory import is_over
from skip_conditioning.experiments.records.loggers import check_loggers
from skip_conditioning.experiments.speed import write_speed
from skip_conditioning.experiments.training.experiment_directory import ExperimentDirectory
from skip_conditioning.experiments.training.networks import check_arms
from skip_conditioning.experiments.training.runs import Run, RunFactory, all_runs
from skip_conditioning.experiments.training.step_log import Progress, ProgressBar, StepRecord


class Runner:
    """Trains the runs of an experiment: options are checked, data loaded, and every arm built and measured once.

    Attributes:
        runs: All runs.
        directory: Where they are written.
        factory: Makes what each consists of.

    Args:
        config: The options.
        is_child: Whether this process trains single runs for another one, which has checked the networks and holds
            the experiment's directory.
        ranks: The processes that train each run together.

    Raises:
        InputError: The options, the data, the model or the output directory cannot be used, or another process
            writes to that; nothing has been written.
    """

    def __init__(self, config: TrainConfig, *, is_child: bool = False, ranks: Ranks | None = None) -> None:
        self.config, self.ranks = config, ranks or Ranks()
        config.check()
        check_loggers(config.output.log)
        check_arms(config.network.model, config.network.arms)
        self.device = choose_device(config.optimisation.device)
        if config.optimisation.compile:
            check_compiler(self.device)
        if config.network.sync_batch_norm:
            self.ranks.check_sync_batch_norm(self.device)
        self.directory = ExperimentDirectory(config, self.ranks)
        self.directory.check_options() if is_child else self.directory.check()
        self.data = open_data(config, self.device, self.ranks)
        self.probe = self.data.probe(
            draw_indices(len(self.data), config.diagnostics.probe_size, config.optimisation.seed, PROBE, "--probe-size")
        )
        self.factory = RunFactory(config, self.data, self.probe, self.device, self.ranks)
        self.runs = list(all_runs(config))
        if self.ranks.is_first and not is_child:
            self.factory.check({run.arm: run for run in reversed(self.runs)}.values())

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Hold the experiment's directory inside, made, emptied with ``--overwrite`` and described."""
        return self.directory.held(self.probe)

    def run_all(self) -> None:
        """Train every run that is not over yet, then write the speed table."""
        with self.held():
            unfinished = self.directory.unfinished(self.runs)
            whole = self.factory.total_steps + 1
            with tqdm(
                total=len(self.runs) * whole, unit="step", dynamic_ncols=True, disable=not self.ranks.is_first
            ) as bar:
                bar.update(whole * (len(self.runs) - len(unfinished)))
                for run in unfinished:
                    bar.set_description(run.run_id)
                    progress = ProgressBar(bar)
                    self._train(run, progress)
                    progress.advance(whole)
            if self.ranks.is_first:
                write_speed(self.config.output.out)

    def run_one(self, run_id: str) -> None:
        """Train one run unless it is over, for another process that holds the experiment; its status shows its step."""
        run = next(run for run in self.runs if run.run_id == run_id)
        directory = self.directory.of(run)
        if not is_over(directory):
            self._train(run, StepRecord(directory))

    def record_failure(self, run: Run, reason: str) -> None:
        """Mark a run as failed whose process ended without recording why; a reason that is recorded stays."""
        self.directory.record_failure(run, self.factory.description(run), reason)

    def _train(self, run: Run, progress: Progress) -> None:
        with clear_memory_errors(), self.directory.recorded(run, self.factory.description(run)) as directory:
            self.factory.trainer(run, directory).run(progress)
