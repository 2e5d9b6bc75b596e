"""A monitor for any training loop: measures spectra of a probe on a schedule and writes them to tables.

.. code-block:: python

    with SpectrumMonitor(model, probe=(x, y), out="runs/mine") as monitor:
        for step, (images, labels) in enumerate(batches):
            loss = train_one_step(images, labels)
            monitor.step(step, loss=loss)
"""

import math
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from diagnostics.choice import check_method, choose_method
from diagnostics.errors import InputError
from diagnostics.exact import Plan
from diagnostics.isolation import State, device_of, quiet, unwrap
from diagnostics.jacobian_operator import operator_of
from diagnostics.jacobians import RowSource
from diagnostics.maps import Map, build_maps, check_map, probe_input
from diagnostics.matrix_free import affordable_steps
from diagnostics.measure import GIB, spectra
from diagnostics.probe import probe_metrics, rayleigh_quotients
from diagnostics.schedule import Schedule, as_schedule, log_spaced
from diagnostics.slq import PROBES, STEPS
from diagnostics.spectrum import Spectrum
from diagnostics.tables import METRICS, SKIPPED, SPECTRA, TableWriter

#: Rows wait in memory at most this long, so that fast steps do not make a file each.
_FLUSH_SECONDS = 1.0

#: Dense linear algebra's speed in the first guess of a measurement's cost; later ones have been timed.
_FLOPS = 2e10


