"""The chain rule, layer by layer: ``D_{θ_l}F = Jf_L ⋯ Jf_{l+1} Df_l``, and the tangent kernel as the sum it implies.

Source: MacDonald et al. 2023, section 2; docs/paper.md §2.1.
"""

import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.jacobians.operator import jacobian_of
from skip_conditioning.diagnostics.kernel.tangent_kernel import tangent_kernel
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.maps import TOTAL
from skip_conditioning.diagnostics.networks.measuring import ProbedModel, measuring
from skip_conditioning.diagnostics.networks.probe import Probe, Reading
from skip_conditioning.diagnostics.support.memory import GIB
from skip_conditioning.diagnostics.theory.layered_network import LayeredNetwork
from skip_conditioning.diagnostics.theory.rounding import Precisions, gram_rounding, random_vectors
from skip_conditioning.diagnostics.theory.statement import Statement

#: How far rounding may take the two sides apart, in units in the last place of their size for each layer. Batch norm
#: amplifies rounding of the forward pass: measured up to 630 units over 30 layers (see ``spectrum.ROUNDING_UNITS``).
_UNITS = 1000

_RULE = "‖D_{θ_l}F − Jf_L ⋯ Jf_{l+1} Df_l‖ = 0"
_KERNEL = "‖K − Σ_l (Π_{j>l} Jf_j) Df_l Df_lᵀ (Π_{j>l} Jf_j)ᵀ‖ = 0"


def chain_rule(
    model: nn.Module,
    probe: Any,
    *,
    layers: Sequence[str] | str | None = None,
    dtype: torch.dtype = torch.float64,
    memory_budget: int = GIB,
    **reading: Unpack[Reading],
) -> list[Statement]:
    """The derivative of the network in each layer's parameters against the product of its layers' derivatives.

    Left is the Frobenius norm of the difference, right zero, and the note gives the norm of the matrix. One side is
    taken through the whole network at once, the other layer by layer, each layer by itself at its actual input; the
    last statement is the same of the tangent kernel, as ``tangent_kernel`` computes it.

    Costs two backward passes for each row of outputs, some rows at a time: nothing larger than the kernel is held.

    Args:
        model: The model, left as it is.
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        layers: Modules to cut the network behind; None takes the blocks.
        dtype: ``torch.float64``, or ``torch.float32``; what it rounds is measured in the other.
        memory_budget: Bytes for the kernel, and for the rows under way.
        reading: How the probe is read, as for ``Probe``.

    Returns:
        A statement for each layer with trainable parameters, in order, and one for the kernel.

    Raises:
        UnknownLayerError: A name that is no module.
        LayerCallError: A layer never called, or several times with no call named.
        UnsupportedModelError: The layers do not form a chain, or share parameters.
        MemoryBudgetError: The kernel does not fit.
        InputError: Another precision, or no trainable parameters.
    """
    precisions = Precisions.of(dtype)
    model = unwrap(model)
    probe = Probe.of(probe, model, **reading)
    require_trainable(model)

    def kernel_in(precision: torch.dtype) -> Tensor:
        return tangent_kernel(model, probe, layers=TOTAL, dtype=precision, memory_budget=memory_budget).total

    kernel = kernel_in(dtype)
    with measuring(model, probe, dtype=dtype) as probed:
        recording = probed.recording()
        precisions = precisions.within(recording)
        sides = _Sides(probed, layers, int(memory_budget))
        again = precisions.again(lambda other: _Sides(probed.in_dtype(other), layers, int(memory_budget)))
        apart = {name: _Difference() for name in (*sides.layerwise.trainable, TOTAL)}
        for rows in torch.eye(len(kernel), device=kernel.device).split(sides.layerwise.rows_at_once, dim=1):
            direct, products = sides.direct(rows), sides.pull_back(rows)
            for name, columns in products.items():
                apart[name].add(direct[name], columns)
            apart[TOTAL].add(kernel @ rows.double(), sides.layerwise.push_forward(products))
        vectors = random_vectors(len(kernel)).to(kernel.device)
        rounding = _rounding(sides, again, vectors, precisions)
        grams = [gram_rounding(recording, vector.view(recording.logits.shape)) for vector in vectors.T]
    rounding[TOTAL] += precisions.error(kernel, precisions.again(kernel_in)) + sum(grams) / len(grams)
    error = _UNITS * recording.eps * len(sides.layerwise.trainable)
    layer_statements = [
        apart[name].statement("chain rule", _RULE, error, rounding[name], name) for name in sides.layerwise.trainable
    ]
    return [*layer_statements, apart[TOTAL].statement("chain rule of the kernel", _KERNEL, error, rounding[TOTAL], "")]


