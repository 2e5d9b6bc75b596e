"""Maps: the differentiable functions of a network whose derivatives are measured.

``layer`` is ∂output/∂input of one module at its actual input, ``tail`` ∂logits/∂(its output), ``network``
∂logits/∂input, ``param`` ∂output/∂(its parameters) and ``kernel`` ∂logits/∂(its parameters), whose Gram matrix is
the module's share of the tangent kernel (layer ``total`` is the whole of it).
"""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import (
    InputError,
    LayerCallError,
    UnknownLayerError,
    UnsupportedModelError,
    near_matches,
)
from skip_conditioning.diagnostics.networks.capture import (
    Call,
    ForwardPass,
    first_call,
    named_call,
    run,
    run_model,
)
from skip_conditioning.diagnostics.networks.isolation import State, require_finite
from skip_conditioning.diagnostics.networks.layer_names import output_index, split_call
from skip_conditioning.diagnostics.networks.outputs import first_tensor, with_floating
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.diagnostics.networks.reference import Reference, Target

MAPS = ("layer", "tail", "network", "param", "kernel")
BATCH_MODES = ("batch", "sample")

#: The layer of the ``kernel`` map that stands for all parameters of the model.
TOTAL = "total"


@dataclass(frozen=True)
class Map:
    """A differentiable function at a point.

    Attributes:
        name: One of ``MAPS``.
        layer: The module's dotted name, ``network`` or ``total``.
        function: Takes a tensor shaped like ``point``; differentiable by autograd.
        point: Where the derivative is taken; floating, detached.
        output_shape: Shape of the function's value, samples first.
        widest: Entries of the largest tensor between point and output, which memory is planned by.
        installed: A context for backward passes: a gradient checkpoint runs a part of the model again, which needs the
            weights that the forward pass had.
        target: What ``reference`` needs to know of the map.
        reference: Random products by plain autograd; None for a function that is no module's.
        note: What a reader of its spectrum should know.
    """

    name: str
    layer: str
    function: Callable[[Tensor], Tensor]
    point: Tensor
    output_shape: torch.Size
    widest: int
    installed: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    target: Target | None = None
    reference: Reference | None = None
    note: str = ""

    @property
    def rows(self) -> int:
        """Rows of the Jacobian: entries of the output."""
        return self.output_shape.numel()

    @property
    def cols(self) -> int:
        """Columns of the Jacobian: entries of the point."""
        return self.point.numel()


def check_map(name: str, batch_mode: str, dtype: torch.dtype | None = None) -> None:
    """Raise ``InputError`` for an unknown map or batch mode, or a dtype without derivatives."""
    for kind, value, names in (("map", name, MAPS), ("batch_mode", batch_mode, BATCH_MODES)):
        if value not in names:
            raise InputError(f"unknown {kind} {value!r}; known are {', '.join(names)}.{near_matches(value, names)}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype must be a floating torch.dtype such as torch.float64, or None; it is {dtype!r}")


def network_map(model: nn.Module, state: State, probe: Probe, forward: ForwardPass) -> Map:
    """The outputs as a function of the probe's real inputs, those that they depend on."""
    tensors = probe.tensors

    def outputs(replaced: dict[int, Tensor]) -> Tensor:
        return probe.outputs_of(run_model(model, state, probe.with_tensors(replaced)))

    real = probe.differentiable
    if not real:
        kinds = ", ".join(sorted({_kind(tensor) for tensor in tensors}))
        raise UnsupportedModelError(
            f"the network map has an input of {kinds}, which has no derivative; measure 'tail' or 'layer' instead"
        )
    parts = _parts_that_count({index: tensors[index] for index in real}, outputs)
    point, function = _joined({part: tensors[part] for part in parts}, outputs)
    target = functools.partial(Target, parts=parts)
    value = probe.outputs_of(forward.output)
    network = _finish("network", "network", function, point, value, forward.widest(), target)
    note = f"of input tensors {', '.join(map(str, parts))} of {len(tensors)}" if len(tensors) > 1 else ""
    return replace(network, note=note)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype}{'' if tensor.layout is torch.strided else ' (sparse)'}"


def layer_map(model: nn.Module, state: State, probe: Probe, layer: str, forward: ForwardPass) -> Map:
    """A module's output as a function of its first input, at the named call."""
    call = named_call(layer, forward)
    module = model.get_submodule(split_call(layer)[0])
    point, arguments_with = _first_input(layer, call)

    def function(point: Tensor) -> Tensor:
        args, kwargs = arguments_with(point)
        return _real_output(layer, run(module, state, args, kwargs, moment=call.moment))

    value = _real_output(layer, call.output)
    target = functools.partial(Target, module=module, call=call.number, in_place=call.in_place)
    return _finish("layer", layer, function, point, value, forward.widest(call.began, call.ended), target)


