"""A monitor for any training loop: measures spectra of a probe on a schedule and writes them to tables.

.. code-block:: python

    with SpectrumMonitor(model, probe=(x, y), out="runs/mine") as monitor:
        for step, (images, labels) in enumerate(batches):
            loss = train_one_step(images, labels)
            monitor.step(step, loss=loss)
"""

import contextlib
import functools
import os
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.bounds_log import BoundsLog
from skip_conditioning.diagnostics.monitoring.due_queue import DueQueue
from skip_conditioning.diagnostics.monitoring.measurement import Measurement, scheduled
from skip_conditioning.diagnostics.monitoring.probe_measurements import Measured, ProbeMeasurements
from skip_conditioning.diagnostics.monitoring.run_folder import RunFolder, checked_description
from skip_conditioning.diagnostics.monitoring.run_tables import RunTables, longest_wait
from skip_conditioning.diagnostics.monitoring.scalar_log import Log, as_log, scalars_of
from skip_conditioning.diagnostics.monitoring.schedule import Schedule, log_spaced
from skip_conditioning.diagnostics.monitoring.time_budget import TimeBudget
from skip_conditioning.diagnostics.networks.first_process import as_first
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.maps import TOTAL
from skip_conditioning.diagnostics.networks.probe import Reading
from skip_conditioning.diagnostics.networks.sharded import gathered, is_sharded
from skip_conditioning.diagnostics.spectrum import Spectrum
from skip_conditioning.diagnostics.support.memory import GIB
from skip_conditioning.diagnostics.support.sharding import distribute
from skip_conditioning.diagnostics.tables.rows import checked_step

#: Rows wait in the journal at most this long at first (``run_tables.longest_wait``).
_FLUSH_SECONDS = 1.0

#: Stands in place of a map in the table ``skipped``, for the measurement of ``BoundsLog``.
_BOUNDS = "bounds"

#: Errors that belong to training: a diverging network is a result. The training goes on after any other too.
_EXPECTED = (InputError, np.linalg.LinAlgError, torch.OutOfMemoryError)

Value = TypeVar("Value")


