"""The *bounds* of a probe in the metrics table: the PŁ chain at a step, and the decrease of the loss by that step."""

import time
from typing import Any

import torch
from torch import nn

from skip_conditioning.diagnostics.loss.descent import Descent
from skip_conditioning.diagnostics.loss.probe_loss import loss_gradient
from skip_conditioning.diagnostics.monitoring.time_budget import FLOPS
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.diagnostics.theory.pl_inequality import checked_cost, pl_chain

#: Arithmetic operations of the eigenvalues of two kernels, by the cube of their rows.
_EIGENVALUE_FLOPS = 20.0


class BoundsLog:
    """Measures the bounds at one step, and holds the probe's row until the next step shows by how much the loss fell.

    Args:
        model: The unwrapped module.
        probe: With targets.
        memory_budget: Bytes a measurement may take.

    Attributes:
        row: The waiting row of the metrics table, or None.
    """

    def __init__(self, model: nn.Module, probe: Probe, memory_budget: int) -> None:
        self.row: dict[str, Any] | None = None
        self._model, self._probe, self._memory_budget = model, probe, memory_budget
        self._descent: Descent | None = None

    def forecast(self) -> float:
        """A first guess at the seconds of a measurement: a backward pass for each row of the kernel, at most.

        Raises:
            InputError: A measurement would fail: the targets do not fit, or the memory budget is too small.
        """
        with measuring(self._model, self._probe, dtype=torch.float64) as probed:
            recording = probed.recording()
            loss_gradient(recording, probed.probe)
            start = time.perf_counter()  # a first backward pass is slower than those that follow
            loss_gradient(recording, probed.probe)
            seconds = time.perf_counter() - start
        logits = recording.logits.detach().view(recording.output_shape)
        checked_cost(logits, probed.probe, self._memory_budget)
        rows = logits.numel()
        return rows * seconds + _EIGENVALUE_FLOPS * rows**3 / FLOPS

    def measure(self) -> dict[str, Any]:
        """The columns of ``tables.BOUNDS`` at this state; the decreases, which the next step shows, are missing."""
        chain = pl_chain(self._model, self._probe, memory_budget=self._memory_budget)
        self._descent = Descent(self._model, self._probe)
        return {
            "grad_squared": chain.grad_squared,
            "cost_grad_squared": chain.cost_grad_squared,
            "pl_floor": chain.pl_floor,
            "pl_floor_centred": chain.pl_floor_centred,
            "rayleigh": chain.rayleigh,
            "pl_ceiling": chain.pl_ceiling,
            "pl_verdict": chain.verdict,
        }

    def release(self, step: int | None) -> tuple[dict[str, Any], str]:
        """The row that waited, and why it lacks its decreases if they could not be measured.

        Args:
            step: The step that the model is at: if it is the one after the row's, the row has its decreases.
        """
        assert self.row is not None
        assert self._descent is not None
        row, descent, failure = self.row, self._descent, ""
        self.row = self._descent = None
        if step == row["step"] + 1:
            try:
                decrease = descent.until(self._model)
                row |= {"predicted_decrease": decrease.predicted, "observed_decrease": decrease.observed}
            except Exception as error:
                failure = f"decrease of the loss: {next(iter(str(error).splitlines()), type(error).__name__)}"
        return row, failure

    def rewind(self, step: int) -> None:
        """Forget the row that waits if it is after ``step``."""
        if self.row is not None and self.row["step"] > step:
            self.row = self._descent = None