def tail_map(model: nn.Module, state: State, probe: Probe, layer: str, forward: ForwardPass) -> Map:
    """The logits as a function of what a module returns, at the named call."""
    call = named_call(layer, forward)
    module = model.get_submodule(split_call(layer)[0])
    if not call.outputs:
        raise UnsupportedModelError(f"layer {layer!r} returns no real tensor; choose a module that does")

    def logits(outputs: dict[int, Tensor], fill_with_nan: bool = False) -> Tensor:
        """The logits with some of the module's floating output tensors replaced."""
        count = 0

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal count
            count += 1
            if count != call.number:
                return None
            if fill_with_nan and (changed := first_tensor(output)) is not None:
                changed.fill_(torch.nan)
            return with_floating(output, {index: tensor.clone() for index, tensor in outputs.items()})

        handle = module.register_forward_hook(replace)
        try:
            return probe.outputs_of(run_model(model, state, probe))
        finally:
            handle.remove()

    if call.in_place:
        with torch.no_grad():
            # What the module returns is replaced; other uses of the tensor it changed are not, and show as NaN here.
            if bool(torch.isnan(logits(dict(enumerate(call.outputs)), fill_with_nan=True)).any()):
                raise UnsupportedModelError(
                    f"layer {layer!r} works in place on a tensor that is used again; "
                    "set inplace=False, or measure another layer"
                )
    named = _named_part(layer, call)
    parts = _parts_that_count(dict(enumerate(call.outputs)), logits) if named is None else (named,)
    point, function = _joined({part: call.outputs[part] for part in parts}, logits)
    target = functools.partial(Target, module=module, call=call.number, parts=parts)
    tail = _finish("tail", layer, function, point, probe.outputs_of(forward.output), forward.widest(call.ended), target)
    note = f"of output tensors {', '.join(map(str, parts))} of {len(call.outputs)}" if len(call.outputs) > 1 else ""
    return replace(tail, note=note)


def _named_part(layer: str, call: Call) -> int | None:
    """Which of a module's floating output tensors is named, as in ``"rnn:1"``; None if none is."""
    part = output_index(layer)
    if part is not None and part >= len(call.outputs):
        raise UnknownLayerError(f"layer {layer!r}: the module returns {len(call.outputs)} floating tensor(s)")
    return part


def _joined(
    tensors: dict[int, Tensor], outputs: Callable[[dict[int, Tensor]], Tensor]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Some tensors as one point, and the outputs as a function of it; a single tensor as it is.

    Args:
        tensors: By their index.
        outputs: The outputs with these tensors replaced.
    """
    if len(tensors) == 1:
        ((part, tensor),) = tensors.items()
        return tensor, lambda point: outputs({part: point})
    sizes = [tensor.numel() for tensor in tensors.values()]

    def function(point: Tensor) -> Tensor:
        pieces = zip(tensors.items(), point.split(sizes), strict=True)
        return outputs({part: piece.view(tensor.shape).to(tensor.dtype) for (part, tensor), piece in pieces})

    return torch.cat([tensor.flatten() for tensor in tensors.values()]), function


def _parts_that_count(tensors: dict[int, Tensor], outputs: Callable[[dict[int, Tensor]], Tensor]) -> tuple[int, ...]:
    """Which of some tensors the outputs depend on, by their index."""
    if len(tensors) == 1:
        return (*tensors,)
    points = {index: tensor.detach().requires_grad_() for index, tensor in tensors.items()}
    with torch.enable_grad():
        value = outputs(points)
    if not value.requires_grad:
        return (next(iter(tensors)),)  # refused as constant when it is measured
    gradients = torch.autograd.grad(value, list(points.values()), torch.ones_like(value), allow_unused=True)
    pairs = zip(tensors, gradients, strict=True)
    return tuple(index for index, gradient in pairs if gradient is not None) or (next(iter(tensors)),)


def param_map(model: nn.Module, state: State, probe: Probe, layer: str, forward: ForwardPass) -> Map:
    """A module's output as a function of its trainable parameters, at the named call."""
    call = named_call(layer, forward)
    module = model.get_submodule(split_call(layer)[0])
    point, replace, parameters = flat_parameters(module, state, layer)

    def function(point: Tensor) -> Tensor:
        return _real_output(layer, run(module, state, call.args, call.kwargs, replace(point), call.moment))

    value = _real_output(layer, call.output)
    target = functools.partial(Target, module=module, call=call.number, in_place=call.in_place, parameters=parameters)
    return _finish("param", layer, function, point, value, forward.widest(call.began, call.ended), target)


def kernel_map(model: nn.Module, state: State, probe: Probe, layer: str, forward: ForwardPass) -> Map:
    """The logits as a function of a module's trainable parameters, or of all of them for ``total``."""
    name = split_call(layer)[0]
    module = model if layer == TOTAL else model.get_submodule(name)
    point, replace, parameters = flat_parameters(module, state, layer)

    def function(point: Tensor) -> Tensor:
        return probe.outputs_of(run_model(model, state, probe, replace(point)))

    # No call needs to be named: where a module is used twice, the kernel includes the cross terms. Nor made: a module's
    # weights may be used by another one.
    began = 0
    if layer != TOTAL and forward.calls[name]:
        began = forward.calls[name][0].began
    elif layer != TOTAL and not _depends_on(function, point):
        first_call(layer, forward)  # raises

    target = functools.partial(Target, parameters=parameters)
    return _finish("kernel", layer, function, point, probe.outputs_of(forward.output), forward.widest(began), target)


def _depends_on(function: Callable[[Tensor], Tensor], point: Tensor) -> bool:
    """Whether a function has a derivative at a point."""
    leaf = point.detach().requires_grad_()
    with torch.enable_grad():
        value = function(leaf)
    return value.requires_grad and torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] is not None


