"""Which outputs of a model count: one tensor of what it returns, and maybe only some of its entries."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError, UnsupportedModelError
from skip_conditioning.diagnostics.networks.outputs import tensors_in

#: The class index that PyTorch's cross-entropy passes over; its mean is over the other samples.
IGNORED = -100


def choose_output(returned: Any, which: str | int | Callable[[Any], Tensor] | None = None) -> Tensor:
    """The tensor that counts of what a model returns.

    Args:
        returned: A tensor, tuple, dictionary, data class or object.
        which: A key or attribute, an index, or a function of it; None for the tensor itself, ``logits``, or the first
            real tensor that is no scalar.

    Raises:
        InputError: There is no such part.
        UnsupportedModelError: There is no real tensor.
    """
    if which is None:
        return _default_output(returned)
    part: Any = None
    if isinstance(which, str):
        part = returned.get(which) if isinstance(returned, Mapping) else getattr(returned, which, None)
    elif isinstance(which, int):
        parts = list(tensors_in(returned))
        part = parts[which] if -len(parts) <= which < len(parts) else None
    else:
        part = which(returned)
    if not isinstance(part, Tensor):
        raise InputError(
            f"output={which!r} is no tensor of what the model returns, {_contents(returned)}; name one that it returns"
        )
    if not part.is_floating_point():
        raise UnsupportedModelError(f"output={which!r} is {part.dtype}; choose a real tensor")
    return part


def _default_output(returned: Any) -> Tensor:
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if isinstance(logits, Tensor) and logits.is_floating_point():
        return logits
    real = [tensor for tensor in tensors_in(returned) if tensor.is_floating_point()]
    chosen = next((tensor for tensor in real if tensor.dim() > 0), real[0] if real else None)
    first = next(tensors_in(returned), None)
    if chosen is None or (isinstance(returned, Tensor) and not returned.is_floating_point()):
        kind = type(returned).__name__ if first is None else first.dtype
        raise UnsupportedModelError(
            f"the model returns {kind}; say which real tensor counts, as output=lambda returned: ..."
        )
    return chosen


def restrict(
    output: Tensor, which: Any, targets: Any, x: Tensor, attention_mask: Any, ignore_index: int = IGNORED
) -> Tensor:
    """Some entries of the outputs, samples first.

    Args:
        output: Shape ``(N, ..., K)``.
        which: As ``Probe.outputs``.
        targets: Class indices, for ``targets``.
        x: The first input.
        attention_mask: Shape ``(N, T)``, or None.
        ignore_index: The class index that counts nowhere.

    Raises:
        InputError: It does not fit the outputs.
    """
    if isinstance(which, str):
        if which == "last_token":
            return _last_token(output, attention_mask)
        if which == "targets":
            return _at_targets(output, targets, x, ignore_index)
        known = "last_token, targets, or give a slice, indices, a mask or a function"
        raise InputError(f"unknown outputs {which!r}; known are {known}")
    if isinstance(which, Tensor) and which.dtype == torch.bool:
        return _masked(output, which, "the mask of outputs")
    if callable(which):
        chosen = which(output)
        if not isinstance(chosen, Tensor) or chosen.dim() == 0 or len(chosen) != len(output):
            raise InputError(f"outputs must give a tensor with a row for each of {len(output)} samples")
        return chosen
    if isinstance(which, slice):
        return output[..., which]
    indices = torch.as_tensor([which] if isinstance(which, int) else _integers(which), device=output.device)
    if output.dim() < 2 or bool((indices >= output.shape[-1]).any()) or bool((indices < -output.shape[-1]).any()):
        raise InputError(f"outputs {which!r} do not fit outputs of shape {tuple(output.shape)}")
    return output[..., indices]


def _integers(which: Any) -> Any:
    if isinstance(which, Tensor) and not which.is_floating_point() and which.dim() == 1:
        return which
    if isinstance(which, Sequence | range) and len(which) and all(isinstance(index, int) for index in which):
        return list(which)
    raise InputError(
        f"outputs must be a slice, indices, a mask, 'last_token', 'targets' or a function; they are {which!r}"
    )


def _last_token(output: Tensor, attention_mask: Any) -> Tensor:
    if output.dim() < 3:
        raise InputError(f"outputs of shape {tuple(output.shape)} have no positions; leave outputs='last_token' out")
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != output.shape[:2]:
        return output[:, -1]
    positions = torch.arange(output.shape[1], device=output.device)
    last = (attention_mask.to(output.device).bool() * (positions + 1)).argmax(1)
    return output[torch.arange(len(output), device=output.device), last]


def _at_targets(output: Tensor, targets: Any, x: Tensor, ignore_index: int) -> Tensor:
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        raise InputError("outputs='targets' needs class indices; give the probe's targets too")
    y = targets.to(output.device)
    logits = output.movedim(class_dimension(output, y, x), -1)
    counted = y != ignore_index
    chosen = logits.gather(-1, torch.where(counted, y, 0).long()[..., None])[..., 0]
    return chosen if bool(counted.all()) else _masked(chosen, counted, "the targets that count")


def _masked(output: Tensor, mask: Tensor, name: str) -> Tensor:
    mask = mask.to(output.device)
    if mask.shape != output.shape[: mask.dim()] or mask.dim() == 0:
        raise InputError(f"{name}, shape {tuple(mask.shape)}, does not fit outputs of shape {tuple(output.shape)}")
    counts = mask.flatten(1).sum(1) if mask.dim() > 1 else mask.sum()[None]
    if mask.dim() == 1:
        raise InputError(f"{name} leaves out whole samples; leave them out of the probe instead")
    if not bool((counts == counts[0]).all()) or not int(counts[0]):
        raise InputError(
            f"{name} has {int(counts.min())} to {int(counts.max())} entries a sample; a map needs the same number, and "
            "at least one, of each: choose samples of equal length, or outputs='last_token'"
        )
    return output[mask].view(len(output), int(counts[0]), *output.shape[mask.dim() :])


def class_dimension(logits: Tensor, y: Tensor, x: Tensor) -> int:
    """The dimension of the logits along which class indices point: the last, or as in PyTorch's losses the second.

    Shapes decide, ``(N, *positions, K)`` or ``(N, K, *positions)`` for targets ``(N, *positions)``. Where they allow
    both, as many classes as positions, the last is taken for integer inputs of the targets' shape: language models.

    Args:
        logits: The network's outputs, samples first.
        y: Class indices.
        x: The inputs.

    Raises:
        InputError: The shapes fit both ways or neither.
    """
    last, second = y.shape == logits.shape[:-1], y.shape == logits.shape[:1] + logits.shape[2:]
    if last and (not second or logits.dim() == 2 or (x.shape == y.shape and not x.is_floating_point())):
        return logits.dim() - 1
    if second and not last:
        return 1
    shapes = f"class indices {tuple(y.shape)} for logits {tuple(logits.shape)}"
    if not last:
        raise InputError(f"the probe's targets do not fit the logits ({shapes}); correct or leave them out")
    raise InputError(
        f"the probe's targets fit the logits in two ways ({shapes}: the classes may be in the second dimension or the "
        "last); say which, as loss=lambda output, batch: ..., or leave the targets out"
    )


def _contents(returned: Any) -> str:
    if isinstance(returned, Mapping):
        return f"a {type(returned).__name__} of {', '.join(map(str, returned))}"
    return f"a {type(returned).__name__}"
