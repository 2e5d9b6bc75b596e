"""Logs beside the tables, for TensorBoard or Weights & Biases.

Both packages are optional and imported only when asked for. Everything is written to the run's directory, and nothing
goes over a network.
"""

import importlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.spectrum import Spectrum
from skip_conditioning.diagnostics.tables import clear_disk_errors


class Logger(Protocol):
    """A service that training logs to."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log a step's numbers by name."""

    def close(self) -> None:
        """Write what is pending; the logger is not used afterwards."""


class TensorBoardLogger:
    """Writes event files to the run's ``tensorboard/``; every step is on disk before the next.

    Args:
        directory: The run's.
        first: Step the run starts from; what an earlier, killed process logged from it on is no longer shown.

    Raises:
        InputError: The directory cannot be written.
    """

    def __init__(self, directory: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with clear_disk_errors(directory):
            self._writer = SummaryWriter(directory / "tensorboard", purge_step=first)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log a step's numbers by name."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        # A run that is killed resumes from a checkpoint, and nothing before that may be missing.
        self._writer.flush()

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class WandbLogger:
    """Writes an offline run to the run's ``wandb/``, which ``wandb sync`` can upload.

    The step is logged as ``step`` and is the x-axis. A resumed run writes a further folder of the same id (for
    ``wandb sync --append``), which repeats the steps since its last checkpoint.

    Args:
        directory: The run's.
        first: Step the run starts from; not needed, as the numbers of a step logged again are the same.

    Raises:
        InputError: W&B cannot start, for instance because the directory cannot be written.
    """

    def __init__(self, directory: Path, first: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports of its own failures would use the network
        wandb: Any = importlib.import_module("wandb")
        before = sorted((directory / "wandb").glob("offline-run-*-*"))
        settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True)
        try:
            self._run = wandb.init(
                project="skip-conditioning",
                name=directory.name,
                id=before[0].name.rpartition("-")[2] if before else None,
                dir=directory,
                mode="offline",
                settings=settings,
            )
        except (wandb.Error, OSError) as error:
            raise InputError(f"cannot log to W&B in {directory} ({error}); leave out --log wandb") from error
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log a step's numbers by name."""
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        """Write what is pending."""
        self._run.finish()


_LOGGERS: dict[str, type[TensorBoardLogger] | type[WandbLogger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}


def check_loggers(names: Iterable[str]) -> None:
    """Check that the services' packages are installed.

    Raises:
        InputError: One is not; the message says how to install it.
    """
    for name in names:
        package = importlib.util.find_spec(name)
        # A mere folder of that name, as W&B leaves in the working directory, has no origin.
        if package is None or package.origin is None:
            raise InputError(f"--log {name} needs a package: pip install 'skip-conditioning[{name}]'")


def open_loggers(names: Iterable[str], directory: Path, first: int) -> list[Logger]:
    """The services of a run, each opened once.

    Args:
        names: ``tensorboard`` or ``wandb``.
        directory: The run's.
        first: Step the run starts from, 0 unless it is resumed.

    Raises:
        InputError: A package is missing, or the directory cannot be written.
    """
    chosen = list(dict.fromkeys(names))
    check_loggers(chosen)
    return [_LOGGERS[name](directory, first) for name in chosen]


def spectrum_scalars(spectra: Mapping[str, Spectrum]) -> dict[str, float]:
    """The numbers of a step's spectra that are logged, by layer and statistic."""
    statistics = ("sigma_min", "sigma_mean", "condition_number")
    return {f"{key}/{name}": getattr(spectrum, name) for key, spectrum in spectra.items() for name in statistics}