def flat_parameters(
    module: nn.Module, state: State, layer: str
) -> tuple[Tensor, Callable[[Tensor], dict[nn.Parameter, Tensor]], tuple[nn.Parameter, ...]]:
    """The module's trainable parameters as one vector, a function from such a vector to the parameters, and these."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise LayerCallError(f"layer {layer!r} has no trainable parameters; choose one that has, or unfreeze it")
    sizes = [parameter.numel() for parameter in parameters]

    def replace(point: Tensor) -> dict[nn.Parameter, Tensor]:
        # The vector has the highest of mixed precisions; each parameter gets its own back.
        pieces = zip(parameters, point.split(sizes), strict=True)
        parts = {parameter: piece.view(parameter.shape).to(state[parameter].dtype) for parameter, piece in pieces}
        # A forward pass can write into a weight, but not into a part of the vector.
        return {parameter: part.clone() if state.is_written(parameter) else part for parameter, part in parts.items()}

    point = torch.cat([state[parameter].reshape(-1) for parameter in parameters])
    return point, replace, tuple(parameters)


def _first_input(layer: str, call: Call) -> tuple[Tensor, Callable[[Tensor], tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The first tensor among a call's arguments, and a function that gives the arguments with another in its place."""
    values = (*call.args, *call.kwargs.values())
    first = next((value for value in values if isinstance(value, Tensor)), None)
    if first is None:
        raise UnsupportedModelError(f"layer {layer!r} is called without a tensor; choose a module with a tensor input")
    if not first.is_floating_point():
        raise UnsupportedModelError(
            f"layer {layer!r} has an input of {first.dtype}, which has no derivative; measure its 'tail' map instead"
        )

    def arguments_with(point: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = tuple(point if value is first else value for value in call.args)
        return args, {key: point if value is first else value for key, value in call.kwargs.items()}

    return first, arguments_with


def _real_output(layer: str, output: Any) -> Tensor:
    tensor = first_tensor(output)
    if tensor is None or not tensor.is_floating_point():
        raise UnsupportedModelError(f"layer {layer!r} returns no real tensor; choose a module that does")
    return tensor


def _finish(
    name: str,
    layer: str,
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    value: Tensor,
    widest: int,
    target: Callable[..., Target],
) -> Map:
    """A map from its function, its point, the function's value there and the largest tensor on the way."""
    if not point.is_floating_point():
        raise UnsupportedModelError(
            f"the {name} map has an input of {point.dtype}, which has no derivative; measure 'tail' or 'layer' instead"
        )
    if not point.numel() or not value.numel():
        raise UnsupportedModelError(f"the {name} map of {layer!r} has no entries; choose another layer")
    require_finite(value, f"the output of the {name} map of {layer!r}")
    described = target(layer=layer, rows=value.numel(), dtype=point.dtype)
    return Map(name, layer, function, point, value.shape, max(point.numel(), widest), target=described)
