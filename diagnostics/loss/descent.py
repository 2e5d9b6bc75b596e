"""What one step of training, by any optimiser, makes of the loss on a batch: as its gradient predicts, and in fact."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.loss.probe_loss import loss_gradient, probe_metrics
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.measuring import measuring


@dataclass(frozen=True)
class Decrease:
    """By how much the loss fell between two states; negative where it rose.

    Attributes:
        predicted: ``−⟨∇ℓ(θ), θ' − θ⟩``, to first order; ``η|∇ℓ|²`` for a step of gradient descent on the same batch.
        observed: ``ℓ(θ) − ℓ(θ')``, with whatever the step did to frozen parameters and buffers.
    """

    predicted: float
    observed: float


class Descent:
    """Holds the loss of a model on a batch, its gradient and the trainable parameters, to compare a later state with.

    Costs a forward and a backward pass, and two float64 copies of the parameters. The model is left as it is, with its
    own train/eval flags.

    Args:
        model: Any module whose forward pass takes ``x`` and returns logits.
        x: Inputs, shape ``(N, *input_shape)``.
        y: Targets, as for ``probe.probe_metrics``.

    Raises:
        InputError: The targets do not fit the outputs, or nothing can be differentiated.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x, y
        with measuring(model, x, dtype=torch.float64) as probed:
            gradient = loss_gradient(probed.recording(), y)
        names = {parameter: name for name, parameter in probed.model.named_parameters()}
        self._loss, self._scale = gradient.loss, gradient.scale
        self._gradient = {names[parameter]: part for parameter, part in gradient.parameters.items()}
        # A copy also where the weights are float64 already: training will change them.
        self._weights = {names[parameter]: probed.state[parameter].clone() for parameter in gradient.parameters}

    def until(self, model: nn.Module) -> Decrease:
        """The decrease from the state held to that of the same model now.

        Raises:
            NonFiniteError: A weight has become NaN or infinite.
        """
        loss = probe_metrics(model, self._x, self._y, torch.float64)["loss"].item()
        weights = dict(unwrap(model).named_parameters())
        slope = sum(
            float((part * (weights[name].detach().double() - self._weights[name])).sum())
            for name, part in self._gradient.items()
        )
        return Decrease(predicted=-self._scale * slope, observed=self._loss - loss)
