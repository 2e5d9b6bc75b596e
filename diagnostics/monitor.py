"""A monitor for any training loop: measures spectra of a probe on a schedule and writes them to tables.

.. code-block:: python

    with SpectrumMonitor(model, probe=(x, y), out="runs/mine") as monitor:
        for step, (images, labels) in enumerate(batches):
            loss = train_one_step(images, labels)
            monitor.step(step, loss=loss)
"""

import functools
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from diagnostics.bounds_log import BoundsLog
from diagnostics.errors import InputError
from diagnostics.forecast import Measurement, TimeBudget, forecast, scheduled
from diagnostics.isolation import device_of, unwrap
from diagnostics.maps import TOTAL
from diagnostics.measure import GIB, spectra
from diagnostics.probe import probe_metrics, rayleigh_quotients
from diagnostics.schedule import Schedule, as_schedule, log_spaced
from diagnostics.spectrum import Spectrum
from diagnostics.tables import METRICS, SKIPPED, SPECTRA, TableWriter

#: Rows wait in memory at most this long, so that fast steps do not make a file each.
_FLUSH_SECONDS = 1.0

#: What the table of skipped measurements calls the bounds.
_BOUNDS = "bounds"

#: A diverging network is a result: after these the training goes on.
_FAILURES = (InputError, np.linalg.LinAlgError, torch.OutOfMemoryError)

Value = TypeVar("Value")