@dataclass(frozen=True)
class Measurement:
    """What to measure, and when.

    Attributes:
        map: One of ``maps.MAPS``.
        layers: Names or globs; None takes the blocks.
        batch_mode: ``batch`` or ``sample``.
        schedule: Steps at which it is due; None takes the monitor's.
    """

    map: str
    layers: Sequence[str] | str | None = None
    batch_mode: str = "batch"
    schedule: Schedule | int | None = None


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
        run_id: Name of the run in the tables; the directory's name by default.

    Raises:
        InputError: Unknown layers, a probe or weights that are not finite, targets that do not fit the logits, a
            spectrum that does not fit the memory budget, a directory that cannot be written: all before the first
            step.
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
        run_id: str | None = None,
    ) -> None:
        if max_overhead is not None and not 0 < max_overhead < math.inf:
            raise InputError(f"max_overhead must be a positive share such as 0.05, or None; it is {max_overhead!r}")
        self._started = time.perf_counter()
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
        self._measurements = [_complete(item, layers, otherwise) for item in asked]
        self._pending: set[int] = set()
        self._tried, self._unaffordable = 0, 0
        self._writes = not torch.distributed.is_available() or not torch.distributed.is_initialized()
        self._writes = self._writes or torch.distributed.get_rank() == 0
        if self._writes:
            self._estimates = [self._check(item) for item in self._measurements]
            if self.y is not None:
                probe_metrics(self.model, self.x, self.y, self.dtype)
            schemas = {"metrics": METRICS, "spectra": SPECTRA, "skipped": SKIPPED}
            self._tables = {name: TableWriter(Path(out) / name, schema) for name, schema in schemas.items()}
        self._flushed = time.perf_counter()
        self._spent = self._flushed - self._started

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
        if metrics:
            self.log(step, split=split, **metrics)
        self.latest = self._measure_due(step)
        if time.perf_counter() - self._flushed > _FLUSH_SECONDS:
            self.flush()
        return self.latest

    def log(self, step: int, *, split: str, **metrics: float | Tensor | None) -> None:
        """Log metrics without measuring, such as those of an evaluation; arguments as for ``step``."""
        if self._writes:
            held = {key: _scalar(key, value) for key, value in metrics.items()}
            self._tables["metrics"].append({"run_id": self.run_id, "step": step, "split": split, **held})

    @property
    def overhead(self) -> float:
        """Time spent measuring so far, as a share of the time spent on everything else."""
        return self._spent / max(time.perf_counter() - self._started - self._spent, 1e-9)

    def flush(self) -> None:
        """Write the rows that still wait in memory."""
        start = time.perf_counter()
        if self._writes:
            for table in self._tables.values():
                table.flush()
        self._flushed = time.perf_counter()
        self._spent += self._flushed - start

    def rewind(self, step: int) -> None:
        """Forget every row after ``step``; for a run resumed from a checkpoint made at that step."""
        if self._writes:
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
        for index, item in enumerate(self._measurements):
            due = as_schedule(item.schedule)(step)  # type: ignore[arg-type]
            if due or index in self._pending:
                if self._affordable(self._estimates[index]):
                    self._pending.discard(index)
                    found |= self._measure(index, item, step)
                elif due:
                    self._pending.add(index)
                    self._unaffordable += 1
                    reason = f"would exceed max_overhead={self.max_overhead}"
                    self._skip(item, step, reason, self._estimates[index])
        if found and self.y is not None:
            self._log_probe(step, self.y)
        return found

    def _affordable(self, estimate: float) -> bool:
        if self.max_overhead is None:
            return True
        training = time.perf_counter() - self._started - self._spent
        return self._spent + estimate <= self.max_overhead * training

    def _measure(self, index: int, item: Measurement, step: int) -> dict[str, Spectrum]:
        device = device_of(self.model, self.x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the training still under way is not the monitor's time
        start = time.perf_counter()
        self._tried += 1
        try:
            found = spectra(
                self.model,
                self.x,
                map=item.map,
                layers=item.layers,
                batch_mode=item.batch_mode,
                method=self.method,
                tolerance=self.tolerance,
                dtype=self.dtype,
                memory_budget=self.memory_budget,
            )
        except (InputError, np.linalg.LinAlgError, torch.OutOfMemoryError) as error:
            # A diverging network is a result; it is for the training loop to decide whether to go on.
            self._skip(item, step, str(error).splitlines()[0], time.perf_counter() - start)
            self._spent += time.perf_counter() - start
            return {}
        speeds = self._speeds_felt(item)
        for key, spectrum in found.items():
            row = {"run_id": self.run_id, "step": step, **spectrum.as_row(), "rayleigh": speeds.get(key)}
            self._tables["spectra"].append(row)
        self._estimates[index] = time.perf_counter() - start
        self._spent += self._estimates[index]
        single = len(self._measurements) == 1
        return found if single else {f"{item.map}:{key}": spectrum for key, spectrum in found.items()}

    def _speeds_felt(self, item: Measurement) -> dict[str, float]:
        """Rayleigh quotients of the loss's gradient on the probe, where tangent kernels are measured."""
        if item.map != "kernel" or self.y is None:
            return {}
        return rayleigh_quotients(
            self.model, self.x, self.y, layers=item.layers, batch_mode=item.batch_mode, dtype=self.dtype
        )

    def _skip(self, item: Measurement, step: int, reason: str, seconds: float) -> None:
        layers = [item.layers] if isinstance(item.layers, str) else item.layers or ["(default)"]
        self._tables["skipped"].append(
            {
                "run_id": self.run_id,
                "step": step,
                "map": item.map,
                "layers": ", ".join(layers),
                "batch_mode": item.batch_mode,
                "reason": reason,
                "estimated_seconds": seconds,
            }
        )

    def _check(self, item: Measurement) -> float:
        """Meet every bad input before training starts; return a first guess at the seconds a measurement takes."""
        check_map(item.map, item.batch_mode, self.dtype)
        check_method(self.method, self.tolerance)
        x = probe_input(self.x, self.model, self.dtype)
        samples, first = (1, x) if item.batch_mode == "batch" else (len(x), x[:1])
        with quiet(self.model, batch_mode=item.batch_mode):
            maps = build_maps(self.model, State(self.model, self.dtype), first, item.map, item.layers)
            if item.map == "kernel" and self.method != "lanczos":
                # All layers together take about a backward pass of the whole for each row at most.
                return samples * self._first_guess(max(maps, key=lambda one: one.cols))
            return samples * sum(self._first_guess(one) for one in maps)

    def _first_guess(self, one: Map) -> float:
        """Seconds a spectrum will take, from the time of its first chunk of rows or its first products."""
        method = choose_method(one, self.memory_budget)[0] if self.method == "auto" else self.method
        if method == "lanczos":
            affordable_steps(one, self.memory_budget)
            start = time.perf_counter()
            operator = operator_of(one, self.memory_budget)
            ready = time.perf_counter()
            operator.gram_matvec(torch.ones(operator.shape[1], dtype=operator.dtype, device=operator.device))
            return ready - start + PROBES * STEPS * (time.perf_counter() - ready)
        source = RowSource(one, Plan.of(one, self.memory_budget).chunk_bytes)
        start = time.perf_counter()
        source.rows(0, source.chunk)
        chunk = time.perf_counter() - start
        short, long = sorted((one.rows, one.cols))
        return chunk * one.rows / source.chunk + short**2 * (2 * long + 10 * short) / _FLOPS

    def _log_probe(self, step: int, y: Tensor) -> None:
        start = time.perf_counter()
        metrics = probe_metrics(self.model, self.x, y, self.dtype)
        self._tables["metrics"].append({"run_id": self.run_id, "step": step, "split": "probe", **metrics})
        self._spent += time.perf_counter() - start


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


def _complete(item: str | Measurement, layers: Sequence[str] | str | None, schedule: Schedule | int) -> Measurement:
    """A measurement with its schedule, from a map's name or a measurement that may lack one."""
    if isinstance(item, str):
        item = Measurement(item, layers)
    chosen = as_schedule(item.schedule if item.schedule is not None else schedule)
    return replace(item, schedule=chosen)
