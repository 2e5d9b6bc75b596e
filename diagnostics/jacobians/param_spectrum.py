"""The ``param`` spectrum of a plain layer in closed form: a linear layer, a convolution, a normalisation, an embedding.

Output channel c of such a layer at position t (sample and pixel, or token) is ``Σ_d w[c, d] · a[t, d] + b[c]``: it
depends on the channel's own weights only, with the layer's activations as coefficients. So ``∂output/∂parameters`` is,
up to the order of its rows and columns, a direct sum over the G groups of channels, and over the C channels of each, of
one and the same matrix ``[A_g, 1]`` of shape ``(N·T, D + 1)`` (the letters are those of ``networks.parameter_rules``).
Its singular values are those of the G matrices, C times each; those of an embedding, whose activations are one-hot, are
square roots of how often each index occurs.

Whether a module is such a layer is not read from its class, as a subclass or a hook may do anything. It has to use its
parameters in one call, with nothing before the call that depends on them and nothing after it that changes a value; and
the closed form has to give the same ``Jᵀv`` as autograd for a random ``v``.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from skip_conditioning.diagnostics.jacobians.plain_layers import Channels, Embedding, PlainLayer
from skip_conditioning.diagnostics.jacobians.witness import NORMS
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.networks.parameter_rules import rule_for
from skip_conditioning.diagnostics.networks.recording import SIGNATURES, Use
from skip_conditioning.diagnostics.spectrum import Spectrum, values_floor

METHOD = "exact: closed form of a layer"

#: With more singular values than this a density says as much, and fits into a table.
_MOST_VALUES = 2**20


def param_spectrum(map: Map, *, memory_budget: int) -> Spectrum | None:
    """All singular values of the ``param`` map of a plain layer; None for any other, or beyond the memory budget.

    Layers with over a million singular values are left to the density as well.

    Cost: one forward and one backward pass of the layer, and ``O(G·N·T·D·min(N·T, D))``, whatever its width C.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        memory_budget: Bytes that activations, matrices and singular values may take.
    """
    start = time.perf_counter()
    if map.name != "param" or min(map.rows, map.cols) > _MOST_VALUES:
        return None
    layer = _plain_layer(map)
    if layer is None or layer.bytes > memory_budget:
        return None
    notes: list[str] = []
    values = layer.values(notes)
    if values is None:
        return None
    assert len(values) == min(map.rows, map.cols)
    return Spectrum.of_values(
        values,
        (map.rows, map.cols),
        map.point.dtype,
        floor=values_floor(values, map.point.dtype, layer.gram_side, NORMS * layer.error if map.reference else None),
        witness=layer.difference if map.reference else None,
        map=map.name,
        layer=map.layer,
        method=METHOD,
        seconds=time.perf_counter() - start,
        peak_bytes=layer.bytes,
        note="; ".join(notes),
    )


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a known function with arguments that depend on the parameters.

    Attributes:
        function: The function.
        arguments: Its arguments by name.
        output: The tensor it returned.
        version: That tensor's version when it was returned; a change in place raises it.
    """

    function: Any
    arguments: dict[str, Any]
    output: Tensor
    version: int


class _Watch(TorchFunctionMode):
    """Notes the calls of the functions in ``SIGNATURES`` that depend on the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = func(*args, **(kwargs or {}))
        if func in SIGNATURES and output.requires_grad:
            arguments = dict(zip(SIGNATURES[func], args, strict=False)) | (kwargs or {})
            self.calls.append(_Call(func, arguments, output, output._version))
        return output


def _plain_layer(map: Map) -> PlainLayer | None:
    """The layer that a map's function consists of, from one forward pass; None if there is more to it."""
    # A copy, as a layer may write into its weights (an embedding with max_norm does).
    parameters = map.point.detach().clone().requires_grad_()
    watch = _Watch()
    try:
        with torch.enable_grad(), watch:
            output = map.function(parameters)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None  # such as writing into a weight; the general engine can measure it, or says what is wrong
    if len(watch.calls) != 1 or not output.requires_grad:
        return None
    (call,) = watch.calls
    if call.output._version != call.version or not (output is call.output or torch.equal(output, call.output)):
        return None
    offsets = _offsets(call, parameters)
    return None if offsets is None else _layer_of(call, offsets, output, parameters, map)


def _layer_of(call: _Call, offsets: dict[str, int], output: Tensor, parameters: Tensor, map: Map) -> PlainLayer | None:
    """The layer of a call whose weight and bias begin at these offsets; None if its function has no closed form."""
    arguments = call.arguments
    options = {name: value for name, value in arguments.items() if name not in ("input", "weight", "bias")}
    weight = arguments.get("weight")
    shape = torch.Size() if weight is None else weight.shape
    # Which axis the samples run along makes no difference here: all positions of all samples are alike.
    use = Use(
        function=call.function,
        input=arguments["input"].detach(),
        weight=None,
        bias=None,
        weight_shape=shape,
        options=options,
        output_shape=call.output.shape,
        edge=get_gradient_edge(call.output),
        sample_axis=0,
    )
    if len(options.get("normalized_shape", ())) >= output.dim():
        return None
    if call.function in (functional.linear, functional.embedding) and len(shape) != 2:
        return None
    rule = rule_for([use], "weight" in offsets, "bias" in offsets)
    if rule is None:
        return None
    if call.function is functional.embedding:
        return Embedding(output, parameters, map, use.input, shape, options.get("padding_idx"))
    channels = rule.groups * rule.outputs
    sizes = {"weight": channels * rule.inputs, "bias": channels}
    if any(arguments[name].numel() != sizes[name] for name in offsets):
        return None
    return Channels(output, parameters, map, use, rule, offsets.get("weight"), offsets.get("bias"))


def _offsets(call: _Call, parameters: Tensor) -> dict[str, int] | None:
    """Where the trained ones of a call's weight and bias begin in the vector of parameters.

    None unless these are views of the vector that cover it, one after the other, and no other argument depends on it.
    """
    offsets: dict[str, int] = {}
    for name, value in call.arguments.items():
        if not isinstance(value, Tensor) or not value.requires_grad:
            continue
        if name not in ("weight", "bias") or value._base is not parameters or not value.is_contiguous():
            return None
        offsets[name] = int(value.storage_offset())
    end = 0
    for name in sorted(offsets, key=offsets.__getitem__):
        if offsets[name] != end:
            return None
        end += call.arguments[name].numel()
    return offsets if end == parameters.numel() else None