def require_trainable(model: nn.Module) -> None:
    """Raise ``InputError`` for a model all of whose parameters are frozen."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{type(model).__name__} has no trainable parameters; unfreeze some")


class _Difference:
    """Frobenius norm of the difference of two matrices that come in blocks, and of the first."""

    def __init__(self) -> None:
        self._difference = self._size = 0.0

    def add(self, left: Tensor, right: Tensor) -> None:
        self._difference = math.hypot(self._difference, float(torch.linalg.vector_norm(left.double() - right.double())))
        self._size = math.hypot(self._size, float(torch.linalg.vector_norm(left.double())))

    def statement(self, name: str, formula: str, unit: float, rounding: float, layer: str) -> Statement:
        """The statement that the difference is zero, up to ``unit`` times the matrix's norm, or measured rounding."""
        note = f"the norm of the matrix is {self._size:.4g}"
        error = max(unit * self._size, rounding)
        return Statement(name, formula, self._difference, "=", 0.0, error, layer, note=note)


class _Sides:
    """Both sides of the rule in one precision.

    Attributes:
        layerwise: The layers' derivatives, one after another.
    """

    def __init__(self, probed: ProbedModel, layers: Sequence[str] | str | None, memory_budget: int) -> None:
        network = LayeredNetwork(probed, layers)
        self._dtype = network.logits.dtype
        self.layerwise = _Layerwise(network, memory_budget)
        parameters = [parameter for held in self.layerwise.trainable.values() for parameter in held]
        self._whole = jacobian_of(network.whole(parameters), memory_budget)

    def direct(self, rows: Tensor) -> dict[str, Tensor]:
        """``D_{θ_l}Fᵀ U`` of every layer with parameters, by autograd through the whole network."""
        trainable = self.layerwise.trainable
        sizes = [sum(parameter.numel() for parameter in held) for held in trainable.values()]
        parts = self._whole._apply_adjoint(rows.to(self._dtype)).split(sizes)
        return dict(zip(trainable, parts, strict=True))

    def pull_back(self, rows: Tensor) -> dict[str, Tensor]:
        """The same, layer by layer."""
        return self.layerwise.pull_back(rows.to(self._dtype))


def _rounding(sides: _Sides, again: _Sides | None, vectors: Tensor, precisions: Precisions) -> dict[str, float]:
    """What rounding did to both sides together, by layer and for the kernel; in Frobenius norm, from a few vectors."""

    def products(side: _Sides | None) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
        if side is None:
            return {}, {}, None
        direct, pulled = side.direct(vectors), side.pull_back(vectors)
        return direct, pulled, side.layerwise.push_forward(pulled)

    (direct, pulled, image), (direct_again, pulled_again, image_again) = products(sides), products(again)
    assert image is not None
    errors = {
        name: precisions.error(direct[name], direct_again.get(name))
        + precisions.error(pulled[name], pulled_again.get(name))
        for name in pulled
    }
    errors[TOTAL] = precisions.error(image, image_again)
    return {name: error / math.sqrt(vectors.shape[1]) for name, error in errors.items()}


class _Layerwise:
    """Products with the layers' derivatives, one layer after another.

    Attributes:
        trainable: The parameters of each layer that has some, by its name, in order.
        rows_at_once: How many vectors fit.
    """

    def __init__(self, network: LayeredNetwork, memory_budget: int) -> None:
        self.trainable = {layer.name: layer.trainable for layer in network.layers if layer.trainable}
        widest = max(layer.widest for layer in network.layers)
        parameters = sum(layer.parameters.numel() for layer in network.layers)
        self.rows_at_once = max(1, memory_budget // (4 * network.logits.element_size() * (widest + 2 * parameters)))
        self._layers = [
            (
                layer.name,
                jacobian_of(layer.parameter, memory_budget) if layer.trainable else None,
                None if layer.first else jacobian_of(layer.jacobian, memory_budget),
            )
            for layer in network.layers
        ]

    def pull_back(self, rows: Tensor) -> dict[str, Tensor]:
        """``Df_lᵀ Jf_{l+1}ᵀ ⋯ Jf_Lᵀ U`` of every layer with parameters, ``(p_l, k)``, for ``U`` of ``(N·O, k)``."""
        products = {}
        for name, parameter, jacobian in reversed(self._layers):
            if parameter is not None:
                products[name] = parameter.rmatmat(rows)
            if jacobian is not None:
                rows = jacobian.rmatmat(rows)
        return products

    def push_forward(self, columns: dict[str, Tensor]) -> Tensor:
        """``Σ_l Jf_L ⋯ Jf_{l+1} Df_l V_l``, ``(N·O, k)``, for ``V_l`` of ``(p_l, k)``."""
        moved: Tensor | None = None
        for name, parameter, jacobian in self._layers:
            carried = None if moved is None or jacobian is None else jacobian.matmat(moved)
            own = None if parameter is None else parameter.matmat(columns[name])
            parts = [part for part in (carried, own) if part is not None]
            moved = sum(parts[1:], parts[0]) if parts else None
        assert moved is not None  # there are trainable parameters, or there would be no kernel
        return moved