class SpectrumMonitor:
    """Measures the spectra of a model on a fixed probe while it trains, and changes nothing of the training.

    Tables appear under ``out``: ``spectra/``, ``metrics/`` and ``skipped/``, readable at any moment with
    ``pandas.read_parquet`` or ``tables.read_experiment``. In a distributed run only rank 0 measures and writes, unless
    it is given a ``group`` to share the work among.

    Args:
        model: The network; ``torch.compile`` and DDP wrappers are removed.
        probe: Inputs, a pair ``(inputs, targets)``, a dictionary of keyword inputs, or a ``Probe``, as for
            ``spectra``. With targets or a loss, the probe's loss and accuracy are logged (split ``probe``) at every
            measurement.
        out: The run's directory. One that holds a run already is refused, unless ``resume`` or ``overwrite`` is given.
        maps: Names of maps, as for ``spectra``, or ``Measurement`` objects.
        layers: Layers of those maps that are given by name only.
        schedule: Interval in steps, or a function of the step; for maps without a schedule of their own. The first step
            of a run is measured whatever the schedule and ``max_overhead`` say, as the theory is about that state.
        max_overhead: Share of the training time that measurements may take. One that would exceed it is skipped,
            which the table ``skipped`` records, and made as soon as it fits. None: never skip.
        method: ``auto``, ``exact`` or ``lanczos``, as for ``spectra``.
        tolerance: Accuracy of matrix-free spectra, as for ``spectra``.
        dtype: Precision of the Jacobians; None keeps the model's.
        memory_budget: Bytes a measurement may take.
        bounds: Whether to log the sides of ``pl_chain`` on the probe, in float64, at each step of ``schedule``, and by
            how much that step then lowered the loss: the columns ``tables.BOUNDS`` of the probe's metrics. Such a row
            is written at the next step.
        name: Of the run in the tables, as ``run_id``; the directory's name by default.
        arm: The variant that the run is of, by which ``figures``, ``summary`` and ``ratios`` compare the runs in one
            folder; recorded in ``out/config.json``, as are ``trial`` and ``lr``. By default the run's name.
        trial: Number of the seed, shared by the runs of other arms that this one is compared with; 0 by default.
        lr: Learning rate; by default the largest that was logged.
        resume: Whether to go on with a run that ``out`` holds: rows at or after the first step then given are deleted.
        overwrite: Whether to delete the tables of a run that ``out`` holds, and nothing else in it.
        estimates: Seconds that each measurement takes: the ``estimates`` of a monitor with the same measurements and an
            equal network, which tried them; then they are not tried again.
        log_to: Where the statistics of each spectrum are sent too, as ``conditioning/<map>/<layer>/<statistic>``: a
            TensorBoard writer, a run of Weights & Biases, a Lightning logger or a function ``(scalars, step)``.
        group: Processes to share the measurements' rows and random vectors among; all have to make the monitor and call
            ``step`` alike, with the same probe and weights, and rank 0 of them writes. Its clock decides what can be
            afforded, and its buffers (batch norm's running statistics, say) are those that all of them measure with.
        reading: How the probe is read: ``forward``, ``output``, ``outputs``, ``loss``, as for ``Probe``.

    Raises:
        InputError: Unknown layers, a probe or weights that are not finite, targets that do not fit the logits or are
            missing, a measurement that does not fit the memory budget, a directory that cannot be written, holds a run
            already or is written by another monitor: all before the first step, and in every process of the group.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        out: str | os.PathLike[str],
        *,
        maps: Sequence[str | Measurement] | str | Measurement = ("layer",),
        layers: Sequence[str] | str | None = None,
        schedule: Schedule | int | None = None,
        max_overhead: float | None = 0.05,
        method: str = "auto",
        tolerance: float | None = None,
        dtype: torch.dtype | None = None,
        memory_budget: int = GIB,
        bounds: bool = False,
        name: str | None = None,
        arm: str | None = None,
        trial: int | None = None,
        lr: float | None = None,
        resume: bool = False,
        overwrite: bool = False,
        estimates: Sequence[float] | None = None,
        log_to: Any = None,
        group: ProcessGroup | None = None,
        **reading: Unpack[Reading],
    ) -> None:
        self._send_scalars = None if log_to is None else as_log(log_to)
        self._time = TimeBudget(max_overhead)
        self.max_overhead = max_overhead
        self.model = unwrap(model)
        self._probe = ProbeMeasurements(
            self.model,
            probe,
            method=method,
            tolerance=tolerance,
            dtype=dtype,
            memory_budget=memory_budget,
            reading=reading,
        )
        self.probe = self._probe.probe
        description = checked_description(name=name, arm=arm, trial=trial, lr=lr)
        folder = RunFolder(Path(out), resume=resume, overwrite=overwrite)
        self.latest: dict[str, Spectrum] = {}
        default = schedule if schedule is not None else log_spaced()
        requested = [maps] if isinstance(maps, str | Measurement) else maps
        self._measurements = [scheduled(item, layers, default) for item in requested]
        self._num_maps = len(self._measurements)
        self._tried, self._unaffordable = 0, 0
        if bounds and not self._probe.has_loss:
            raise InputError("bounds need a loss; give the probe's targets too, as probe=(x, y)")
        if bounds:
            self._measurements.append(scheduled(Measurement(_BOUNDS, TOTAL), None, default))
        if is_sharded(self.model) and group is None and distributed.is_initialized():
            group = distributed.group.WORLD  # every process holds a part of the weights
        if bounds and is_sharded(self.model):
            raise InputError("bounds cannot be logged of weights in shards; leave them out")
        self._writes, self._measures = _roles(group)
        self._group = group if self._measures else None
        self._bounds: BoundsLog | None = None  # in the process that writes only, as the tables
        self._tables: RunTables | None = None

        def prepare(_: int) -> tuple[list[float], int | None]:
            """Open the tables, and forecast what each measurement will take; also the first step on disk."""
            folder.check()
            if bounds:
                self._bounds = BoundsLog(self.model, self.probe, memory_budget)
            with self._time.measuring(torch.device("cpu")):
                seconds = self._try() if estimates is None else [*estimates]
            self._tables = RunTables(folder, description)
            weakref.finalize(self, self._tables.close)
            return seconds, self._tables.first_step

        # The first process prepares, the others wait for it, and an error in it is raised in all of them.
        with gathered(self.model):
            seconds, self._first_step = distribute([0], prepare, self._group)[0] if self._measures else ([], None)
        self._resumes = resume
        self._queue = DueQueue(self._measurements, seconds, self._time, self._group)
        self._flushed = time.perf_counter()

    @property
    def estimates(self) -> list[float]:
        """Seconds that each measurement is expected to take, by the last time it was made."""
        return self._queue.estimates

    def _try(self) -> list[float]:
        """Raise the errors of bad input, and forecast the seconds of each measurement."""
        seconds = [self._probe.forecast(item) for item in self._measurements[: self._num_maps]]
        self._probe.loss()
        return seconds if self._bounds is None else [*seconds, self._bounds.forecast()]

    def step(self, step: int, *, split: str = "train", **metrics: float | Tensor | None) -> dict[str, Spectrum]:
        """Log one step's metrics and make the measurements that are due.

        Args:
            step: Optimiser steps taken so far.
            split: What the metrics were computed on.
            metrics: Any of ``epoch, loss, accuracy, lr, grad_norm, seconds``; tensors are fetched later, so that
                the training loop never waits for a device.

        Returns:
            The spectra measured at this step, by layer (``map:layer`` when there are several maps); often empty. The
            same in all processes of the group.

        Raises:
            InputError: A metric that is not a single number, or has no column.
        """
        step = checked_step(step)
        if not self._measures:
            return {}
        self._begin(step)
        self._release(step)
        if metrics:
            self.log(step, split=split, **metrics)
        self.latest = self._measure_due(step)
        if time.perf_counter() - self._flushed > longest_wait(self._time.elapsed, _FLUSH_SECONDS):
            self._write()
        self._save()
        return self.latest

    def log(self, step: int, *, split: str, **metrics: float | Tensor | None) -> None:
        """Log metrics without measuring, such as those of an evaluation; arguments as for ``step``."""
        step = checked_step(step)
        self._begin(step)
        self._append("metrics", step, {"split": split, **metrics})
        self._save()

    @property
    def overhead(self) -> float:
        """Time spent measuring so far, as a share of the time spent on everything else."""
        return self._time.overhead

    def flush(self, step: int | None = None) -> None:
        """Write the rows in memory.

        Args:
            step: Optimiser steps taken by now. A row of the bounds that waits for that step is completed; for another,
                or None, it is written without the decreases.
        """
        self._release(step)
        self._write()

    def rewind(self, step: int) -> None:
        """Delete every row after ``step``; for a run resumed from a checkpoint made at that step."""
        if self._first_step is not None and self._first_step > step:
            self._first_step = None
        if self._bounds is not None:
            self._bounds.rewind(step)
        if self._tables is not None:
            self._tables.rewind(step)

    def close(self) -> None:
        """Write the rows in memory, and let other monitors write ``out``; this one may still be used afterwards.

        Warns when measurements were due after the first step and none could be afforded.
        """
        self.flush()
        if self._tables is not None:
            self._tables.close()
        if self._writes and self._unaffordable and not self._tried:
            cost, self._unaffordable = sum(self._queue.estimates), 0
            warnings.warn(
                f"nothing was measured after the first step: about {cost:.2g} s of measuring would exceed "
                f"max_overhead={self.max_overhead} of the training time; train longer, raise max_overhead, or pass "
                "None to never skip",
                stacklevel=2,
            )

    def __enter__(self) -> "SpectrumMonitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, step: int) -> None:
        """At the first step given, delete the rows at and after it of a run that is resumed."""
        if self._resumes:
            self._resumes = False
            self.rewind(step - 1)

    def _measure_due(self, step: int) -> dict[str, Spectrum]:
        measured: dict[str, Spectrum] = {}
        bounds: dict[str, Any] = {}
        begins, self._first_step = self._first_step is None, step if self._first_step is None else self._first_step
        with contextlib.ExitStack() as weights:
            for index, affordable in self._queue.due(step, always=begins):
                if affordable:
                    weights.enter_context(gathered(self.model))
                item = self._measurements[index]
                if not affordable:
                    self._unaffordable += 1
                    reason = f"would exceed max_overhead={self.max_overhead}"
                    self._skip(item, step, reason, self._queue.estimates[index])
                elif item.map == _BOUNDS:
                    bounds = self._attempt(index, step, dict if self._bounds is None else self._bounds.measure)
                else:
                    measure = functools.partial(self._probe.spectra, item, self._group, with_rayleigh=self._writes)
                    measured |= self._log_spectra(item, step, self._attempt(index, step, measure))
            if begins:
                self._tried = 0
            if (measured or bounds) and self._probe.has_loss and self._writes:
                self._log_probe(step, bounds)
        if measured and self._writes and self._send_scalars is not None:
            self._send(self._send_scalars, step, measured)
        return measured

    def _attempt(self, index: int, step: int, measure: Callable[[], dict[str, Value]]) -> dict[str, Value]:
        """The result of a measurement: empty if it fails, which is recorded."""
        self._tried += 1
        before, result, failure = self._time.spent, dict[str, Value](), ""
        with self._measuring():
            try:
                result = as_first(measure, self._group)
            except Exception as error:
                failure = _reason(error)
        seconds = self._time.spent - before
        if failure:
            self._skip(self._measurements[index], step, failure, seconds)
        else:
            self._queue.estimates[index] = seconds
        return result

    def _log_spectra(self, item: Measurement, step: int, measured: Measured) -> dict[str, Spectrum]:
        """Log the spectra of one map; by layer (``map:layer`` when there are several maps)."""
        for spectrum, rayleigh in measured.values():
            self._append("spectra", step, {**spectrum.as_row(), "rayleigh": rayleigh})
        prefix = "" if self._num_maps == 1 else f"{item.map}:"
        return {f"{prefix}{key}": spectrum for key, (spectrum, _) in measured.items()}

    def _send(self, log: Log, step: int, measured: dict[str, Spectrum]) -> None:
        """Give scalars to the logger beside the tables; the training goes on if that fails."""
        with self._measuring():
            try:
                log(scalars_of(measured.values()), step)
            except Exception as error:
                line = next(iter(str(error).splitlines()), "")
                reason = f"{type(error).__name__}: {line}"
                warnings.warn(f"log_to failed at step {step}, the tables have the rows: {reason}", stacklevel=2)

    def _measuring(self) -> AbstractContextManager[None]:
        return self._time.measuring(self._probe.device)

    def _skip(self, item: Measurement, step: int, reason: str, seconds: float | None) -> None:
        self._append("skipped", step, item.skipped(reason, seconds))

    def _append(self, table: str, step: int, row: dict[str, Any]) -> None:
        if self._tables is not None:
            self._tables.append(table, step, row)

    def _log_probe(self, step: int, bounds: dict[str, Any]) -> None:
        """Log the probe's metrics; a row with bounds waits for the step after it."""
        with self._measuring():
            row, failure = {"split": "probe", **bounds}, ""
            try:
                row |= self._probe.loss()
            except Exception as error:
                failure = f"loss of the probe: {_reason(error)}"
        if failure:
            self._skip(self._measurements[0], step, failure, None)
        if self._bounds is not None and bounds:
            self._bounds.row = {"step": step, **row}
        else:
            self._append("metrics", step, row)

    def _release(self, step: int | None) -> None:
        """Log the row that waits, completed by the decreases if it waits for the step ``step``."""
        if self._bounds is None or self._bounds.row is None:
            return
        with self._measuring():
            row, failure = self._bounds.release(step)
        self._append("metrics", row["step"], row)
        if failure:
            self._skip(self._measurements[-1], row["step"], failure, None)

    def _save(self) -> None:
        """Write new rows to the journal; those with numbers on a device at most once a second."""
        if self._tables is not None:
            with self._measuring() if self._tables.will_fetch else self._time.measuring(torch.device("cpu")):
                self._tables.save()

    def _write(self) -> None:
        if self._tables is not None:
            with self._measuring():
                self._tables.flush()
        self._flushed = time.perf_counter()


def _reason(error: Exception) -> str:
    """Why a measurement failed, in a line; what is no ordinary reason is warned about as well."""
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, _EXPECTED) and line:
        return line
    reason = f"{type(error).__name__}: {line}"
    warnings.warn(f"a measurement failed and is left out, the training goes on: {reason}", stacklevel=2)
    return reason


def _roles(group: ProcessGroup | None) -> tuple[bool, bool]:
    """Whether this process writes the tables, and whether it takes part in the measurements."""
    if group is not None:
        rank = distributed.get_rank(group)  # -1 in a process outside of it
        return rank == 0, rank >= 0
    first = not distributed.is_available() or not distributed.is_initialized() or distributed.get_rank() == 0
    return first, first
