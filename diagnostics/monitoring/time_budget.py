"""What a measurement will cost in seconds, and whether the time for it can be afforded."""

import contextlib
import math
import time
from collections.abc import Iterator

import torch
from torch import nn

from skip_conditioning.diagnostics.errors import InputError, UnsupportedModelError
from skip_conditioning.diagnostics.jacobians.exact import ExactPlan, check_method, choose_method
from skip_conditioning.diagnostics.jacobians.matrix_free import affordable_steps
from skip_conditioning.diagnostics.jacobians.operator import jacobian_of
from skip_conditioning.diagnostics.jacobians.rows import RowSource
from skip_conditioning.diagnostics.linalg.slq import STEPS, VECTORS
from skip_conditioning.diagnostics.monitoring.measurement import Measurement
from skip_conditioning.diagnostics.networks.maps import Map, check_map
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.probe import Probe

#: Arithmetic operations a second of dense linear algebra, for forecasts of what has not been timed yet.
FLOPS = 2e10


class TimeBudget:
    """Keeps the time spent measuring within a share of the time spent on everything else.

    Args:
        share: The largest share, or None for no limit.

    Attributes:
        share: As given.
        spent: Seconds spent measuring so far.

    Raises:
        InputError: The share is not a positive number.
    """

    def __init__(self, share: float | None) -> None:
        if share is not None and not 0 < share < math.inf:
            raise InputError(f"max_overhead must be a positive share such as 0.05, or None; it is {share!r}")
        self.share, self._started, self.spent = share, time.perf_counter(), 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since this began."""
        return time.perf_counter() - self._started

    @property
    def overhead(self) -> float:
        """Time spent measuring, as a share of the time spent on everything else."""
        return self.spent / max(self.elapsed - self.spent, 1e-9)

    def affords(self, estimate: float) -> bool:
        """Whether a measurement that takes ``estimate`` seconds would stay within the share."""
        if self.share is None:
            return True
        return self.spent + estimate <= self.share * (self.elapsed - self.spent)

    @contextlib.contextmanager
    def measuring(self, device: torch.device) -> Iterator[None]:
        """The time inside is spent measuring."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the training still under way is not
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - start


def forecast(
    model: nn.Module,
    probe: Probe,
    item: Measurement,
    *,
    method: str,
    tolerance: float | None,
    dtype: torch.dtype | None,
    memory_budget: int,
) -> float:
    """A first guess at the seconds of a measurement; every bad input is an error on the way, as in ``measure.spectra``.

    Args:
        model: The unwrapped module.
        probe: The probe.
        item: What to measure.
        method: As for ``measure.spectra``.
        tolerance: Of matrix-free spectra.
        dtype: Precision of the Jacobian.
        memory_budget: Bytes the measurement may take.
    """
    check_map(item.map, item.batch_mode, dtype)
    check_method(method, tolerance)
    with measuring(model, probe, batch_mode=item.batch_mode, dtype=dtype) as probed:
        parts = probed.parts()
        maps = parts[0].maps(item.map, item.layers)
        if item.map == "kernel" and method != "lanczos":
            # All layers together take about a backward pass of the whole for each row at most.
            maps = [max(maps, key=lambda map: map.cols)]
        seconds = 0.0
        for map in maps:
            try:
                seconds += spectrum_seconds(map, method, memory_budget)
            except UnsupportedModelError:
                if item.layers is not None or item.map == "network":
                    raise  # else it is left out of the default layers
        return len(parts) * seconds


def spectrum_seconds(map: Map, method: str, memory_budget: int) -> float:
    """Seconds one spectrum will take, from the time of its first chunk of rows or its first products.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        method: As for ``measure.spectra``.
        memory_budget: Bytes it may take.
    """
    chosen = choose_method(map, memory_budget)[0] if method == "auto" else method
    if chosen == "lanczos":
        affordable_steps(map, memory_budget)
        start = time.perf_counter()
        operator = jacobian_of(map, memory_budget)
        ready = time.perf_counter()
        operator.gram_matvec(torch.ones(operator.shape[1], dtype=operator.dtype, device=operator.device))
        squared = 2 if map.name == "kernel" else 1  # its products are two with the Jacobian
        return ready - start + squared * VECTORS * STEPS * (time.perf_counter() - ready)
    source = RowSource(map, ExactPlan.of(map, memory_budget).chunk_bytes)
    start = time.perf_counter()
    source.rows(0, source.chunk)
    chunk = time.perf_counter() - start
    short, long = sorted((map.rows, map.cols))
    return chunk * map.rows / source.chunk + short**2 * (2 * long + 10 * short) / FLOPS
