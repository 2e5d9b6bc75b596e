"""Why a Jacobian cannot be surjective: the operation that all of a layer passes through and that loses directions.

The rank of a composition is at most that of any operation which every path takes. So each operation of the layer's
graph that has a known rank is examined, and counts where no path (no skip) leads around it: a proof with a number and
a module, not a guess from the layer's type.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.networks.recording import SIGNATURES

_CONVOLUTIONS = frozenset({functional.conv1d, functional.conv2d, functional.conv3d})

#: Functions of single entries that are flat somewhere; each takes its input first.
_FLAT_SOMEWHERE = {
    functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, functional.relu6, functional.hardtanh,
    functional.threshold, functional.hardswish, functional.hardsigmoid, torch.clamp, Tensor.clamp, Tensor.clamp_,
    Tensor.clamp_min, torch.clamp_min, Tensor.abs, torch.abs,
}  # fmt: skip

#: Weights with more entries than this are taken to have full rank rather than decomposed.
_LARGEST_WEIGHT = 2**22


@dataclass(frozen=True)
class RankLimit:
    """An upper bound of the rank of a Jacobian, and where it comes from.

    Attributes:
        rank: The bound.
        cause: One of ``expansion``, ``few parameters``, ``bottleneck``, ``dead units``, ``batch norm``,
            ``layer norm``, ``group norm``, ``(strided) 1×1 convolution``, ``weight``, ``inputs``, ``constant``.
        explanation: One line with the numbers and the module.
    """

    rank: int
    cause: str
    explanation: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.explanation}"


def rank_limit(model: nn.Module, map: Map) -> RankLimit | None:
    """What limits the rank of a map's Jacobian most; None if its shape and graph show no limit under its rows.

    Args:
        model: The unwrapped module; for the names of its modules.
        map: The map; to be used inside ``isolation.quiet``.
    """
    leaf = map.point.detach().clone().requires_grad_()
    watch = _Watch(model)
    with torch.enable_grad(), watch.names(), watch:
        output = map.function(leaf)
    limits = [limit for limit, node in watch.limits if limit.rank < map.rows and _is_on_every_path(node, output, leaf)]
    if map.cols < map.rows:
        limits = [_by_shape(map), *limits]
    if not output.requires_grad:
        limits = [RankLimit(0, "constant", "the output does not depend on it")]
    return min(limits, key=lambda limit: limit.rank, default=None)


def _by_shape(map: Map) -> RankLimit:
    if map.name == "param":
        return RankLimit(map.cols, "few parameters", f"{map.cols} parameters for {map.rows} outputs")
    return RankLimit(map.cols, "expansion", f"{map.rows} outputs of {map.cols} inputs")


def _is_on_every_path(node: Any, output: Tensor, leaf: Tensor) -> bool:
    """Whether the graph has no path from an output to a leaf that avoids a node."""
    goal = leaf.view_as(leaf).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    seen, waiting = {node}, [output.grad_fn]
    while waiting:
        current = waiting.pop()
        if current is None or current in seen:
            continue
        if current is goal:
            return False
        seen.add(current)
        waiting += [following for following, _ in current.next_functions]
    return True


class _Watch(TorchFunctionMode):
    """Notes the operations on what depends on the point, each with the rank that its derivative can have at most."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.limits: list[tuple[RankLimit, Any]] = []
        self._model, self._path = model, [""]

    def names(self) -> "_Names":
        """A context in which the module that is under way is known."""
        return _Names(self._model, self._path)

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.requires_grad]
        first = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("input")
        # In-place functions overwrite what their derivative is taken at.
        alone = func in _FLAT_SOMEWHERE and len(inputs) == 1 and inputs[0] is first
        kept = first.detach().clone() if alone else None
        output = func(*args, **kwargs)
        if inputs and isinstance(output, Tensor) and output.grad_fn is not None:
            given = dict(zip(SIGNATURES.get(func, ()), args, strict=False)) | kwargs
            flat = [_active_units(func, (kept, args[1:], kwargs), self._current_module())] if kept is not None else []
            limits = [_entries(output, self._current_module()), *flat, *self._limits(func, given, inputs, output)]
            self.limits += [(limit, output.grad_fn) for limit in limits]
        return output

    def _limits(
        self, func: Callable[..., Any], given: dict[str, Any], inputs: list[Tensor], output: Tensor
    ) -> Iterator[RankLimit]:
        """What is known of an operation, given which of its arguments depend on the point."""
        module = self._current_module()
        active = {name for name, value in given.items() if any(value is tensor for tensor in inputs)}
        if func is functional.batch_norm and given.get("training") and active == {"input"}:
            yield _normalised(given["input"], given.get("weight"), module)
        elif func in (functional.layer_norm, functional.group_norm) and active == {"input"}:
            yield _normalised_rows(func, given, module)
        elif func is functional.linear and given["weight"].dim() == 2:
            if active == {"input"}:
                yield _by_weight(given["weight"], output, module)
            elif "input" not in active and "weight" in active:
                yield _by_inputs(given["input"], "bias" in active, output, module)
        elif func in _CONVOLUTIONS and active == {"input"} and _is_pointwise(given["weight"], output):
            yield _of_pointwise_convolution(given, output, module)

    def _current_module(self) -> str:
        return self._path[-1] or type(self._model).__name__


