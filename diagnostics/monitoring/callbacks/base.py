"""What the callbacks of all trainers share: the monitor of a run, from its beginning to its end."""

import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.monitor import SpectrumMonitor


class MonitoringCallback:
    """A callback with a ``SpectrumMonitor`` of the trainer's model.

    An instance is also one of the trainer's own callback class, which is looked up when the instance is made.

    Args:
        probe: As for ``SpectrumMonitor``.
        out: The run's directory.
        monitor_options: Other arguments of ``SpectrumMonitor``. A training that goes on from a step after the first, as
            from a checkpoint, goes on in the same directory, as with ``resume=True``.

    Attributes:
        out: The run's directory.
        monitor: Of the training under way, or the last one; None before the first.

    Raises:
        InputError: The trainer's package is not installed.
    """

    #: Modules that may have the trainer's callback class, the name of that class, and how to install it.
    _modules: ClassVar[tuple[str, ...]] = ()
    _class: ClassVar[str] = ""
    _extra: ClassVar[str] = ""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """An instance of this class and of the trainer's."""
        kind: Any = cls
        return super().__new__(_joined(kind, _trainers_classes(kind)))

    def __init__(self, probe: Any, out: str | os.PathLike[str], **monitor_options: Any) -> None:
        self.out = Path(out)
        self.monitor: SpectrumMonitor | None = None
        self._probe, self._options = probe, monitor_options
        self._has_run = False

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, as for another process, begins without a monitor."""
        own = next(kind for kind in type(self).__mro__ if "_modules" in vars(kind))
        return functools.partial(own, self._probe, self.out, **self._options), ()

    def _begin(self, model: nn.Module, step: int, **options: Any) -> None:
        """Make the monitor, and measure the state that training begins with.

        Args:
            model: The trainer's.
            step: Optimiser steps taken so far.
            options: Take precedence over those of the user.
        """
        self._end()
        chosen = {**self._options, **options}
        if step > 0 and (self._has_run or not chosen.get("overwrite")):
            chosen |= {"resume": True, "overwrite": False}
        self.monitor = SpectrumMonitor(model, self._probe, self.out, **chosen)
        self._has_run = True
        self.monitor.step(step)

    def _took_step(self, step: int) -> None:
        """Make the measurements that are due now that so many optimiser steps were taken."""
        if self.monitor is not None:
            self.monitor.step(step)

    def _log(self, step: int, **metrics: float | Tensor | None) -> None:
        """Log the trainer's metrics of the optimiser step that follows ``step`` others."""
        if self.monitor is not None:
            self.monitor.log(step, split="train", **metrics)

    def _end(self) -> None:
        """Write the rows in memory, and let others write the directory."""
        if self.monitor is not None:
            self.monitor.close()


def _trainers_classes(cls: type[MonitoringCallback]) -> tuple[type, ...]:
    """The trainer's callback class from each module that is loaded, or else from the first that is installed."""
    loaded = [name for name in cls._modules if name in sys.modules]
    if not loaded:
        loaded = [name for name in cls._modules if importlib.util.find_spec(name.partition(".")[0])][:1]
    if not loaded:
        raise InputError(
            f"{cls.__name__} needs {cls._modules[0].partition('.')[0]}; pip install 'skip-conditioning[{cls._extra}]'"
        )
    return tuple(dict.fromkeys(getattr(importlib.import_module(name), cls._class) for name in loaded))


@functools.cache
def _joined(cls: type[MonitoringCallback], bases: tuple[type, ...]) -> Any:
    return type(cls.__name__, (cls, *bases), {"__module__": cls.__module__, "__doc__": cls.__doc__})
