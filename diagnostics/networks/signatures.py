"""What a model's forward pass takes: a batch of several parts is read by it."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, near_matches

#: Keys of a dictionary of inputs under which targets are kept.
TARGET_NAMES = ("labels", "label", "targets", "target")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def pair_means(batch: Sequence[Any], model: nn.Module, *, has_forward: bool) -> tuple[Any, Any]:
    """Inputs and targets (or None) of a tuple or list: positional inputs, with the targets last or without.

    A pair is inputs and targets, unless the forward pass cannot do without two inputs.

    Args:
        batch: The tuple or list.
        model: The unwrapped module.
        has_forward: Whether a function of the user's own calls the model, with all inputs as one argument.

    Raises:
        InputError: It can be read in two ways, or holds nothing.
    """
    if not batch:
        raise InputError("the probe is empty; give inputs, or a pair (inputs, targets)")
    if len(batch) == 1:
        return batch[0], None
    if len(batch) == 2 and (has_forward or not isinstance(batch[0], Tensor)):
        return batch[0], batch[1]
    needed, names, most = _positional(model)
    if has_forward:
        needed, most = 1, 1
    if len(batch) == 2 and needed < 2:
        if batch[1] is not None and most > 1:
            _require_no_mask(batch[0], batch[1], names[1] if len(names) > 1 else "", model)
        return batch[0], batch[1]
    as_inputs, with_targets = needed <= len(batch) <= most, needed <= len(batch) - 1 <= most
    if as_inputs and with_targets:
        raise InputError(
            f"a probe of {len(batch)} parts can be read in two ways, as {len(batch)} inputs of {type(model).__name__} "
            f"or as {len(batch) - 1} and targets; write Probe((a, b, ...)) or Probe((a, b, ...), targets)"
        )
    if with_targets:
        return tuple(batch[:-1]), batch[-1]
    return tuple(batch), None


def missing_or_unknown(inputs: dict[str, Any], model: nn.Module) -> tuple[dict[str, Any], str]:
    """The keyword inputs that the forward pass takes, and the name of targets that it does not take, or none.

    Raises:
        InputError: It lacks an argument that it needs, or holds one that it does not take.
    """
    parameters = _parameters(model)
    if parameters is None:
        return inputs, ""
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    known = [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    kept, targets = dict(inputs), ""
    for name in inputs:
        if name in known or open_ended:
            continue
        if name not in TARGET_NAMES:
            hint = near_matches(name, known) or f" It takes {', '.join(known)}."
            raise InputError(f"the forward pass of {type(model).__name__} takes no {name!r}; leave it out.{hint}")
        targets = name
        del kept[name]
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for parameter in parameters:
        if parameter.kind in by_name and parameter.default is inspect.Parameter.empty and parameter.name not in kept:
            raise InputError(
                f"the forward pass of {type(model).__name__} needs {parameter.name!r}, and the probe holds "
                f"{', '.join(kept) or 'no inputs'}; add it, or say how the model is called: "
                "forward=lambda model, batch: ..."
            )
    return kept, targets


def _parameters(model: nn.Module) -> list[inspect.Parameter] | None:
    try:
        return [*inspect.signature(model.forward).parameters.values()]
    except (TypeError, ValueError):
        return None


def _positional(model: nn.Module) -> tuple[int, list[str], float]:
    """How many positional inputs the forward pass needs, their names, and how many it takes at most."""
    parameters = _parameters(model)
    if parameters is None:
        return 1, [], float("inf")
    listed = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
    needed = sum(parameter.default is inspect.Parameter.empty for parameter in listed)
    endless = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    return needed, [parameter.name for parameter in listed], float("inf") if endless else len(listed)


def _require_no_mask(x: Any, y: Any, name: str, model: nn.Module) -> None:
    """Refuse a pair of inputs and a mask, which would be taken for targets."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return
    is_binary = not y.is_floating_point() and y.shape == x.shape[: y.dim()] and bool(((y == 0) | (y == 1)).all())
    if y.dtype == torch.bool or ("mask" in name and is_binary and y.dim() > 1):
        raise InputError(
            f"the second part of the probe, {str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}, looks "
            f"like the {name!r} of {type(model).__name__} and not like targets; write Probe((x, mask)) for two inputs, "
            "or Probe(x, y) for targets"
        )
