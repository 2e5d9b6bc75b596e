"""A monitor for any training loop: measures spectra of a probe on a schedule and writes them to tables.

.. code-block:: python

    with SpectrumMonitor(model, probe=(x, y), out="runs/mine") as monitor:
        for step, (images, labels) in enumerate(batches):
            loss = train_one_step(images, labels)
            monitor.step(step, loss=loss)
"""

import os
import time
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.bounds_log import BoundsLog
from skip_conditioning.diagnostics.monitoring.measurement import Measurement, scheduled
from skip_conditioning.diagnostics.monitoring.probe_measurements import ProbeMeasurements
from skip_conditioning.diagnostics.monitoring.run_folder import RunFolder, checked_description
from skip_conditioning.diagnostics.monitoring.run_tables import RunTables, longest_wait
from skip_conditioning.diagnostics.monitoring.scalar_log import Log, as_log, scalars_of
from skip_conditioning.diagnostics.monitoring.schedule import Schedule, log_spaced
from skip_conditioning.diagnostics.monitoring.step_measurements import BOUNDS, StepMeasurements
from skip_conditioning.diagnostics.monitoring.time_budget import TimeBudget
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
        measurements = [scheduled(item, layers, default) for item in requested]
        num_maps = len(measurements)
        if bounds and not self._probe.has_loss:
            raise InputError("bounds need a loss; give the probe's targets too, as probe=(x, y)")
        if bounds:
            measurements.append(scheduled(Measurement(BOUNDS, TOTAL), None, default))
        if is_sharded(self.model) and group is None and distributed.is_initialized():
            group = distributed.group.WORLD  # every process holds a part of the weights
        if bounds and is_sharded(self.model):
            raise InputError("bounds cannot be logged of weights in shards; leave them out")
        self._writes, self._measures = _roles(group)
        group = group if self._measures else None
        bounds_log: BoundsLog | None = None  # in the process that writes only, as the tables
        self._tables: RunTables | None = None

        def prepare(_: int) -> tuple[list[float], int | None]:
            """Open the tables, and forecast what each measurement will take; also the first step on disk."""
            nonlocal bounds_log
            folder.check()
            if bounds:
                bounds_log = BoundsLog(self.model, self.probe, memory_budget)
            with self._time.measuring(torch.device("cpu")):
                seconds = _try(self._probe, measurements[:num_maps], bounds_log) if estimates is None else [*estimates]
            self._tables = RunTables(folder, description)
            weakref.finalize(self, self._tables.close)
            return seconds, self._tables.first_step

        # The first process prepares, the others wait for it, and an error in it is raised in all of them.
        with gathered(self.model):
            seconds, self._first_step = distribute([0], prepare, group)[0] if self._measures else ([], None)
        self._resumes = resume
        self._bounds = bounds_log
        self._due = StepMeasurements(
            self.model, self._probe, measurements, seconds, self._time, group, self._tables, bounds_log
        )
        self._flushed = time.perf_counter()

    @property
    def estimates(self) -> list[float]:
        """Seconds that each measurement is expected to take, by the last time it was made."""
        return self._due.queue.estimates

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
        self._due.release(step)
        if metrics:
            self.log(step, split=split, **metrics)
        begins, self._first_step = self._first_step is None, step if self._first_step is None else self._first_step
        self.latest = self._due.measure(step, begins=begins)
        if self.latest and self._writes and self._send_scalars is not None:
            self._send(self._send_scalars, step)
        if time.perf_counter() - self._flushed > longest_wait(self._time.elapsed, _FLUSH_SECONDS):
            self._write()
        self._save()
        return self.latest

    def log(self, step: int, *, split: str, **metrics: float | Tensor | None) -> None:
        """Log metrics without measuring, such as those of an evaluation; arguments as for ``step``."""
        step = checked_step(step)
        self._begin(step)
        self._due.append("metrics", step, {"split": split, **metrics})
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
        self._due.release(step)
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
        if self._writes and self._due.unaffordable and not self._due.tried:
            cost, self._due.unaffordable = sum(self.estimates), 0
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

    def _send(self, log: Log, step: int) -> None:
        """Give scalars to the logger beside the tables; the training goes on if that fails."""
        with self._due.timed():
            try:
                log(scalars_of(self.latest.values()), step)
            except Exception as error:
                line = next(iter(str(error).splitlines()), "")
                reason = f"{type(error).__name__}: {line}"
                warnings.warn(f"log_to failed at step {step}, the tables have the rows: {reason}", stacklevel=2)

    def _save(self) -> None:
        """Write new rows to the journal; those with numbers on a device at most once a second."""
        if self._tables is not None:
            with self._due.timed() if self._tables.will_fetch else self._time.measuring(torch.device("cpu")):
                self._tables.save()

    def _write(self) -> None:
        if self._tables is not None:
            with self._due.timed():
                self._tables.flush()
        self._flushed = time.perf_counter()


def _try(probe: ProbeMeasurements, maps: Sequence[Measurement], bounds: BoundsLog | None) -> list[float]:
    """Raise the errors of bad input, and forecast the seconds of each measurement."""
    seconds = [probe.forecast(item) for item in maps]
    probe.loss()
    return seconds if bounds is None else [*seconds, bounds.forecast()]


def _roles(group: ProcessGroup | None) -> tuple[bool, bool]:
    """Whether this process writes the tables, and whether it takes part in the measurements."""
    if group is not None:
        rank = distributed.get_rank(group)  # -1 in a process outside of it
        return rank == 0, rank >= 0
    first = not distributed.is_available() or not distributed.is_initialized() or distributed.get_rank() == 0
    return first, first
