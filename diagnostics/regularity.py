"""Regularity: the tangent kernel is bounded below by its layers, ``λ(DF) ≥ Σ_l λ(Df_l) Π_{j>l} λ(Jf_j)``.

A term is zero as soon as one of its layers is not surjective, and the bound is vacuous where all terms are. With each
factor *restricted* to the directions that the later layers pass on it is never weaker, and says something more often.

Source: MacDonald et al. 2023, section 4 (PAPER.md, statement 2).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.chain import Chain, Segment
from diagnostics.chain_rule import by_layer, require_trainable
from diagnostics.errors import MemoryBudgetError, readable
from diagnostics.factors import Factor, explained, factor_of_columns, factor_of_map
from diagnostics.isolation import State, quiet, unwrap
from diagnostics.jacobian_operator import jacobian_of
from diagnostics.jacobians import dense_jacobian
from diagnostics.maps import TOTAL, Map, build_maps, probe_input
from diagnostics.output_subspaces import output_basis
from diagnostics.rounding import Precisions
from diagnostics.spectrum import jacobian_floor
from diagnostics.statement import Statement

GIB = 2**30

_BOUND = "λ(DF) ≥ Σ_l λ(Df_l) Π_{j>l} λ(Jf_j)"
_TERM = "λ(D_{θ_l}F) ≥ λ(Df_l) Π_{j>l} λ(Jf_j)"


@dataclass(frozen=True)
class Term:
    """One layer's term of the bound.

    Attributes:
        layer: The layer.
        share: ``λ(D_{θ_l}F)``, which the term is a lower bound of.
        parameter: ``λ(Df_l)``.
        jacobian: ``λ(Jf_l)``, a factor of all earlier layers' terms; None for the first layer.
        value: ``λ(Df_l) Π_{j>l} λ(Jf_j)``; zero where that is not known.
        error: Of the value, by rounding.
        cause: Why the value is zero; empty where it is positive.
    """

    layer: str
    share: Factor
    parameter: Factor
    jacobian: Factor | None
    value: float
    error: float
    cause: str

    @property
    def statement(self) -> Statement:
        """The term against the layer's share."""
        error = self.error + self.share.error
        return Statement(
            "regularity of a layer", _TERM, self.share.value, ">=", self.value, error, self.layer, self.cause
        )

    def as_row(self) -> dict[str, Any]:
        """The factors of a term, for a table."""
        return {
            "layer": self.layer,
            "lambda_share": self.share.value,
            "lambda_parameter": self.parameter.value,
            "parameter_cause": self.parameter.cause,
            "lambda_jacobian": None if self.jacobian is None else self.jacobian.value,
            "jacobian_cause": "" if self.jacobian is None else self.jacobian.cause,
            "term": self.value,
            "cause": self.cause,
        }


@dataclass(frozen=True)
class Regularity:
    """Both sides of the bound, term by term.

    Attributes:
        subspace: The outputs on which ``λ(DF)`` is taken: ``all``, ``centred``, ``data`` or ``given``.
        whole: ``λ(DF)`` on them.
        terms: Every layer's term, its factors taken on whole spaces, as the paper has it.
        restricted: The same with factors on the directions that the later layers pass on: ``V_L`` is the subspace,
            ``V_{l−1} = Jf_lᵀ V_l``, and ``λ(A|V) = min |Aᵀv|² / |v|²`` over ``v`` in ``V``.
    """

    subspace: str
    whole: Factor
    terms: list[Term]
    restricted: list[Term]

    @property
    def statement(self) -> Statement:
        """The bound as the paper has it."""
        return self._statement("regularity", self.terms)

    @property
    def restricted_statement(self) -> Statement:
        """The bound with factors on the directions that matter."""
        return self._statement("regularity, restricted", self.restricted)

    def _statement(self, name: str, terms: Sequence[Term]) -> Statement:
        positive = sum(not term.cause for term in terms)
        cause = "" if positive else "; ".join(f"{term.layer}: {term.cause}" for term in terms)
        right, error = sum(term.value for term in terms), sum(term.error for term in terms)
        said = f"{positive} of {len(terms)} terms positive"
        if positive:
            largest = max(terms, key=lambda term: term.value)
            said += f", {largest.layer} gives {largest.value / right:.0%}"
        note = said if self.subspace == "all" else f"on the outputs '{self.subspace}'; {said}"
        return Statement(name, _BOUND, self.whole.value, ">=", right, self.whole.error + error, cause=cause, note=note)


