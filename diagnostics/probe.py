"""The loss on the probe: its value, and the speed at which training along its gradient would lower it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from diagnostics.capture import logits_of, run
from diagnostics.errors import InputError
from diagnostics.isolation import State, quiet, unwrap
from diagnostics.kernel_units import blocks_of, units_of
from diagnostics.maps import TOTAL, check_map, probe_input
from diagnostics.recording import Recording


def probe_metrics(model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Cross-entropy and accuracy for class indices, mean square error otherwise.

    Args:
        model: The model, left as it is.
        x: Probe inputs, shape ``(N, *input_shape)``.
        y: Class indices, for the last dimension of the logits or (as in PyTorch's losses) for the second, or real
            targets with as many entries as the logits.
        dtype: Precision of the measurement; None keeps the model's own.

    Returns:
        ``loss``, and ``accuracy`` for class indices, as scalars on the model's device.

    Raises:
        InputError: The targets do not fit the logits.
    """
    model = unwrap(model)
    x = probe_input(x, model, dtype)
    with quiet(model, batch_mode="batch"), torch.no_grad():
        return _metrics(logits_of(run(model, State(model, dtype), (x,))), y)


def rayleigh_quotients(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layers: Sequence[str] | str | None = None,
    batch_mode: str = "batch",
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """``∇cᵀ K_l ∇c / |∇c|²`` of each layer's share of the tangent kernel: the speed that training actually feels.

    ``c`` is the loss on the probe as a function of the outputs, so that ``K_l ∇c`` is ``J_l`` times the gradient of the
    loss in the layer's parameters, and the quotient ``|∇_l ℓ|² / |∇c|²`` costs one gradient (MacDonald et al. 2023,
    section 2; PAPER.md, identity 4).

    Args:
        model: The model, left as it is.
        x: Probe inputs, shape ``(N, *input_shape)``.
        y: Targets, as for ``probe_metrics``.
        layers: As for ``kernel.tangent_kernel``.
        batch_mode: ``batch``; or ``sample``, for each sample's own loss and kernel.
        dtype: Precision of the derivatives; None keeps the model's.

    Returns:
        By layer and for ``total``; in ``sample`` mode by ``"layer[index]"``. NaN where the gradient ``∇c`` is zero.

    Raises:
        InputError: The targets do not fit the outputs.
    """
    check_map("kernel", batch_mode, dtype)
    model = unwrap(model)
    x = probe_input(x, model, dtype)
    single = batch_mode == "sample"
    with quiet(model, batch_mode=batch_mode):
        state, units = State(model, dtype), units_of(model)
        blocks = blocks_of(model, layers, units)
        found = {}
        for sample, batch in enumerate(x.split(1) if single else [x]):
            squares, size = _squares(Recording(model, state, batch), y[sample : sample + 1] if single else y)
            mark = f"[{sample}]" if single else ""
            for name, held in [*blocks.items(), (TOTAL, units)]:
                felt = sum(squares.get(one, 0.0) for unit in held for one in unit.parameters)
                found[f"{name}{mark}"] = felt / size if size > 0 else float("nan")
    return found


def _squares(recording: Recording, y: Tensor) -> tuple[dict[nn.Parameter, float], float]:
    """``|∇_p ℓ|²`` of every parameter, and ``|∇c|²``."""
    logits = recording.logits.detach().view(recording.output_shape).requires_grad_()
    slope = torch.autograd.grad(_metrics(logits, y)["loss"], logits)[0]
    slope = slope.double() / slope.abs().max().clamp(min=torch.finfo(slope.dtype).tiny)  # lest its square vanish
    gradients = recording.gradients(slope.to(logits.dtype).view_as(recording.logits))
    return {one: float((part.double() ** 2).sum()) for one, part in gradients.items()}, float((slope**2).sum())


def _metrics(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Loss, and accuracy for class indices, of outputs of any shape."""
    try:
        y = y.to(logits.device)
        if y.is_floating_point():
            return {"loss": mse_loss(logits, y.to(logits.dtype).reshape(logits.shape))}
        if logits.dim() > 2 and y.shape == (logits.shape[0], *logits.shape[2:]):
            logits = logits.movedim(1, -1)
        loss = cross_entropy(logits.flatten(0, -2), y.long().flatten())
        return {"loss": loss, "accuracy": (logits.argmax(-1) == y).double().mean()}
    except (AttributeError, IndexError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the probe's targets do not fit the logits ({reason}); correct or leave them out") from error