class SpectrumMonitor:
    """Measures the spectra of a model on a fixed probe while it trains, and changes nothing of the training.

    Tables appear under ``out``: ``spectra/``, ``metrics/`` and ``skipped/``, readable at any moment with
    ``pandas.read_parquet`` or ``tables.read_experiment``. In a distributed run only rank 0 measures and writes.

    Args:
        model: The network; ``torch.compile`` and DDP wrappers are looked through.
        probe: Inputs ``x``, or ``(x, y)``; with targets, the probe's loss and accuracy are logged (split
            ``probe``) at every measurement: cross-entropy for class indices, mean square error otherwise.
        out: The run's directory.
        maps: Names of maps or ``Measurement`` objects.
        layers: Layers of those maps that are given by name only.
        schedule: Interval in steps, or a function of the step; for maps without a schedule of their own.
        max_overhead: Share of the training time that measurements may take. One that would exceed it is skipped,
            which the table ``skipped`` records, and made as soon as it can be afforded. None: never skip.
        method: ``auto``, ``exact`` or ``lanczos``, as for ``spectra``.
        tolerance: Accuracy of matrix-free spectra, as for ``spectra``.
        dtype: Precision of the Jacobians; None keeps the model's.
        memory_budget: Bytes a measurement may take.
        bounds: Whether to log the chain of ``pl_chain`` on the probe, in float64, at each step of ``schedule``, and
            what the step after it made of the loss: the columns ``tables.BOUNDS`` of the probe's metrics. Such a row
            is written once the next step has been seen.
        run_id: Name of the run in the tables; the directory's name by default.

    Raises:
        InputError: Unknown layers, a probe or weights that are not finite, targets that do not fit the logits or are
            missing, a measurement that does not fit the memory budget, a directory that cannot be written: all before
            the first step.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Tensor | Sequence[Tensor],
        out: str | os.PathLike[str],
        *,
        maps: Sequence[str | Measurement] | str | Measurement = ("tail",),
        layers: Sequence[str] | str | None = None,
        schedule: Schedule | int | None = None,
        max_overhead: float | None = 0.05,
        method: str = "auto",
        tolerance: float | None = None,
        dtype: torch.dtype | None = None,
        memory_budget: int = GIB,
        bounds: bool = False,
        run_id: str | None = None,
    ) -> None:
        self._time = TimeBudget(max_overhead)
        self.model = unwrap(model)
        pair = probe if isinstance(probe, tuple | list) else (probe, None)
        if len(pair) != 2:
            raise InputError(f"the probe must be inputs x or a pair (x, y); it is {len(pair)} objects")
        # Copied, as a training loop may fill its batch's memory anew.
        self.x, self.y = (part.detach().clone() if isinstance(part, Tensor) else part for part in pair)
        self.max_overhead = max_overhead
        self.method, self.tolerance, self.dtype, self.memory_budget = method, tolerance, dtype, memory_budget
        self.run_id = run_id or Path(out).resolve().name
        self.latest: dict[str, Spectrum] = {}
        otherwise = schedule if schedule is not None else log_spaced()
        asked = [maps] if isinstance(maps, str | Measurement) else maps
        self._measurements = [scheduled(item, layers, otherwise) for item in asked]
        self._pending: set[int] = set()
        self._tried, self._unaffordable = 0, 0
        self._writes = not torch.distributed.is_available() or not torch.distributed.is_initialized()
        self._writes = self._writes or torch.distributed.get_rank() == 0
        self._bounds: BoundsLog | None = None
        if bounds and self.y is None:
            raise InputError("bounds are those of a loss; give the probe's targets too, as probe=(x, y)")
        if self._writes:
            with self._time.measuring(torch.device("cpu")):
                self._estimates = [forecast(self.model, self.x, item, **self._options) for item in self._measurements]
                if self.y is not None:
                    probe_metrics(self.model, self.x, self.y, self.dtype)
                    if bounds:
                        self._bounds = BoundsLog(self.model, self.x, self.y, memory_budget)
                        self._estimates.append(self._bounds.forecast())
                        self._measurements.append(scheduled(Measurement(_BOUNDS, TOTAL), None, otherwise))
            schemas = {"metrics": METRICS, "spectra": SPECTRA, "skipped": SKIPPED}
            self._tables = {name: TableWriter(Path(out) / name, schema) for name, schema in schemas.items()}
        self._flushed = time.perf_counter()

    def step(self, step: int, *, split: str = "train", **metrics: float | Tensor | None) -> dict[str, Spectrum]:
        """Log one step's metrics and make the measurements that are due.

        Args:
            step: Optimiser steps taken so far.
            split: What the metrics were computed on.
            metrics: Any of ``epoch, loss, accuracy, lr, grad_norm, seconds``; tensors are fetched later, so that
                the training loop never waits for a device.

        Returns:
            The spectra measured at this step, by layer (``map:layer`` when there are several maps); often empty.
        """
        if not self._writes:
            return {}
        self._release(step)
        if metrics:
            self.log(step, split=split, **metrics)
        self.latest = self._measure_due(step)
        if time.perf_counter() - self._flushed > _FLUSH_SECONDS:
            self._write()
        return self.latest

    def log(self, step: int, *, split: str, **metrics: float | Tensor | None) -> None:
        """Log metrics without measuring, such as those of an evaluation; arguments as for ``step``."""
        if self._writes:
            held = {key: _scalar(key, value) for key, value in metrics.items()}
            self._tables["metrics"].append({"run_id": self.run_id, "step": step, "split": split, **held})

    @property
    def overhead(self) -> float:
        """Time spent measuring so far, as a share of the time spent on everything else."""
        return self._time.overhead

    def flush(self, step: int | None = None) -> None:
        """Write the rows that still wait in memory.

        Args:
            step: Optimiser steps taken by now. A row of the bounds that waits for that step is completed; for another,
                or None, it is written without the decreases.
        """
        if self._writes:
            self._release(step)
            self._write()

    def rewind(self, step: int) -> None:
        """Forget every row after ``step``; for a run resumed from a checkpoint made at that step."""
        if self._writes:
            if self._bounds is not None:
                self._bounds.rewind(step)
            for table in self._tables.values():
                table.rewind(step)

    def close(self) -> None:
        """Write what waits in memory; the monitor may still be used afterwards.

        Warns when measurements were due and none could be afforded.
        """
        self.flush()
        if self._unaffordable and not self._tried:
            cost, self._unaffordable = sum(self._estimates), 0
            warnings.warn(
                f"nothing was measured: about {cost:.2g} s of measuring would exceed max_overhead={self.max_overhead} "
                "of the training time; train longer, raise max_overhead, or pass None to never skip",
                stacklevel=2,
            )

    def __enter__(self) -> "SpectrumMonitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _measure_due(self, step: int) -> dict[str, Spectrum]:
        found: dict[str, Spectrum] = {}
        bounds: dict[str, Any] = {}
        for index, item in enumerate(self._measurements):
            due = as_schedule(item.schedule)(step)  # type: ignore[arg-type]
            if due or index in self._pending:
                if self._time.affords(self._estimates[index]):
                    self._pending.discard(index)
                    if self._bounds is not None and item.map == _BOUNDS:
                        bounds = self._attempt(index, step, self._bounds.measure)
                    else:
                        found |= self._attempt(index, step, functools.partial(self._spectra, item, step))
                elif due:
                    self._pending.add(index)
                    self._unaffordable += 1
                    reason = f"would exceed max_overhead={self.max_overhead}"
                    self._skip(item, step, reason, self._estimates[index])
        if (found or bounds) and self.y is not None:
            self._log_probe(step, self.y, bounds)
        return found

    def _attempt(self, index: int, step: int, measure: Callable[[], dict[str, Value]]) -> dict[str, Value]:
        """What a measurement finds: nothing if it fails, which is recorded."""
        self._tried += 1
        before, found, failure = self._time.spent, dict[str, Value](), ""
        with self._measuring():
            try:
                found = measure()
            except _FAILURES as error:
                failure = str(error).splitlines()[0]
        seconds = self._time.spent - before
        if failure:
            self._skip(self._measurements[index], step, failure, seconds)
        else:
            self._estimates[index] = seconds
        return found

    def _spectra(self, item: Measurement, step: int) -> dict[str, Spectrum]:
        """Measure the spectra of one map and log them; by layer (``map:layer`` when there are several maps)."""
        where: dict[str, Any] = {"layers": item.layers, "batch_mode": item.batch_mode}
        found = spectra(self.model, self.x, map=item.map, **where, **self._options)
        speeds: dict[str, float] = {}
        if item.map == "kernel" and self.y is not None:
            speeds = rayleigh_quotients(self.model, self.x, self.y, dtype=self.dtype, **where)
        for key, spectrum in found.items():
            row = {"run_id": self.run_id, "step": step, **spectrum.as_row(), "rayleigh": speeds.get(key)}
            self._tables["spectra"].append(row)
        single = sum(one.map != _BOUNDS for one in self._measurements) == 1
        return found if single else {f"{item.map}:{key}": spectrum for key, spectrum in found.items()}

    @property
    def _options(self) -> dict[str, Any]:
        """How spectra are to be taken."""
        return {name: getattr(self, name) for name in ("method", "tolerance", "dtype", "memory_budget")}

    def _measuring(self) -> AbstractContextManager[None]:
        return self._time.measuring(device_of(self.model, self.x))

    def _skip(self, item: Measurement, step: int, reason: str, seconds: float | None) -> None:
        row = {"run_id": self.run_id, "step": step, **item.skipped(reason, seconds)}
        self._tables["skipped"].append(row)

    def _log_probe(self, step: int, y: Tensor, bounds: dict[str, Any]) -> None:
        """Log the probe's metrics; a row with bounds waits for the step after it."""
        with self._measuring():
            metrics = probe_metrics(self.model, self.x, y, self.dtype)
        row = {"run_id": self.run_id, "step": step, "split": "probe", **metrics, **bounds}
        if self._bounds is not None and bounds:
            self._bounds.row = row
        else:
            self._tables["metrics"].append(row)

    def _release(self, step: int | None) -> None:
        """Log the row that waits, completed if it waits for the step ``step``."""
        if self._bounds is None or self._bounds.row is None:
            return
        with self._measuring():
            row, failure = self._bounds.release(step)
        self._tables["metrics"].append(row)
        if failure:
            self._skip(self._measurements[-1], row["step"], failure, None)

    def _write(self) -> None:
        with self._measuring():
            for table in self._tables.values():
                table.flush()
        self._flushed = time.perf_counter()


def _scalar(name: str, value: float | Tensor | None) -> float | Tensor | None:
    """A metric's value as it will be written.

    Tensors are cloned and fetched later, so that the training loop never waits for a device.

    Raises:
        InputError: It is no single number.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().clone()
    if value is None or (isinstance(value, int | float | np.number | np.ndarray) and np.size(value) == 1):
        return value
    kind = f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(f"metric {name!r} must be a single number; it is a {kind}")
