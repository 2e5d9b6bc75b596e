"""The callback for the ``Trainer`` of Lightning, of both its packages."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.callbacks.base import MonitoringCallback


class LightningCallback(MonitoringCallback):
    """A ``SpectrumMonitor`` of a LightningModule, as a callback.

    .. code-block:: python

        trainer = Trainer(callbacks=[LightningCallback((x, y), "runs/mine")])

    The model is called as ``module(x)``; with ``forward=lambda module, x: ...`` in another way. Logged are the loss
    that the training step returned (of accumulated batches the mean, as the trainer scales it) and the learning rate of
    the optimiser that steps first, at the number of optimiser steps taken before. Of several optimisers each step
    counts, as in ``trainer.global_step``.

    Args:
        probe: As for ``SpectrumMonitor``.
        out: The run's directory.
        monitor_options: Other arguments of ``SpectrumMonitor``; ``log_to="trainer"`` sends scalars to the trainer's
            loggers.
    """

    _modules = ("lightning.pytorch", "pytorch_lightning")
    _class = "Callback"
    _extra = "lightning"

    def __init__(self, probe: Any, out: Any, **monitor_options: Any) -> None:
        super().__init__(probe, out, **monitor_options)
        self._step = 0
        self._loss: Tensor | float | None = None
        self._lr: float | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the monitor, and measure the initialisation."""
        same = [
            callback
            for callback in trainer.callbacks
            if isinstance(callback, LightningCallback) and callback.out.resolve() == self.out.resolve()
        ]
        if len(same) > 1:
            raise InputError(f"the trainer has {len(same)} LightningCallbacks for {self.out}; give it one of them")
        options = {}
        if self._options.get("log_to") == "trainer":
            if not trainer.loggers:
                raise InputError("log_to='trainer', but the trainer has no logger; give it one, or leave out log_to")
            options["log_to"] = _all_of(trainer.loggers)
        self._step, self._loss, self._lr = trainer.global_step, None, None
        self._begin(pl_module, self._step, **options)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note the learning rate, which a schedule may change before the batch ends."""
        if self._lr is None:
            self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the loss; measure if the optimiser made a step."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            loss = loss.detach() if isinstance(loss, Tensor) else float(loss)
            self._loss = loss if self._loss is None else self._loss + loss
        if trainer.global_step > self._step:
            self._log(self._step, loss=self._loss, lr=self._lr, epoch=trainer.current_epoch)
            self._step, self._loss, self._lr = trainer.global_step, None, None
            self._took_step(self._step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write what is in memory."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write what is in memory."""
        self._end()


def _all_of(loggers: Any) -> Any:
    """A function that logs to all of them."""

    def log(scalars: dict[str, float], step: int) -> None:
        for logger in loggers:
            logger.log_metrics(scalars, step=step)

    return log
