"""The measurements that a monitor makes on its probe: spectra of a map, and the loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.loss.probe_loss import probe_metrics, rayleigh_quotients
from skip_conditioning.diagnostics.measure import spectra
from skip_conditioning.diagnostics.monitoring.measurement import Measurement
from skip_conditioning.diagnostics.monitoring.time_budget import forecast
from skip_conditioning.diagnostics.networks.isolation import device_of
from skip_conditioning.diagnostics.spectrum import Spectrum

#: Spectra by layer, each with its Rayleigh quotient where there is one.
Measured = dict[str, tuple[Spectrum, float | None]]


class ProbeMeasurements:
    """Measures a model on a fixed probe, always with the same options.

    Args:
        model: The unwrapped module.
        probe: Inputs ``x``, or ``(x, y)``; copied, as a training loop may fill its batch's memory anew.
        method: As for ``measure.spectra``, and so are the others.
        tolerance: Of matrix-free spectra.
        dtype: Precision of the Jacobians.
        memory_budget: Bytes a measurement may take.

    Attributes:
        x: Inputs, shape ``(N, *input_shape)``.
        y: Targets, as for ``probe_loss.probe_metrics``, or None.

    Raises:
        InputError: The probe is neither inputs nor a pair.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Tensor | Sequence[Tensor],
        *,
        method: str,
        tolerance: float | None,
        dtype: torch.dtype | None,
        memory_budget: int,
    ) -> None:
        pair = probe if isinstance(probe, tuple | list) else (probe, None)
        if len(pair) != 2:
            raise InputError(f"the probe must be inputs x or a pair (x, y); it is {len(pair)} objects")
        self.x, self.y = (part.detach().clone() if isinstance(part, Tensor) else part for part in pair)
        self._model, self._dtype = model, dtype
        self._options: dict[str, Any] = {
            "method": method,
            "tolerance": tolerance,
            "dtype": dtype,
            "memory_budget": memory_budget,
        }

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return device_of(self._model, self.x)

    def forecast(self, item: Measurement) -> float:
        """The seconds that a measurement is expected to take; errors as for ``time_budget.forecast``."""
        return forecast(self._model, self.x, item, **self._options)

    def spectra(self, item: Measurement, group: ProcessGroup | None, *, with_rayleigh: bool) -> Measured:
        """The spectra of one map; errors as for ``measure.spectra``.

        Args:
            item: What to measure.
            group: Processes to share the work among; all of them have to call.
            with_rayleigh: Whether to add the Rayleigh quotients to those of the tangent kernel, given targets.
        """
        where: dict[str, Any] = {"layers": item.layers, "batch_mode": item.batch_mode}
        by_key = spectra(self._model, self.x, map=item.map, group=group, **where, **self._options)
        quotients: dict[str, float] = {}
        if item.map == "kernel" and self.y is not None and with_rayleigh:
            quotients = rayleigh_quotients(self._model, self.x, self.y, dtype=self._dtype, **where)
        return {key: (spectrum, quotients.get(key)) for key, spectrum in by_key.items()}

    def loss(self) -> dict[str, Tensor]:
        """The loss, and the accuracy for class indices; nothing without targets.

        Raises:
            InputError: The targets do not fit the outputs.
        """
        return {} if self.y is None else probe_metrics(self._model, self.x, self.y, self._dtype)
