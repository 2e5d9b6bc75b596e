"""The loss on the probe: its value, its gradient, and the rate at which training along that lowers it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.loss.costs import IGNORED, class_dimension
from skip_conditioning.diagnostics.networks.isolation import require_finite
from skip_conditioning.diagnostics.networks.maps import TOTAL, check_map
from skip_conditioning.diagnostics.networks.measuring import ProbedModel, measuring
from skip_conditioning.diagnostics.networks.parameter_units import blocks_of, units_of
from skip_conditioning.diagnostics.networks.recording import Recording

#: Rounding in float64 is at most this many times that of float32, scaled by the units.
_ROUNDING_FACTOR = 32.0


def probe_metrics(model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Cross-entropy and accuracy for class indices, mean square error otherwise.

    Args:
        model: The model, left as it is.
        x: Probe inputs, shape ``(N, *input_shape)``.
        y: Class indices, for the last dimension of the logits or (as in PyTorch's losses) for the second, as the shapes
            tell (``costs.class_dimension``); or real targets in the logits' shape, or flattened.
        dtype: Precision of the measurement; None keeps the model's own.

    Returns:
        ``loss``, and ``accuracy`` for class indices, as scalars on the model's device.

    Raises:
        InputError: The targets do not fit the logits.
    """
    with measuring(model, x, dtype=dtype) as probed, torch.no_grad():
        return loss_metrics(probed.logits(), y, probed.x)


def rayleigh_quotients(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layers: Sequence[str] | str | None = None,
    batch_mode: str = "batch",
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """``∇cᵀ K_l ∇c / |∇c|²`` of each layer's share of the tangent kernel: the rate at which training lowers the loss.

    ``c`` is the loss on the probe as a function of the outputs, so that ``K_l ∇c`` is ``J_l`` times the gradient of the
    loss in the layer's parameters, and the quotient ``|∇_l ℓ|² / |∇c|²`` costs one gradient (MacDonald et al. 2023,
    section 2; docs/paper.md §2.4).

    Args:
        model: The model, left as it is.
        x: Probe inputs, shape ``(N, *input_shape)``.
        y: Targets, as for ``probe_metrics``.
        layers: As for ``tangent_kernel``.
        batch_mode: ``batch``; or ``sample``, for each sample's own loss and kernel.
        dtype: Precision of the derivatives; None keeps the model's.

    Returns:
        By layer and for ``total``; in ``sample`` mode by ``"layer[index]"``. NaN where the gradient ``∇c`` is zero.

    Raises:
        InputError: The targets do not fit the outputs.
    """
    check_map("kernel", batch_mode, dtype)
    with measuring(model, x, batch_mode=batch_mode, dtype=dtype) as probed:
        units = units_of(probed.model)
        blocks = blocks_of(probed.model, layers, units)
        quotients = {}
        for part in probed.parts():
            index = part.sample
            targets, mark = (y, "") if index is None else (y[index : index + 1], f"[{index}]")
            gradient = loss_gradient(part.recording(), targets, part.x)
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


def loss_gradient(recording: Recording, y: Tensor, x: Tensor) -> LossGradient:
    """The loss and its gradients, by one backward pass.

    Args:
        recording: A forward pass; to be used inside ``isolation.quiet``.
        y: Targets, as for ``probe_metrics``.
        x: The inputs of that pass.

    Raises:
        InputError: The targets do not fit the outputs.
        NonFiniteError: The gradient in the outputs holds NaN or infinity.
    """
    logits = recording.logits.detach().view(recording.output_shape).requires_grad_()
    loss = loss_metrics(logits, y, x)["loss"]
    slope = torch.autograd.grad(loss, logits)[0]
    require_finite(slope, "the gradient of the loss in the outputs")
    scale = slope.abs().max().clamp(min=torch.finfo(slope.dtype).tiny).double()
    outputs = (slope.double() / scale).reshape(recording.logits.shape)
    gradients = recording.gradients(outputs.to(logits.dtype))
    return LossGradient(
        loss=loss.item(),
        scale=scale.item(),
        outputs=outputs,
        parameters={parameter: part.double() for parameter, part in gradients.items()},
    )


def gradient_rounding(probed: ProbedModel, gradient: LossGradient, dtype: torch.dtype) -> float:
    """What rounding does to ``|DFᵀv|`` for a unit vector ``v``, measured in another precision along the gradient.

    Batch norm of few or nearly equal samples amplifies rounding far beyond what dimensions tell. How much shows in
    float32, and is as much less in float64 as the unit is smaller; derivatives in less than float64 are compared with
    those in float64.

    Args:
        probed: The model at the probe.
        gradient: The loss's, as measured.
        dtype: Precision of the gradient.
    """
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
    factor = _ROUNDING_FACTOR * torch.finfo(dtype).eps / torch.finfo(other).eps if lower else 2.0
    return factor * moved / max(float(gradient.outputs.norm()), torch.finfo(torch.float64).tiny)


def loss_metrics(logits: Tensor, y: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Loss, and accuracy for class indices, in autograd's graph.

    Args:
        logits: Outputs of any shape, samples first.
        y: Targets, as for ``probe_metrics``.
        x: The inputs.

    Returns:
        As ``probe_metrics``.

    Raises:
        InputError: The targets do not fit the logits.
    """
    try:
        y = y.to(logits.device)
        if y.is_floating_point():
            return {"loss": mse_loss(logits, _arranged_as(logits, y.to(logits.dtype)))}
        logits = logits.movedim(class_dimension(logits, y, x), -1)
        counted = y != IGNORED
        _require_classes(y[counted], logits.shape[-1])
        loss = cross_entropy(logits.flatten(0, -2), y.long().flatten())
        return {"loss": loss, "accuracy": (logits.argmax(-1) == y)[counted].double().mean()}
    except InputError:
        raise
    except (AttributeError, IndexError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the probe's targets do not fit the logits ({reason}); correct or leave them out") from error


def _arranged_as(logits: Tensor, y: Tensor) -> Tensor:
    """Real targets in the logits' shape, from which they may differ by dimensions of size 1 or by being flattened."""
    sizes = [[size for size in tensor.shape if size != 1] for tensor in (logits, y)]
    if sizes[0] != sizes[1] and min(logits.dim(), y.dim()) > 2:
        raise ValueError(f"real targets of shape {tuple(y.shape)} for logits of shape {tuple(logits.shape)}")
    return y.reshape(logits.shape)


def _require_classes(y: Tensor, classes: int) -> None:
    """Check class indices here: on a GPU an index out of bounds ends all use of the device."""
    if not len(y):
        raise ValueError(f"every class index is {IGNORED}, which cross-entropy passes over")
    wrong = y[(y < 0) | (y >= classes)]
    if len(wrong):
        raise ValueError(f"class index {int(wrong[0])} is out of bounds for {classes} classes")
