"""The directory of an experiment while it is trained: who may write there, where each run goes and how it stands."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from skip_conditioning.diagnostics.tables import write_json
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.processes.ranks import Ranks
from skip_conditioning.experiments.records.directory import (
    check_out,
    check_unlocked,
    is_over,
    locked,
    prepare_out,
    read_status,
    write_status,
)
from skip_conditioning.experiments.training.runs import Run

#: What a run's ``config.json`` holds.
Description = dict[str, Any]


class ExperimentDirectory:
    """The directory that ``--out`` names, with one directory for each run in ``runs/``.

    Of several processes that train each run together, the first alone writes.

    Args:
        config: The options.
        ranks: The processes.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.path = config.output.out

    def check(self) -> None:
        """Check that it can be used, before anything is written.

        Raises:
            InputError: Another process writes there, or it cannot be written, or it holds something else.
        """
        if self.ranks.is_first:
            check_unlocked([self.path, *(self.path / "runs").glob("*")])
            self.check_options()

    def check_options(self) -> None:
        """``check`` without the locks, for a process whose parent holds them."""
        if self.ranks.is_first:
            check_out(self.config, self.ranks.count)

    def of(self, run: Run) -> Path:
        """Where a run has its tables and checkpoints."""
        return self.path / "runs" / run.run_id

    def unfinished(self, runs: Sequence[Run]) -> list[Run]:
        """Those runs that have not come to their end."""
        return self.ranks.agree([run for run in runs if not is_over(self.of(run))] if self.ranks.is_first else [])

    @contextlib.contextmanager
    def held(self, probe: tuple[Tensor, Tensor]) -> Iterator[None]:
        """Hold the directory inside, made, emptied with ``--overwrite`` and described.

        Raises:
            InputError: Another process writes there, or it cannot be written.
            KeyboardInterrupt: Interrupted inside; the message says how to go on.
        """
        with contextlib.ExitStack() as stack:
            if self.ranks.is_first:
                stack.enter_context(locked(self.path))
                prepare_out(self.config, probe, self.ranks.count)
            try:
                yield
            except KeyboardInterrupt:
                advice = "to go on, repeat the command with --resume (and without --overwrite)"
                raise KeyboardInterrupt(advice) from None

    @contextlib.contextmanager
    def recorded(self, run: Run, description: Description) -> Iterator[Path]:
        """Hold the directory of a run while it is trained inside; an error is recorded as its failure.

        Args:
            run: The run.
            description: What its ``config.json`` is to hold.

        Yields:
            The run's directory.
        """
        directory = self.of(run)
        if not self.ranks.is_first:
            yield directory
            return
        with locked(directory):
            write_json(description, directory / "config.json")
            write_status(directory, "running")
            try:
                yield directory
            except Exception as error:
                if not is_over(directory):
                    write_status(directory, "failed", reason=f"{type(error).__name__}: {error}")
                raise

    def record_failure(self, run: Run, description: Description, reason: str) -> None:
        """Mark a run as failed whose process ended without recording why; a reason that is recorded stays.

        Args:
            run: The run.
            description: What its ``config.json`` is to hold.
            reason: Why it failed.
        """
        directory = self.of(run)
        with locked(directory):
            if read_status(directory).get("status") != "failed":
                write_json(description, directory / "config.json")
                write_status(directory, "failed", reason=reason)
