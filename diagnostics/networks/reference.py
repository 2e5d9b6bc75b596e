"""Random products with Jacobians by plain reverse mode, on the network as it is called: what measurements are held to.

A whole forward pass of the model, with nothing replaced in it, shows the inputs and outputs of modules in autograd's
graph; ordinary backward passes give ``u`` times the Jacobian of each. They are taken in float64, where rounding is that
of the network alone: an operator that computes in a narrower precision, whatever is asked for, is repeated with its
results moved by their rounding (``RoundingNoise``), and a float64 measurement with all of them.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_map

from skip_conditioning.diagnostics.networks.capture import run_model
from skip_conditioning.diagnostics.networks.isolation import State, convert
from skip_conditioning.diagnostics.networks.outputs import floating_tensors, with_tensors
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.diagnostics.networks.rounding_noise import RoundingNoise

#: Random cotangents: pairs of them show how the rounding of a Jacobian is spread over directions.
_VECTORS = 4
#: A map with fewer rows than this many a cotangent gets fewer: each costs as much as a row.
_ROWS_A_VECTOR = 24


@dataclass(frozen=True)
class Target:
    """A map whose products are wanted.

    Attributes:
        layer: The layer's name, with its call.
        rows: Rows of the Jacobian.
        dtype: Precision of the measurement.
        module: The layer's module; None for the whole network.
        call: Which call of the module, from 1.
        in_place: Whether the module changes its input.
        parts: Which of the module's floating output tensors a tail starts from, or of the probe's tensors ``network``.
        parameters: Those of ``param`` and ``kernel``, in order.
    """

    layer: str
    rows: int
    dtype: torch.dtype
    module: nn.Module | None = None
    call: int = 1
    in_place: bool = False
    parts: tuple[int, ...] = (0,)
    parameters: tuple[nn.Parameter, ...] = ()


@dataclass(frozen=True, eq=False)
class Reference:
    """The products of one map with random cotangents.

    Attributes:
        references: Those of all maps that share a forward pass.
        target: The map.
    """

    references: "References"
    target: Target

    @property
    def cotangents(self) -> Tensor:
        """``U``, shape ``(k, rows)``, float64, representable in the measurement's dtype."""
        return self.references.cotangents[self.target.rows]

    @property
    def exact(self) -> Tensor:
        """``U J`` in float64, shape ``(k, cols)``."""
        return self.references.exact[self.target.layer]

    @property
    def plain(self) -> Tensor:
        """``U J`` in the precision of the measurement, as training computes it."""
        return self.references.plain[self.target.layer]


