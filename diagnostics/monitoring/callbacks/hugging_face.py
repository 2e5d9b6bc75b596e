"""The callback for the ``Trainer`` of Hugging Face's transformers."""

from typing import Any

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.callbacks.base import MonitoringCallback


class HuggingFaceCallback(MonitoringCallback):
    """A ``SpectrumMonitor`` of the model of a Hugging Face ``Trainer``, as a callback.

    .. code-block:: python

        trainer = Trainer(model, args, train_dataset=data, callbacks=[HuggingFaceCallback(batch, "runs/mine")])

    Logged are the loss (the mean since the trainer logged before), the gradient norm and the learning rate whenever the
    trainer logs them (``logging_steps``), at the number of optimiser steps before the last one in that mean.

    Args:
        probe: As for ``SpectrumMonitor``.
        out: The run's directory.
        monitor_options: Other arguments of ``SpectrumMonitor``.
    """

    _modules = ("transformers",)
    _class = "TrainerCallback"
    _extra = "hf"

    def __init__(self, probe: Any, out: Any, **monitor_options: Any) -> None:
        super().__init__(probe, out, **monitor_options)
        self._state: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Make the monitor, and measure the initialisation."""
        if self._state is state:
            raise InputError(f"the HuggingFaceCallback for {self.out} is given to the trainer twice; give it once")
        # Out of memory, such a trainer begins again with smaller batches before it has ended.
        again = self._state is not None and bool(getattr(args, "auto_find_batch_size", False))
        self._state = state
        parts["model"].train()  # as the trainer does before each batch; pretrained models come in eval mode
        self._begin(parts["model"], state.global_step, **({"resume": True, "overwrite": False} if again else {}))

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Measure after an optimiser step."""
        self._took_step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **parts: Any) -> None:
        """Log what the trainer logs of its training."""
        if logs and "loss" in logs:
            named = {"loss": "loss", "grad_norm": "grad_norm", "lr": "learning_rate", "epoch": "epoch"}
            metrics = {name: float(logs[key]) for name, key in named.items() if logs.get(key) is not None}
            self._log(max(state.global_step - 1, 0), **metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Write what is in memory."""
        self._state = None
        self._end()