def regularity(
    model: nn.Module,
    x: Tensor,
    *,
    layers: Sequence[str] | str | None = None,
    subspace: str | Tensor = "all",
    dtype: torch.dtype = torch.float64,
    memory_budget: int = GIB,
) -> Regularity:
    """``λ(DF)`` against the product of its layers, with every factor and the reason of each that is zero.

    The layers act on the whole probe, with the model's own train/eval flags: batch norm in train mode is a layer like
    any other. Costs the singular values of each layer's two Jacobians; one that does not fit the budget is left out of
    the bound, which stays valid without it, as all terms are nonnegative.

    Args:
        model: The model, left as it is.
        x: Probe inputs, shape ``(N, *input_shape)``.
        layers: Modules to cut the network behind; None takes the blocks.
        subspace: Outputs on which ``λ(DF)`` is taken: ``all``; ``centred``, those that sum to zero over a sample's
            outputs, where softmax gradients live; ``data``, the range of the data matrix (``span(X) ⊗ R^O``); or an
            orthonormal basis, shape ``(N·O, r)``.
        dtype: ``torch.float64``, or ``torch.float32``; what it rounds is measured in the other.
        memory_budget: Bytes for a matrix and its temporaries.

    Raises:
        UnknownLayerError: A name that is no module.
        LayerCallError: A layer never called, or several times with no call named.
        UnsupportedModelError: The layers do not form a chain, or share parameters.
        MemoryBudgetError: Not even ``DF`` fits.
        InputError: An unknown subspace, a basis that is none, another precision, no trainable parameters.
    """
    precisions = Precisions.of(dtype)
    model = unwrap(model)
    require_trainable(model)
    with quiet(model, batch_mode="batch"):

        def measured(precision: torch.dtype) -> tuple[Chain, Map]:
            state, inputs = State(model, precision), probe_input(x, model, precision)
            return Chain(model, state, inputs, layers), build_maps(model, state, inputs, "kernel", [TOTAL])[0]

        chain, whole = measured(dtype)
        chain_again, whole_again = precisions.again(measured) or (None, None)
        basis = output_basis(subspace, chain.x, chain.logits)
        measure = _Measure(model, chain, chain_again, precisions, int(memory_budget))
        rounding = precisions.of_map(whole, whole_again, int(memory_budget))
        columns = measure.columns(whole, basis)
        shares = {name: factor_of_columns(part, rounding) for name, part in columns.items()}
        return Regularity(
            subspace=subspace if isinstance(subspace, str) else "given",
            whole=factor_of_columns(torch.cat(list(columns.values())), rounding),
            terms=_terms(chain.segments, measure.plain(), shares),
            restricted=_terms(chain.segments, measure.restricted(basis), shares),
        )


#: ``λ(Df_l)`` and ``λ(Jf_l)`` by layer; None for a layer without parameters, and for the first layer's input.
_Factors = dict[str, tuple[Factor | None, Factor | None]]


