"""Scalars of measurements for a logger beside the tables: TensorBoard, Weights & Biases, Lightning's, a function."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.spectrum import Spectrum
from skip_conditioning.diagnostics.tables import STATISTICS
from skip_conditioning.diagnostics.tables.files import shortened

Log = Callable[[dict[str, float], int], Any]

_PREFIX = "conditioning"


def scalars_of(spectra: Iterable[Spectrum]) -> dict[str, float]:
    """The statistics of spectra, and whether they are resolved, as ``conditioning/<map>/<layer>/<statistic>``."""
    scalars: dict[str, float] = {}
    for spectrum in spectra:
        sample = "" if spectrum.sample is None else f"[{spectrum.sample}]"
        for name in (*STATISTICS, "resolved"):
            value = getattr(spectrum, name)
            if value is not None and math.isfinite(value):
                scalars[f"{_PREFIX}/{spectrum.map}/{spectrum.layer}{sample}/{name}"] = float(value)
    return scalars


def as_log(log_to: Any) -> Log:
    """A function ``(scalars, step)`` that logs, for whatever logger is given.

    Args:
        log_to: A TensorBoard writer (with ``add_scalar``), a Lightning logger (``log_metrics``), a run of Weights &
            Biases or another with ``log(scalars, step=)``, or a function ``(scalars, step)``.

    Raises:
        InputError: It is none of these.
    """
    if not isinstance(log_to, type):
        if callable(getattr(log_to, "add_scalar", None)):
            return lambda scalars, step: [log_to.add_scalar(name, value, step) for name, value in scalars.items()]
        if callable(getattr(log_to, "log_metrics", None)):
            return lambda scalars, step: log_to.log_metrics(scalars, step=step)
        parameters = _parameters(getattr(log_to, "log", None))
        if "commit" in parameters:
            return _WandbLog(log_to)
        if "step" in parameters:
            return lambda scalars, step: log_to.log(scalars, step=step)
        if callable(log_to):
            return log_to
    raise InputError(
        "log_to must be a TensorBoard writer, a run of Weights & Biases, a Lightning logger or a function "
        f"(scalars, step); it is {shortened(repr(log_to), 60)}"
    )


class _WandbLog:
    """Logs to a run of Weights & Biases, whose own count of steps may be anything: it is neither set nor passed.

    Scalars go into the row that the user's next call of ``log`` completes; if there was none since, a row of their own.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self._last: tuple[Any, int] | None = None
        if callable(getattr(run, "define_metric", None)):
            run.define_metric(f"{_PREFIX}/*", step_metric=f"{_PREFIX}/step")

    def __call__(self, scalars: dict[str, float], step: int) -> None:
        if self._last is not None and self._last[0] == self._row:
            self._run.log({f"{_PREFIX}/step": self._last[1]}, commit=True)
        self._run.log({**scalars, f"{_PREFIX}/step": step}, commit=False)
        self._last = self._row, step

    @property
    def _row(self) -> Any:
        return getattr(self._run, "step", None)


def _parameters(function: Any) -> Iterable[str]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()