class References:
    """The products of several maps of one kind, made when the first of them is asked for.

    Args:
        model: The unwrapped module; to be used inside ``isolation.quiet``.
        state: Its weights and buffers, in the precision of the measurement.
        probe: In that precision too.
        name: The kind, one of ``maps.MAPS``.
        targets: The maps.
    """

    def __init__(self, model: nn.Module, state: State, probe: Probe, name: str, targets: Sequence[Target]) -> None:
        self._model, self._state, self._probe, self._name, self._targets = model, state, probe, name, targets
        counts, dtype = {target.rows for target in targets}, targets[0].dtype
        #: By their length; drawn beforehand, as noise would move them.
        self.cotangents = {rows: random_cotangents(rows, dtype, probe.device) for rows in counts}

    @functools.cached_property
    def exact(self) -> dict[str, Tensor]:
        """``U J`` by layer, in float64, with the rounding of what is computed in narrower precisions."""
        measured = self._targets[0].dtype
        if measured != torch.float64:
            try:
                with RoundingNoise(measured, wide=True):
                    return self._products(
                        self._state.in_dtype(torch.float64),
                        self._probe.mapped(lambda tensor: convert(tensor, torch.float64)),
                    )
            except (RuntimeError, TypeError, NotImplementedError):
                pass  # the network, or the device, does not compute in float64
        with RoundingNoise(measured, wide=False) as noise:
            return self._products(self._state.moved(noise.moved), self._probe.mapped(noise.moved))

    @functools.cached_property
    def plain(self) -> dict[str, Tensor]:
        """The same in the precision of the measurement, as training computes it."""
        return self._products(self._state, self._probe)

    def _products(self, state: State, probe: Probe) -> dict[str, Tensor]:
        if self._name in ("layer", "param"):
            products: dict[str, Tensor] = {}
            for group in _not_nested(self._targets):
                products |= self._local_products(state, probe, group)
            return products
        return self._global_products(state, probe)

    def _local_products(self, state: State, probe: Probe, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Those of ``layer`` and ``param``: each module's own graph, taken while the network runs without one."""
        products: dict[str, Tensor] = {}
        counts: dict[nn.Module, int] = {}
        open_calls: list[Any] = []
        leaves = {p: state[p].detach().requires_grad_() for target in targets for p in target.parameters}

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            counts[module] = counts.get(module, 0) + 1
            target = next((t for t in targets if t.module is module and t.call == counts[module]), None)
            open_calls.append(None)
            if target is None:
                return None
            # A forward pass that differentiates something itself goes on with its own graph.
            has_graph = torch.is_grad_enabled()
            torch.set_grad_enabled(True)
            values, _ = tree_flatten((args, kwargs))
            first = next((value for value in values if isinstance(value, Tensor)), None)
            leaf = given = None
            if self._name == "layer" and has_graph and first is not None and first.requires_grad:
                leaf = given = first
            elif self._name == "layer" and first is not None:
                leaf = first.detach().clone().requires_grad_()
                given = leaf.clone()
                args, kwargs = tree_map(lambda value: given if value is first else value, (args, kwargs))
            open_calls[-1] = (target, first, leaf, given, has_graph)
            return args, kwargs

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            opened = open_calls.pop()
            if opened is None:
                return None
            target, first, leaf, given, has_graph = opened
            value = floating_tensors(output)[0]
            points = [leaf] if self._name == "layer" else [leaves[p] for p in target.parameters]
            products[target.layer] = torch.cat(_pulled_back(value, points, self.cotangents[target.rows]), dim=1)
            torch.set_grad_enabled(has_graph)
            if target.in_place and given is not None and given is not first:
                first.copy_(given.detach())
            return None if has_graph else with_tensors(output, Tensor.detach)

        handles = []
        try:
            for module in {target.module: None for target in targets}:
                assert module is not None
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
            with torch.no_grad():
                run_model(self._model, state, probe, leaves)
        finally:
            for handle in handles:
                handle.remove()
        return products

    def _global_products(self, state: State, probe: Probe) -> dict[str, Tensor]:
        """Those of ``tail``, ``network`` and ``kernel``: one graph for all, and a backward pass for each cotangent."""
        edges: dict[str, list[Any]] = {}
        counts: dict[nn.Module, int] = {}
        leaves = {
            p: state[p].detach().requires_grad_() for p in self._model.parameters() if state[p].is_floating_point()
        }
        parts = {part for target in self._targets for part in target.parts} if self._name == "network" else set()
        inputs = {part: probe.tensors[part].detach().clone().requires_grad_() for part in parts}

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            counts[module] = counts.get(module, 0) + 1
            for target in self._targets:
                if target.module is module and target.call == counts[module]:
                    tensors = floating_tensors(output)
                    edges[target.layer] = [
                        (get_gradient_edge(tensors[part]) if tensors[part].requires_grad else None, tensors[part].shape)
                        for part in target.parts
                    ]

        handles = []
        try:
            if self._name == "tail":
                for module in {target.module: None for target in self._targets}:
                    assert module is not None
                    handles.append(module.register_forward_hook(after, with_kwargs=True))
            with torch.enable_grad():
                logits = probe.outputs_of(run_model(self._model, state, probe.with_tensors(inputs), leaves))
        finally:
            for handle in handles:
                handle.remove()
        if self._name == "tail":
            points: dict[str, list[Any]] = edges
        elif self._name == "network":
            points = {target.layer: [inputs[part] for part in target.parts] for target in self._targets}
        else:
            points = {target.layer: [leaves[p] for p in target.parameters] for target in self._targets}
        every = [item for target in self._targets for item in points[target.layer]]
        with state.installed(leaves):  # for gradient checkpoints
            products = _pulled_back(logits, every, self.cotangents[self._targets[0].rows])
        ends = iter(products)
        return {target.layer: torch.cat([next(ends) for _ in points[target.layer]], dim=1) for target in self._targets}


def random_cotangents(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The random cotangents of a map, shape ``(k, rows)``: in float64, but representable in the measurement's dtype."""
    count = max(3, min(_VECTORS, rows // _ROWS_A_VECTOR))
    drawn = torch.randn(count, rows, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return drawn.to(dtype).to(device, torch.float64)


def _not_nested(targets: Sequence[Target]) -> Iterator[list[Target]]:
    """The targets in groups none of which holds a module and another within it."""
    waiting = list(targets)
    while waiting:
        group: list[Target] = []
        for target in waiting:
            if not any(_holds(target, other) or _holds(other, target) for other in group):
                group.append(target)
        yield group
        waiting = [target for target in waiting if target not in group]


def _holds(outer: Target, inner: Target) -> bool:
    """Whether one target's module is within another's."""
    assert outer.module is not None
    return outer.module is not inner.module and any(part is inner.module for part in outer.module.modules())


def _pulled_back(output: Tensor, points: Sequence[Any], cotangents: Tensor) -> list[Tensor]:
    """The random cotangents of an output times its Jacobian in each of some points: ``(k, entries)``, float64."""
    inputs = [point[0] if isinstance(point, tuple) else point for point in points]
    shapes = [point[1] if isinstance(point, tuple) else point.shape for point in points]
    products = [output.new_zeros(len(cotangents), shape.numel(), dtype=torch.float64) for shape in shapes]
    reached = [index for index, item in enumerate(inputs) if item is not None]
    if not output.requires_grad or not reached:
        return products
    for row, cotangent in enumerate(cotangents):
        # In memory of its own, as some operators' rules look at the whole memory that a vector is a part of.
        own = cotangent.view(output.shape).to(output.dtype, copy=True)
        chosen = [inputs[index] for index in reached]
        gradients = torch.autograd.grad(output, chosen, own, retain_graph=True, allow_unused=True)
        for index, gradient in zip(reached, gradients, strict=True):
            if gradient is not None:
                products[index][row] = (gradient.to_dense() if gradient.is_sparse else gradient).flatten()
    return products
