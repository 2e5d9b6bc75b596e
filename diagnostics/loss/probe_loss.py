"""The loss on the probe: its value, its gradient, and the rate at which training along that lowers it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.loss.losses import depends_on_outputs_alone, loss_metrics, named_loss
from skip_conditioning.diagnostics.networks.isolation import require_finite, unwrap
from skip_conditioning.diagnostics.networks.maps import TOTAL, check_map
from skip_conditioning.diagnostics.networks.measuring import ProbedModel, measuring
from skip_conditioning.diagnostics.networks.parameter_units import blocks_of, units_of
from skip_conditioning.diagnostics.networks.probe import Probe, Reading
from skip_conditioning.diagnostics.networks.recording import Recording

#: Rounding in float64 is at most this many times that of float32, scaled by the units.
_ROUNDING_FACTOR = 32.0


def probe_metrics(
    model: nn.Module,
    probe: Any,
    targets: Any = None,
    *,
    dtype: torch.dtype | None = None,
    **reading: Unpack[Reading],
) -> dict[str, Tensor]:
    """The loss of a probe: by default cross-entropy and accuracy for class indices, mean square error otherwise.

    Args:
        model: The model, left as it is.
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        targets: Class indices, for the last dimension of the logits or (as in PyTorch's losses) for the second, as the
            shapes tell (``output_choice.class_dimension``); or real targets in the logits' shape, or flattened. None
            takes those of the probe.
        dtype: Precision of the measurement; None keeps the model's own.
        reading: How the probe is read, as for ``Probe``.

    Returns:
        ``loss``, and ``accuracy`` for class indices, as scalars on the model's device.

    Raises:
        InputError: The targets do not fit the logits.
    """
    probe = Probe.of(probe, unwrap(model), targets, **reading)
    with measuring(model, probe, dtype=dtype) as probed, torch.no_grad():
        return loss_metrics(probed.returned(), probed.probe)


def rayleigh_quotients(
    model: nn.Module,
    probe: Any,
    targets: Any = None,
    *,
    layers: Sequence[str] | str | None = None,
    batch_mode: str = "batch",
    dtype: torch.dtype | None = None,
    **reading: Unpack[Reading],
) -> dict[str, float]:
    """``∇cᵀ K_l ∇c / |∇c|²`` of each layer's share of the tangent kernel: the rate at which training lowers the loss.

    ``c`` is the loss on the probe as a function of the outputs, so that ``K_l ∇c`` is ``J_l`` times the gradient of the
    loss in the layer's parameters, and the quotient ``|∇_l ℓ|² / |∇c|²`` costs one gradient (MacDonald et al. 2023,
    section 2; docs/paper.md §2.4).

    Args:
        model: The model, left as it is.
        probe: As for ``probe_metrics``.
        targets: Likewise.
        layers: As for ``tangent_kernel``.
        batch_mode: ``batch``; or ``sample``, for each sample's own loss and kernel.
        dtype: Precision of the derivatives; None keeps the model's.
        reading: How the probe is read, as for ``Probe``.

    Returns:
        By layer and for ``total``; in ``sample`` mode by ``"layer[index]"``. NaN where the gradient ``∇c`` is zero.

    Raises:
        InputError: The targets do not fit the outputs.
    """
    check_map("kernel", batch_mode, dtype)
    probe = Probe.of(probe, unwrap(model), targets, **reading)
    with measuring(model, probe, batch_mode=batch_mode, dtype=dtype) as probed:
        units = units_of(probed.model)
        blocks = blocks_of(probed.model, layers, units)
        quotients = {}
        for part in probed.parts():
            mark = "" if part.sample is None else f"[{part.sample}]"
            gradient = loss_gradient(part.recording(), part.probe)
            squares, size = gradient.squares(), float((gradient.outputs**2).sum())
            for name, held in [*blocks.items(), (TOTAL, units)]:
                square = sum(squares.get(parameter, 0.0) for unit in held for parameter in unit.parameters)
                quotients[f"{name}{mark}"] = square / size if size > 0 else float("nan")
    return quotients


@dataclass(frozen=True)
class LossGradient:
    """The loss of a forward pass and its gradients, divided by ``scale`` to keep squares of tiny ones.

    Attributes:
        loss: ``c(F)``.
        scale: Largest entry of ``|∇c|``, or the smallest number of its precision where that is zero.
        outputs: ``∇c / scale``, shape ``(N, O)``, float64.
        parameters: ``∇ℓ / scale`` for every trainable parameter that the outputs depend on, float64.
    """

    loss: float
    scale: float
    outputs: Tensor
    parameters: dict[nn.Parameter, Tensor]

    def squares(self) -> dict[nn.Parameter, float]:
        """``|∇_p ℓ / scale|²`` of every parameter."""
        return {parameter: float((part**2).sum()) for parameter, part in self.parameters.items()}


def loss_gradient(recording: Recording, probe: Probe) -> LossGradient:
    """The loss and its gradients, by one backward pass.

    Args:
        recording: A forward pass; to be used inside ``isolation.quiet``.
        probe: That of the pass, with targets.

    Raises:
        InputError: The targets do not fit the outputs, or only some of the outputs count.
        NonFiniteError: The gradient in the outputs holds NaN or infinity.
    """
    if probe.outputs is not None:
        raise InputError("the loss is one of all outputs, and the probe's `outputs` leave some out; give it none")
    if depends_on_outputs_alone(recording.returned, probe):
        logits = recording.logits.detach().view(recording.output_shape).requires_grad_()
        loss = named_loss(logits, probe)["loss"]
        slope = torch.autograd.grad(loss, logits)[0]
    else:
        logits = probe.output_of(recording.returned)
        loss = loss_metrics(recording.returned, probe)["loss"]
        slope = _slope(loss, logits)
    require_finite(slope, "the gradient of the loss in the outputs")
    scale = slope.abs().max().clamp(min=torch.finfo(slope.dtype).tiny).double()
    outputs = (slope.double() / scale).reshape(recording.logits.shape)
    gradients = recording.gradients(outputs.to(logits.dtype))
    return LossGradient(
        loss=float(loss.detach()),
        scale=scale.item(),
        outputs=outputs,
        parameters={parameter: part.double() for parameter, part in gradients.items()},
    )


def _slope(loss: Tensor, logits: Tensor) -> Tensor:
    """The gradient of a loss in the outputs that it was computed from."""
    slope = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)[0] if loss.requires_grad else None
    if slope is None:
        raise InputError(
            "the loss does not depend on the outputs that count; name those that it does, as output='logits'"
        )
    return slope.detach()


def gradient_rounding(probed: ProbedModel, gradient: LossGradient, recording: Recording) -> float:
    """What rounding does to ``|DFᵀv|`` for a unit vector ``v``, measured in another precision along the gradient.

    Batch norm of few or nearly equal samples amplifies rounding far beyond what dimensions tell. How much shows in
    float32, and is as much less in float64 as the unit is smaller; derivatives in less than float64 are compared with
    those in float64.

    Args:
        probed: The model at the probe.
        gradient: The loss's, as measured.
        recording: The forward pass that it was taken of.
    """
    dtype = recording.logits.dtype
    lower = dtype == torch.float64
    other = torch.float32 if lower else torch.float64
    try:
        again = probed.in_dtype(other).recording().gradients(gradient.outputs.to(other))
        squares = [float(((part - again[key]) ** 2).sum()) for key, part in gradient.parameters.items()]
        moved = math.sqrt(sum(squares))
    except (InputError, RuntimeError):
        moved = math.nan
    if not math.isfinite(moved):  # beyond the range of float32 all that is known is that some digits are left
        moved = math.sqrt(sum(gradient.squares().values()))
    factor = _ROUNDING_FACTOR * recording.eps / torch.finfo(other).eps if lower else 2.0
    return factor * moved / max(float(gradient.outputs.norm()), torch.finfo(torch.float64).tiny)