class _Measure:
    """Factors of the layers of a chain, with what rounding does to each.

    Args:
        model: The unwrapped module.
        chain: The layers.
        again: The same in the other precision; None where its range does not suffice.
        precisions: The two.
        memory_budget: Bytes for a matrix and its temporaries.
    """

    def __init__(
        self, model: nn.Module, chain: Chain, again: Chain | None, precisions: Precisions, memory_budget: int
    ) -> None:
        self._model, self._segments, self._budget = model, chain.segments, memory_budget
        others = [None] * len(chain.segments) if again is None else again.segments
        self._of_parameter: dict[str, float] = {}
        self._of_jacobian: dict[str, float] = {}
        for one, other in zip(chain.segments, others, strict=True):
            if one.trainable:
                of_other = None if other is None else other.parameter
                self._of_parameter[one.name] = precisions.of_map(one.parameter, of_other, memory_budget)
            if not one.first:
                of_other = None if other is None else other.jacobian
                self._of_jacobian[one.name] = precisions.of_map(one.jacobian, of_other, memory_budget)

    def columns(self, whole: Map, basis: Tensor) -> dict[str, Tensor]:
        """``D_{θ_l}Fᵀ U`` of every layer with parameters, ``(p_l, r)``, by autograd through the whole network."""
        # The matrix, its product with the basis, and what the decomposition takes.
        needed = 4 * whole.rows * whole.cols * whole.point.element_size()
        if needed > self._budget:
            raise MemoryBudgetError(
                f"DF is {whole.rows}×{whole.cols}: its singular values need about {readable(needed)}, the memory "
                f"budget is {readable(self._budget)}; use fewer probe samples, or a larger memory_budget"
            )
        trainable = {segment.name: segment.trainable for segment in self._segments if segment.trainable}
        return by_layer(dense_jacobian(whole, self._budget - needed).T @ basis, self._model, trainable)

    def plain(self) -> _Factors:
        """Factors on their whole spaces."""
        return {
            segment.name: (
                self._whole(segment.parameter, self._of_parameter) if segment.trainable else None,
                None if segment.first else self._whole(segment.jacobian, self._of_jacobian),
            )
            for segment in self._segments
        }

    def _whole(self, map: Map, roundings: Mapping[str, float]) -> Factor:
        return factor_of_map(map, roundings[map.layer], self._model, self._budget)

    def restricted(self, basis: Tensor) -> _Factors:
        """Factors on what the later layers pass on of a subspace of the outputs."""
        found: _Factors = {}
        for segment in reversed(self._segments):
            parameter = jacobian = None
            if segment.trainable:
                parameter, _ = self._on(segment.parameter, basis, self._of_parameter)
            if not segment.first:
                jacobian, columns = self._on(segment.jacobian, basis, self._of_jacobian)
                basis = _range(columns, self._of_jacobian[segment.name])
            found[segment.name] = parameter, jacobian
        return found

    def _on(self, map: Map, basis: Tensor, roundings: Mapping[str, float]) -> tuple[Factor, Tensor]:
        columns = jacobian_of(map, self._budget).rmatmat(basis)
        return explained(factor_of_columns(columns, roundings[map.layer]), map, self._model), columns


def _range(columns: Tensor, rounding: float) -> Tensor:
    """An orthonormal basis of the span of some columns, as far as it is not rounding."""
    left, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    floor = jacobian_floor(float(torch.linalg.vector_norm(sizes)), torch.finfo(columns.dtype).eps)
    return left[:, sizes > max(floor, rounding)].contiguous()


def _terms(segments: Sequence[Segment], factors: _Factors, shares: dict[str, Factor]) -> list[Term]:
    """Terms from factors, in the layers' order; only those of layers with parameters."""
    terms: list[Term] = []
    # The product of the later layers, from below and from above.
    low = high = 1.0
    later = ""
    for segment in reversed(segments):
        parameter, jacobian = factors[segment.name]
        if parameter is not None:
            cause = f"λ(Df) is zero: {parameter.cause}" if parameter.cause else later
            value = parameter.value * (low + high) / 2
            if not cause and not 0 < value < math.inf:
                cause = f"the product is {value:.2g} in float64"
            error = 0.0 if cause else (parameter.value + parameter.error) * high - value
            terms.append(
                Term(segment.name, shares[segment.name], parameter, jacobian, 0.0 if cause else value, error, cause)
            )
        if jacobian is not None:
            low, high = low * max(jacobian.value - jacobian.error, 0.0), high * (jacobian.value + jacobian.error)
            if jacobian.cause and not later:
                later = f"λ(Jf) of {segment.name} is zero: {jacobian.cause}"
    return terms[::-1]
