"""Shows how far a run is: on a bar, or in its status."""

import time
from pathlib import Path

from tqdm import tqdm

from skip_conditioning.diagnostics.spectrum import Spectrum
from skip_conditioning.experiments.records.directory import write_status

#: Seconds between two records of the step of a run in a process of its own.
_RECORD_EVERY = 1.0


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