class _Names:
    """While entered, keeps the path of the module whose forward pass is under way at the end of a list."""

    def __init__(self, model: nn.Module, path: list[str]) -> None:
        self._model, self._path, self._handles = model, path, list[Any]()

    def __enter__(self) -> None:
        for name, module in self._model.named_modules():
            self._handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._path.append(name)))
            self._handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _leave(self) -> None:
        self._path.pop()


def _entries(output: Tensor, module: str) -> RankLimit:
    entries = output.numel() * (2 if output.is_complex() else 1)
    return RankLimit(entries, "bottleneck", f"{entries} entries at {module}")


def _active_units(func: Callable[..., Any], call: tuple[Any, ...], module: str) -> RankLimit:
    entries, others, options = call
    leaf = entries.requires_grad_()
    with torch.enable_grad(), torch._C.DisableTorchFunction():
        slopes = torch.autograd.grad(func(leaf.clone(), *others, **options).sum(), leaf)[0]
    active = int(torch.count_nonzero(slopes))
    return RankLimit(active, "dead units", f"{active} of {leaf.numel()} units at {module} have a slope")


def _normalised(x: Tensor, weight: Tensor | None, module: str) -> RankLimit:
    channels = x.shape[1]
    live = channels if weight is None else int(torch.count_nonzero(weight))
    # In each channel the outputs sum to a constant, whatever goes in.
    rank = live * (x.numel() // channels - 1)
    what = f"the outputs of {module} in train mode sum to a constant in each of {channels} channels"
    return RankLimit(rank, "batch norm", what + (f", {channels - live} of which are off" if live < channels else ""))


def _normalised_rows(func: Callable[..., Any], given: dict[str, Any], module: str) -> RankLimit:
    entries = given["input"].numel()
    if func is functional.layer_norm:
        rows, kind = entries // math.prod(given["normalized_shape"]), "layer norm"
    else:
        rows, kind = given["input"].shape[0] * given["num_groups"], "group norm"
    return RankLimit(entries - rows, kind, f"the outputs of {module} sum to a constant in each of {rows} groups")


def _by_weight(weight: Tensor, output: Tensor, module: str) -> RankLimit:
    rank = _rank(weight)
    limit = rank * (output.numel() // output.shape[-1])
    return RankLimit(limit, "weight", f"the weight of {module} has rank {rank}, for {tuple(weight.shape)}")


def _by_inputs(x: Tensor, with_bias: bool, output: Tensor, module: str) -> RankLimit:
    rows = x.reshape(-1, x.shape[-1])
    if with_bias:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    rank = _rank(rows)
    return RankLimit(rank * output.shape[-1], "inputs", f"the {len(rows)} inputs of {module} span {rank} dimensions")


def _is_pointwise(weight: Tensor, output: Tensor) -> bool:
    """Whether a kernel is 1×1 and applied to a batch, not to a single image."""
    return set(weight.shape[2:]) == {1} and output.dim() == weight.dim()


def _of_pointwise_convolution(given: dict[str, Any], output: Tensor, module: str) -> RankLimit:
    weight, groups = given["weight"], given.get("groups", 1)
    rank = sum(_rank(part.flatten(1)) for part in weight.chunk(groups))
    pixels = output.numel() // output.shape[1]
    stride = given.get("stride", 1)
    kind = "strided 1×1 convolution" if stride not in (1, (1,), (1, 1), (1, 1, 1), [1, 1]) else "1×1 convolution"
    explanation = f"{module} sees {rank} values under each of {pixels} pixels of {output.shape[1]} channels"
    return RankLimit(rank * pixels, kind, explanation)


def _rank(matrix: Tensor) -> int:
    if matrix.numel() > _LARGEST_WEIGHT or matrix.numel() == 0:
        return min(matrix.shape)
    with torch._C.DisableTorchFunction():
        return int(torch.linalg.matrix_rank(matrix.detach().double()))
