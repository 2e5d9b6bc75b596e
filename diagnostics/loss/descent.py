"""By how much steps of training lower the loss on a batch.

``Descent`` measures it for a step of any optimiser, as the gradient predicts it and in fact; ``guaranteed_decrease``
and ``next_guarantee`` say what gradient descent is guaranteed to gain, in one step and from the start on.
"""

from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.loss.costs import Cost
from skip_conditioning.diagnostics.loss.probe_loss import loss_gradient, probe_metrics
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.probe import Probe, Reading
from skip_conditioning.diagnostics.networks.sharded import whole


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
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        targets: As for ``probe_loss.probe_metrics``.
        reading: How the probe is read, as for ``Probe``.

    Raises:
        InputError: The targets do not fit the outputs, or nothing can be differentiated.
    """

    def __init__(self, model: nn.Module, probe: Any, targets: Any = None, **reading: Unpack[Reading]) -> None:
        self._probe = Probe.of(probe, unwrap(model), targets, **reading)
        with measuring(model, self._probe, dtype=torch.float64) as probed:
            gradient = loss_gradient(probed.recording(), probed.probe)
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
        loss = probe_metrics(model, self._probe, dtype=torch.float64)["loss"].item()
        weights = {name: whole(parameter) for name, parameter in unwrap(model).named_parameters()}
        slope = sum(
            float((part * (weights[name].double() - self._weights[name])).sum())
            for name, part in self._gradient.items()
        )
        return Decrease(predicted=-self._scale * slope, observed=self._loss - loss)


def guaranteed_decrease(lr: Tensor, regularity: Tensor, cost_gradient_squared: Tensor) -> Tensor:
    """Lower bound of ``ℓ_t − ℓ_{t+1}`` for a step ``θ_{t+1} = θ_t − η∇ℓ``: ``η/2 · λ |∇c|²``.

    By the descent lemma the loss falls by at least ``η/2 · |∇ℓ|²`` where ``η ≤ 1/β``, β being a bound of the Hessian
    on the segment from ``θ_t`` to ``θ_{t+1}``; and ``|∇ℓ|² ≥ λ(DF) |∇c|²``.

    Args:
        lr: η, any shape.
        regularity: Lower bound λ of ``λ(DF)`` at ``θ_t``.
        cost_gradient_squared: ``|∇c|²`` at ``θ_t``.

    Source: docs/paper.md §2.3, §2.7.
    """
    return lr / 2 * regularity * cost_gradient_squared


def next_guarantee(guarantee: Tensor, lr: Tensor, regularity: Tensor, cost: Cost) -> Tensor:
    """Upper bound of ``ℓ_{t+1}`` from one of ``ℓ_t``: ``G_{t+1} = G_t − a·g(G_t)``, ``a = η/2 · λ``.

    g is the cost's `gradient_floor`. As ``ℓ ↦ ℓ − a·g(ℓ)`` does not decrease while ``a·g' ≤ 1``, ``ℓ_t ≤ G_t`` implies
    ``ℓ_{t+1} ≤ G_{t+1}``. With ``η ≤ 1/β`` it is so for both costs; a larger a is capped at ``1 / max g'``, with
    which the bound holds as well.

    Args:
        guarantee: ``G_t``, any shape.
        lr: η, at most 1/β.
        regularity: Lower bound λ of ``λ(DF)`` at ``θ_t``.
        cost: Of the outputs.

    Source: docs/paper.md §2.7.
    """
    gained = (lr / 2 * regularity).clamp(max=1 / cost.gradient_floor_slope)
    return guarantee - gained * cost.gradient_floor(guarantee)
