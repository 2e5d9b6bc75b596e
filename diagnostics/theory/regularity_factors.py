"""The factors ``λ(Df_l)`` and ``λ(Jf_l)`` of the regularity bound, and each layer's share ``λ(D_{θ_l}F)`` of the whole.

``Factor`` is one ``λ`` with its rounding error, and the reason where it is zero; ``LayerFactors`` measures those of
all layers of a network, on their whole spaces (*plain*) or on what the later layers pass on (*restricted*).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import MemoryBudgetError
from skip_conditioning.diagnostics.jacobians.exact import exact_spectrum
from skip_conditioning.diagnostics.jacobians.operator import jacobian_of
from skip_conditioning.diagnostics.jacobians.rows import dense_jacobian
from skip_conditioning.diagnostics.networks.isolation import require_finite
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.spectrum import jacobian_floor
from skip_conditioning.diagnostics.support.memory import readable
from skip_conditioning.diagnostics.theory.layered_network import LayeredNetwork, NetworkLayer
from skip_conditioning.diagnostics.theory.rank_limits import rank_limit
from skip_conditioning.diagnostics.theory.rounding import Precisions

#: Columns of ``DF`` that are decomposed at a time.
_COLUMNS = 2**14


@dataclass(frozen=True)
class Factor:
    """``λ(A) = min |Aᵀu|² / |u|²`` over all ``u``, or those of a subspace; positive only if ``A`` reaches all of it.

    Attributes:
        value: ``λ``; zero where it is under its floor, NaN where the matrix was too large.
        error: By how much rounding may have moved it.
        rows: Dimensions of the space it is taken on.
        cols: Columns of the matrix, or of a triangular factor that stands for it.
        cause: Why it is zero or not known; empty where it is positive.
    """

    value: float
    error: float
    rows: int
    cols: int
    cause: str = ""

    @classmethod
    def of_sigma(cls, sigma: float, floor: float, rows: int, cols: int) -> "Factor":
        """From the smallest singular value.

        Args:
            sigma: That value.
            floor: Size below which it cannot be told from zero.
            rows: As in the attributes.
            cols: As in the attributes.
        """
        if sigma <= floor:
            return cls(0.0, floor * floor, rows, cols, f"σ_min {sigma:.2g} is under its floor {floor:.2g}")
        value, error = sigma * sigma, (2 * sigma + floor) * floor
        beyond = not 0 < value < math.inf
        return cls(
            value, error, rows, cols, f"σ_min² = ({sigma:.2g})² is beyond the range of float64" if beyond else ""
        )


def factor_of_columns(columns: Tensor, rounding: float) -> Factor:
    """``λ`` of ``A`` on the span of an orthonormal basis ``U``.

    Args:
        columns: ``AᵀU``, shape ``(cols, r)``.
        rounding: Bound of what rounding did to ``A``, in Frobenius norm.
    """
    cols, rows = columns.shape
    if not rows:
        return Factor(0.0, 0.0, rows, cols, "the later layers pass nothing on")
    if rows > cols:
        return Factor(0.0, 0.0, rows, cols, f"{rows} directions, {cols} columns")
    require_finite(columns, "the derivative of the network")
    sizes = torch.linalg.svdvals(torch.linalg.qr(columns, mode="r").R)
    floor = jacobian_floor(float(torch.linalg.vector_norm(sizes)), torch.finfo(columns.dtype).eps)
    return Factor.of_sigma(float(sizes[-1]), max(floor, rounding), rows, cols)


def factor_of_map(map: Map, rounding: float, model: nn.Module, memory_budget: int) -> Factor:
    """``λ`` of a whole Jacobian; with the reason where it is zero, or where it does not fit the budget.

    Args:
        map: Of which the derivative is taken.
        rounding: Bound of what rounding does to that, in Frobenius norm.
        model: For the names of modules.
        memory_budget: Bytes for the Jacobian and its temporaries.
    """
    rows, cols = map.rows, map.cols
    if rows > cols:
        return explained(Factor(0.0, 0.0, rows, cols, "more rows than columns"), map, model)
    try:
        spectrum = exact_spectrum(map, memory_budget=memory_budget)
    except MemoryBudgetError:
        return Factor(math.nan, 0.0, rows, cols, f"not computed: {rows}×{cols} exceeds the memory budget")
    floor = max(spectrum.floor, rounding)
    return explained(Factor.of_sigma(float(spectrum.values[-1]), floor, rows, cols), map, model)


def explained(factor: Factor, map: Map, model: nn.Module) -> Factor:
    """A factor; the cause of one that is zero is the operation of the layer that loses directions, if any.

    Args:
        factor: The factor as measured.
        map: The map of whose derivative it is.
        model: For the names of modules.
    """
    limit = rank_limit(model, map) if factor.cause and factor.rows else None
    return factor if limit is None or limit.rank >= factor.rows else replace(factor, cause=str(limit))


#: ``λ(Df_l)`` and ``λ(Jf_l)`` by layer; None for a layer without parameters, and for the first layer's input.
Factors = dict[str, tuple[Factor | None, Factor | None]]


class LayerFactors:
    """Factors of the layers of a network, with what rounding does to each.

    Args:
        model: The unwrapped module.
        network: Its layers.
        again: The same in the other precision; None where its range does not suffice.
        precisions: The two.
        memory_budget: Bytes for a matrix and its temporaries.

    Attributes:
        rounding: Bound of what rounding does to ``DF``, in Frobenius norm.
    """

    def __init__(
        self,
        model: nn.Module,
        network: LayeredNetwork,
        again: LayeredNetwork | None,
        precisions: Precisions,
        memory_budget: int,
    ) -> None:
        self._model, self._network, self._budget = model, network, memory_budget
        self._layers = [layer for layer in network.layers if layer.trainable]
        trainable = [parameter for layer in self._layers for parameter in layer.trainable]
        self.rounding = precisions.of_map(
            network.whole(trainable), again.whole(trainable) if again else None, memory_budget
        )
        self._of_parameter: dict[str, float] = {}
        self._of_jacobian: dict[str, float] = {}
        others: Sequence[NetworkLayer | None] = again.layers if again else [None] * len(network.layers)
        for layer, other in zip(network.layers, others, strict=True):
            if layer.trainable:
                of_other = other.parameter if other else None
                self._of_parameter[layer.name] = precisions.of_map(layer.parameter, of_other, memory_budget)
            if not layer.first:
                of_other = other.jacobian if other else None
                self._of_jacobian[layer.name] = precisions.of_map(layer.jacobian, of_other, memory_budget)

    def shares(self, basis: Tensor) -> dict[str, Tensor]:
        """``D_{θ_l}Fᵀ U`` of every layer with parameters, by autograd through the whole network.

        Returned as its triangular factor, ``(min(p_l, r), r)``, which has the same singular values.
        """
        triangles = {}
        for layer in self._layers:
            factor = basis.new_zeros(0, basis.shape[1])
            for parameters in self._groups(layer.trainable, len(basis)):
                rows = dense_jacobian(self._network.whole(parameters), self._budget // 4)
                for part in rows.split(_COLUMNS, dim=1):
                    factor = torch.linalg.qr(torch.cat([factor, part.T @ basis]), mode="r").R
            triangles[layer.name] = factor
        return triangles

    def _groups(self, parameters: Sequence[nn.Parameter], rows: int) -> list[list[nn.Parameter]]:
        """Groups of parameters, the columns of ``DF`` of each of which fit the memory.

        Raises:
            MemoryBudgetError: Those of a single parameter do not.
        """
        # The columns, and as much again for their products.
        entry_bytes = 2 * rows * self._network.logits.element_size()
        groups: list[list[nn.Parameter]] = []
        left = 0
        for parameter in parameters:
            needed = parameter.numel() * entry_bytes
            if needed > self._budget:
                raise MemoryBudgetError(
                    f"the derivative of {rows} outputs in a parameter of {parameter.numel()} entries needs about "
                    f"{readable(needed)}, the memory budget is {readable(self._budget)}; use fewer probe samples, or a "
                    "larger memory_budget"
                )
            if needed > left:
                groups.append([])
                left = self._budget
            groups[-1].append(parameter)
            left -= needed
        return groups

    def share_factors(self, columns: Mapping[str, Tensor]) -> dict[str, Factor]:
        """``λ(D_{θ_l}F)`` of every layer with parameters."""
        return {name: factor_of_columns(part, self.rounding) for name, part in columns.items()}

    def plain(self) -> Factors:
        """Factors on their whole spaces."""
        return {
            layer.name: (
                self._whole(layer.parameter, self._of_parameter) if layer.trainable else None,
                None if layer.first else self._whole(layer.jacobian, self._of_jacobian),
            )
            for layer in self._network.layers
        }

    def _whole(self, map: Map, roundings: Mapping[str, float]) -> Factor:
        return factor_of_map(map, roundings[map.layer], self._model, self._budget)

    def restricted(self, basis: Tensor) -> Factors:
        """Factors on what the later layers pass on of a subspace of the outputs."""
        factors: Factors = {}
        for layer in reversed(self._network.layers):
            parameter = jacobian = None
            if layer.trainable:
                parameter = self._on(layer.parameter, basis, self._of_parameter)[0]
            if not layer.first:
                jacobian, columns = self._on(layer.jacobian, basis, self._of_jacobian)
                if columns is None:
                    raise MemoryBudgetError(
                        f"{basis.shape[1]} directions of the outputs at {layer.name!r} exceed the memory budget of "
                        f"{readable(self._budget)}; use fewer probe samples, or a larger memory_budget"
                    )
                basis = _range(columns, self._of_jacobian[layer.name])
            factors[layer.name] = parameter, jacobian
        return factors

    def _on(self, map: Map, basis: Tensor, roundings: Mapping[str, float]) -> tuple[Factor, Tensor | None]:
        """A factor on a subspace of a layer's outputs, and ``AᵀU``; None where that does not fit."""
        rows, cols = basis.shape[1], map.cols
        # The products, their concatenation, and its decomposition.
        if 3 * rows * cols * basis.element_size() > self._budget:
            return Factor(math.nan, 0.0, rows, cols, f"not computed: {cols}×{rows} exceeds the memory budget"), None
        columns = jacobian_of(map, self._budget).rmatmat(basis)
        return explained(factor_of_columns(columns, roundings[map.layer]), map, self._model), columns


def _range(columns: Tensor, rounding: float) -> Tensor:
    """An orthonormal basis of the span of some columns, without directions that are only rounding."""
    left, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    floor = jacobian_floor(float(torch.linalg.vector_norm(sizes)), torch.finfo(columns.dtype).eps)
    return left[:, sizes > max(floor, rounding)].contiguous()
