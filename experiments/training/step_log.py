"""What a run logs and shows of its steps.

Numbers are fetched from the device in blocks, so that training never waits for it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from skip_conditioning.diagnostics.monitoring.monitor import SpectrumMonitor
from skip_conditioning.diagnostics.spectrum import Spectrum
from skip_conditioning.experiments.records.directory import write_status
from skip_conditioning.experiments.records.loggers import Logger, spectrum_scalars

#: Called for every step with the step, its loss and the spectra measured at it.
Progress = Callable[[int, float, dict[str, Spectrum]], None]

#: Seconds between two records of the step of a run in a process of its own.
_RECORD_EVERY = 1.0


class DivergedError(Exception):
    """The loss of a step is not finite."""


@dataclass(eq=False)
class StepLog:
    """Logs the steps of one run to its tables, its loggers and its progress.

    Attributes:
        monitor: Measures, and writes the tables.
        loggers: Services that get the numbers too, such as TensorBoard.
        progress: Called for every step.
    """

    monitor: SpectrumMonitor
    loggers: Sequence[Logger]
    progress: Progress
    _spectra: dict[int, dict[str, Spectrum]] = field(default_factory=dict, init=False)

    def measure(self, step: int) -> None:
        """Make the measurements due at a step, while the network is in its state."""
        self._spectra[step] = self.monitor.step(step)

    def record(self, step: int, *, grad_norm: float | None, **metrics: float) -> None:
        """Log the numbers of a step measured before: ``loss``, ``accuracy``, ``lr`` and so on.

        Raises:
            DivergedError: The loss is not finite; what was measured at later steps is dropped.
        """
        self.monitor.log(step, split="train", grad_norm=grad_norm, **metrics)
        spectra = self._spectra.pop(step)
        loss = metrics["loss"]
        for logger in self.loggers:
            train = {f"train/{name}": metrics[name] for name in ("loss", "accuracy", "lr")}
            logger.log(step, train | spectrum_scalars(spectra))
        if not math.isfinite(loss):
            if self._spectra:
                self.monitor.flush()
                self.monitor.rewind(step)
            raise DivergedError
        self.progress(step, loss, spectra)

    def evaluation(self, step: int, *, epoch: float, loss: float, accuracy: float) -> None:
        """Log an evaluation on the test images."""
        self.monitor.log(step, split="test", epoch=epoch, loss=loss, accuracy=accuracy)
        for logger in self.loggers:
            logger.log(step, {"test/loss": loss, "test/accuracy": accuracy})

    def close(self) -> None:
        """Write what waits."""
        for logger in self.loggers:
            logger.close()


@dataclass(eq=False)
class Block:
    """Numbers of a few steps that a device may still be computing; they are fetched at once.

    Attributes:
        size: Steps after which it is full.
    """

    size: int
    _waiting: list[tuple[int, Tensor, float]] = field(default_factory=list, init=False)

    @property
    def full(self) -> bool:
        """Whether the numbers are to be fetched."""
        return len(self._waiting) >= self.size

    def add(self, step: int, numbers: Tensor, seconds: float) -> None:
        """Hold a step's numbers, shape ``(k,)`` with the same k at every step, and the seconds that it took."""
        self._waiting.append((step, numbers, seconds))

    def fetch(self) -> list[tuple[int, list[float], float]]:
        """The steps held, their numbers, their seconds; the block then is empty."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        fetched = torch.stack([numbers for _, numbers, _ in waiting]).tolist()
        return [(step, numbers, seconds) for (step, _, seconds), numbers in zip(waiting, fetched, strict=True)]


class ProgressBar:
    """Shows step, loss and the worst κ of the latest spectra of a run on a bar; called for every step of it."""

    def __init__(self, bar: tqdm) -> None:
        self.bar, self.done, self.kappa = bar, 0, "–"

    def __call__(self, step: int, loss: float, spectra: dict[str, Spectrum]) -> None:
        """Show a step."""
        if spectra:
            worst = max(spectra.values(), key=lambda spectrum: spectrum.condition_number)
            self.kappa = f"{'' if worst.resolved else '≥'}{worst.condition_number:.3g}"
        self.bar.set_postfix_str(f"step {step}, loss {loss:.3g}, κ {self.kappa}", refresh=False)
        self.advance(step + 1)

    def advance(self, done: int) -> None:
        """Show that so many steps are done."""
        self.bar.update(done - self.done)
        self.done = done


class StepRecord:
    """Records the step in a run's status every now and then; called after every step."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.written = directory, -_RECORD_EVERY

    def __call__(self, step: int, loss: float, spectra: dict[str, Spectrum]) -> None:
        """Record a step, unless the last record is too recent."""
        if time.monotonic() >= self.written + _RECORD_EVERY:
            write_status(self.directory, "running", step=step)
            self.written = time.monotonic()
