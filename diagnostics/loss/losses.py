"""The loss on a probe: the model's own, one of those with a name, or a function of the user's."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.networks.output_choice import class_dimension
from skip_conditioning.diagnostics.networks.probe import Probe


def loss_metrics(returned: Any, probe: Probe) -> dict[str, Tensor]:
    """Loss, and accuracy for class indices, in autograd's graph.

    Args:
        returned: What the model returns at the probe.
        probe: With targets, or a loss that does without.

    Returns:
        ``loss``, and ``accuracy`` where the targets are class indices or, for ``bce``, zeros and ones.

    Raises:
        InputError: The targets do not fit the outputs, or are missing; the loss is no scalar.
    """
    if callable(probe.loss):
        return {"loss": _of_function(probe.loss, returned, probe)}
    own = _own_loss(returned) if probe.loss is None and has_own_targets(probe) else None
    if own is not None:
        return {"loss": own}
    return named_loss(probe.output_of(returned), probe)


def depends_on_outputs_alone(returned: Any, probe: Probe) -> bool:
    """Whether the loss is one of those with a name, a function of the outputs and the targets."""
    is_own = probe.loss is None and has_own_targets(probe) and _own_loss(returned) is not None
    return not callable(probe.loss) and not is_own


def has_own_targets(probe: Probe) -> bool:
    """Whether the model is called with the targets too, so that it may return a loss of its own."""
    return isinstance(probe.inputs, dict) and any(value is probe.targets for value in probe.inputs.values())


def named_loss(logits: Tensor, probe: Probe) -> dict[str, Tensor]:
    """As ``loss_metrics``, of the outputs: ``probe.loss``, or the one that the targets stand for.

    Args:
        logits: Outputs of any shape, samples first.
        probe: With targets; ``causal_lm`` takes the token ids where there are none.

    Raises:
        InputError: The targets do not fit the outputs, or are missing.
    """
    y = probe.first if probe.targets is None and probe.loss == "causal_lm" else probe.targets
    if not isinstance(y, Tensor):
        kind = "missing" if y is None else f"a {type(y).__name__}"
        raise InputError(
            f"the probe's targets do not fit the logits: they are {kind}; give a tensor, as probe=(inputs, targets), "
            "or loss=lambda output, batch: ..."
        )
    try:
        return _of_name(logits, y.to(logits.device), probe)
    except InputError:
        raise
    except (AttributeError, IndexError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the probe's targets do not fit the logits ({reason}); correct or leave them out") from error


def _of_name(logits: Tensor, y: Tensor, probe: Probe) -> dict[str, Tensor]:
    if probe.loss == "bce":
        y = _arranged_as(logits, y)
        accuracy = ((logits > 0) == (y > 0.5)).double().mean()
        return {"loss": functional.binary_cross_entropy_with_logits(logits, y.to(logits.dtype)), "accuracy": accuracy}
    if probe.loss == "mse" or (probe.loss is None and y.is_floating_point()):
        return {"loss": functional.mse_loss(logits, _arranged_as(logits, y.to(logits.dtype)))}
    if y.is_floating_point():
        raise InputError(f"{probe.loss} needs class indices; the targets are {str(y.dtype).removeprefix('torch.')}")
    if probe.loss == "causal_lm":
        if logits.dim() != 3 or y.shape != logits.shape[:2]:
            shapes = f"targets {tuple(y.shape)} for logits {tuple(logits.shape)}"
            raise InputError(f"causal_lm needs logits (N, T, V) and token ids (N, T); these are {shapes}")
        logits, y = logits[:, :-1], y[:, 1:]
        mask = probe.inputs.get("attention_mask") if isinstance(probe.inputs, dict) else None
        if probe.targets is None and isinstance(mask, Tensor):
            y = torch.where(mask[:, 1:].bool().to(y.device), y, probe.ignore_index)
    else:
        logits = logits.movedim(class_dimension(logits, y, probe.first), -1)
    counted = y != probe.ignore_index
    _require_classes(y[counted], logits.shape[-1], probe.ignore_index)
    loss = functional.cross_entropy(logits.flatten(0, -2), y.long().flatten(), ignore_index=probe.ignore_index)
    return {"loss": loss, "accuracy": (logits.argmax(-1) == y)[counted].double().mean()}


def _of_function(loss: Any, returned: Any, probe: Probe) -> Tensor:
    name = getattr(loss, "__name__", type(loss).__name__)
    arguments: tuple[Any, Any] = (returned, probe.batch)
    if isinstance(loss, nn.Module):
        logits = probe.output_of(returned)
        arguments = (logits, probe.targets)
        loss = copy.deepcopy(loss).to(logits)  # its weights of classes in the precision of the measurement
    try:
        value = loss(*arguments)
    except Exception as error:  # whatever a user's function raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"the loss {name!r} failed on (output, batch), a {type(arguments[0]).__name__} and a "
            f"{type(arguments[1]).__name__}: {reason}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(f"the loss {name!r} returns {kind}; return one real number, such as the mean")
    return value.reshape(())


def _own_loss(returned: Any) -> Tensor | None:
    loss = returned.get("loss") if isinstance(returned, Mapping) else getattr(returned, "loss", None)
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point() else None


def _arranged_as(logits: Tensor, y: Tensor) -> Tensor:
    """Real targets in the logits' shape, from which they may differ by dimensions of size 1 or by being flattened."""
    sizes = [[size for size in tensor.shape if size != 1] for tensor in (logits, y)]
    if sizes[0] != sizes[1] and min(logits.dim(), y.dim()) > 2:
        raise ValueError(f"real targets of shape {tuple(y.shape)} for logits of shape {tuple(logits.shape)}")
    return y.reshape(logits.shape)


def _require_classes(y: Tensor, classes: int, ignore_index: int) -> None:
    """Check class indices here: on a GPU an index out of bounds ends all use of the device."""
    if not len(y):
        raise ValueError(f"every class index is {ignore_index}, which cross-entropy passes over")
    wrong = y[(y < 0) | (y >= classes)]
    if len(wrong):
        raise ValueError(f"class index {int(wrong[0])} is out of bounds for {classes} classes")
