"""The measurements that a monitor makes on its probe: spectra of a map, and the loss."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.loss.probe_loss import probe_metrics, rayleigh_quotients
from skip_conditioning.diagnostics.measure import spectra
from skip_conditioning.diagnostics.monitoring.measurement import Measurement
from skip_conditioning.diagnostics.monitoring.time_budget import forecast
from skip_conditioning.diagnostics.networks.isolation import device_of
from skip_conditioning.diagnostics.networks.probe import Probe, Reading
from skip_conditioning.diagnostics.spectrum import Spectrum

#: Spectra by layer, each with its Rayleigh quotient where there is one.
Measured = dict[str, tuple[Spectrum, float | None]]


class ProbeMeasurements:
    """Measures a model on a fixed probe, always with the same options.

    Args:
        model: The unwrapped module.
        probe: As for ``Probe.of``; copied, as a training loop may fill its batch's memory anew.
        method: As for ``measure.spectra``, and so are the others.
        tolerance: Of matrix-free spectra.
        dtype: Precision of the Jacobians.
        memory_budget: Bytes a measurement may take.
        reading: How the probe is read, as for ``Probe``.

    Attributes:
        probe: The copy.
        has_loss: Whether the probe has targets, or a loss that does without.

    Raises:
        InputError: The probe cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        method: str,
        tolerance: float | None,
        dtype: torch.dtype | None,
        memory_budget: int,
        reading: Reading,
    ) -> None:
        self.probe = Probe.of(probe, model, **reading).mapped(lambda tensor: tensor.detach().clone())
        self.has_loss = self.probe.targets is not None or self.probe.loss is not None
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
        return device_of(self._model, self.probe.first)

    def forecast(self, item: Measurement) -> float:
        """The seconds that a measurement is expected to take; errors as for ``time_budget.forecast``."""
        return forecast(self._model, self.probe, item, **self._options)

    def spectra(self, item: Measurement, group: ProcessGroup | None, *, with_rayleigh: bool) -> Measured:
        """The spectra of one map; errors as for ``measure.spectra``.

        Args:
            item: What to measure.
            group: Processes to share the work among; all of them have to call.
            with_rayleigh: Whether to add the Rayleigh quotients to those of the tangent kernel, given targets.
        """
        where: dict[str, Any] = {"layers": item.layers, "batch_mode": item.batch_mode}
        by_key = spectra(self._model, self.probe, map=item.map, group=group, **where, **self._options)
        quotients: dict[str, float] = {}
        if item.map == "kernel" and self.has_loss and self.probe.outputs is None and with_rayleigh:
            quotients = rayleigh_quotients(self._model, self.probe, dtype=self._dtype, **where)
        return {key: (spectrum, quotients.get(key)) for key, spectrum in by_key.items()}

    def loss(self) -> dict[str, Tensor]:
        """The loss, and the accuracy for class indices; nothing without targets.

        Raises:
            InputError: The targets do not fit the outputs.
        """
        return probe_metrics(self._model, self.probe, dtype=self._dtype) if self.has_loss else {}
