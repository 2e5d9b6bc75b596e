"""What a monitor does at a step: the measurements that are due, their rows, and what becomes of one that fails."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.bounds_log import BoundsLog
from skip_conditioning.diagnostics.monitoring.due_queue import DueQueue
from skip_conditioning.diagnostics.monitoring.measurement import Measurement
from skip_conditioning.diagnostics.monitoring.probe_measurements import Measured, ProbeMeasurements
from skip_conditioning.diagnostics.monitoring.run_tables import RunTables
from skip_conditioning.diagnostics.monitoring.time_budget import TimeBudget
from skip_conditioning.diagnostics.networks.first_process import as_first
from skip_conditioning.diagnostics.networks.sharded import gathered
from skip_conditioning.diagnostics.spectrum import Spectrum

#: Stands in place of a map in the table ``skipped``, for the measurement of ``BoundsLog``.
BOUNDS = "bounds"

#: Errors that belong to training: a diverging network is a result. The training goes on after any other too.
_EXPECTED = (InputError, np.linalg.LinAlgError, torch.OutOfMemoryError)

Value = TypeVar("Value")


class StepMeasurements:
    """Makes the measurements that are due at a step, and holds their rows.

    Args:
        model: The unwrapped module.
        probe: What is measured on it.
        measurements: With their schedules; that of the bounds, if there is one, is the last.
        estimates: Seconds that each is expected to take.
        time: Says what can be afforded.
        group: Processes to share the work among; None for this one alone.
        tables: Where rows go; None in a process that does not write.
        bounds: Likewise.

    Attributes:
        queue: What is due.
        tried: Measurements made, or that failed, after the first step.
        unaffordable: Those that were due and could not be afforded.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: ProbeMeasurements,
        measurements: Sequence[Measurement],
        estimates: Sequence[float],
        time: TimeBudget,
        group: ProcessGroup | None,
        tables: RunTables | None,
        bounds: BoundsLog | None,
    ) -> None:
        self._model, self._probe, self._measurements, self._time = model, probe, measurements, time
        self._group, self.tables, self.bounds, self._writes = group, tables, bounds, tables is not None
        self._num_maps = sum(item.map != BOUNDS for item in measurements)
        self.queue = DueQueue(measurements, estimates, time, group)
        self.tried, self.unaffordable = 0, 0

    def measure(self, step: int, *, begins: bool) -> dict[str, Spectrum]:
        """Make the measurements that are due, and log them.

        Args:
            step: Optimiser steps taken so far.
            begins: Whether it is the first step of the run, at which everything is measured.

        Returns:
            The spectra, by layer (``map:layer`` when there are several maps).
        """
        measured: dict[str, Spectrum] = {}
        bounds: dict[str, Any] = {}
        with contextlib.ExitStack() as weights:
            for index, affordable in self.queue.due(step, always=begins):
                if affordable:
                    weights.enter_context(gathered(self._model))
                item = self._measurements[index]
                if not affordable:
                    self.unaffordable += 1
                    reason = f"would exceed max_overhead={self._time.share}"
                    self._skip(item, step, reason, self.queue.estimates[index])
                elif item.map == BOUNDS:
                    bounds = self._attempt(index, step, dict if self.bounds is None else self.bounds.measure)
                else:
                    measure = functools.partial(self._probe.spectra, item, self._group, with_rayleigh=self._writes)
                    measured |= self._log_spectra(item, step, self._attempt(index, step, measure))
            if begins:
                self.tried = 0
            if (measured or bounds) and self._probe.has_loss and self._writes:
                self._log_probe(step, bounds)
        return measured

    def _attempt(self, index: int, step: int, measure: Callable[[], dict[str, Value]]) -> dict[str, Value]:
        """The result of a measurement: empty if it fails, which is recorded."""
        self.tried += 1
        before, result, failure = self._time.spent, dict[str, Value](), ""
        with self.timed():
            try:
                result = as_first(measure, self._group)
            except Exception as error:
                failure = _reason(error)
        seconds = self._time.spent - before
        if failure:
            self._skip(self._measurements[index], step, failure, seconds)
        else:
            self.queue.estimates[index] = seconds
        return result

    def _log_spectra(self, item: Measurement, step: int, measured: Measured) -> dict[str, Spectrum]:
        """Log the spectra of one map; by layer (``map:layer`` when there are several maps)."""
        for spectrum, rayleigh in measured.values():
            self.append("spectra", step, {**spectrum.as_row(), "rayleigh": rayleigh})
        prefix = "" if self._num_maps == 1 else f"{item.map}:"
        return {f"{prefix}{key}": spectrum for key, (spectrum, _) in measured.items()}

    def timed(self) -> AbstractContextManager[None]:
        """The time inside is spent measuring."""
        return self._time.measuring(self._probe.device)

    def _skip(self, item: Measurement, step: int, reason: str, seconds: float | None) -> None:
        self.append("skipped", step, item.skipped(reason, seconds))

    def append(self, table: str, step: int, row: dict[str, Any]) -> None:
        """Hold one row of a table, in the process that writes."""
        if self.tables is not None:
            self.tables.append(table, step, row)

    def _log_probe(self, step: int, bounds: dict[str, Any]) -> None:
        """Log the probe's metrics; a row with bounds waits for the step after it."""
        with self.timed():
            row, failure = {"split": "probe", **bounds}, ""
            try:
                row |= self._probe.loss()
            except Exception as error:
                failure = f"loss of the probe: {_reason(error)}"
        if failure:
            self._skip(self._measurements[0], step, failure, None)
        if self.bounds is not None and bounds:
            self.bounds.row = {"step": step, **row}
        else:
            self.append("metrics", step, row)

    def release(self, step: int | None) -> None:
        """Log the row that waits, completed by the decreases if it waits for the step ``step``."""
        if self.bounds is None or self.bounds.row is None:
            return
        with self.timed():
            row, failure = self.bounds.release(step)
        self.append("metrics", row["step"], row)
        if failure:
            self._skip(self._measurements[-1], row["step"], failure, None)


def _reason(error: Exception) -> str:
    """Why a measurement failed, in a line; what is no ordinary reason is warned about as well."""
    if isinstance(error, InputError) and isinstance(error.__cause__, Exception):
        is_usual = isinstance(error.__cause__, RuntimeError | TypeError | ValueError | IndexError | OSError)
        error = error if is_usual else error.__cause__  # of the network's own code
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, _EXPECTED) and line:
        return line
    reason = f"{type(error).__name__}: {line}"
    warnings.warn(f"a measurement failed and is left out, the training goes on: {reason}", stacklevel=2)
    return reason
