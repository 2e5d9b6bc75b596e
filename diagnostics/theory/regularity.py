"""Regularity: the tangent kernel is bounded below by its layers, ``λ(DF) ≥ Σ_l λ(Df_l) Π_{j>l} λ(Jf_j)``.

A term is zero as soon as one of its layers is not surjective, and the bound is vacuous where all terms are. With each
factor *restricted* to the directions that the later layers pass on it is never weaker, and says something more often.

Source: MacDonald et al. 2023, section 4 (PAPER.md, statement 2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.theory.chain_rule import require_trainable
from skip_conditioning.diagnostics.theory.layered_network import Chain, Segment
from skip_conditioning.diagnostics.theory.output_subspaces import output_basis
from skip_conditioning.diagnostics.theory.regularity_factors import Factor, Factors, LayerFactors, factor_of_columns
from skip_conditioning.diagnostics.theory.rounding import Precisions
from skip_conditioning.diagnostics.theory.statement import Statement

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
        cause = self.cause or (self.share.cause and f"λ(D_{{θ_l}}F) cannot be told from zero: {self.share.cause}")
        return Statement("regularity of a layer", _TERM, self.share.value, ">=", self.value, error, self.layer, cause)

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
        if positive and self.whole.cause:
            cause = f"λ(DF) cannot be told from zero: {self.whole.cause}"
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
        MemoryBudgetError: Not even the derivative in a single parameter fits.
        InputError: An unknown subspace, a basis that is none, another precision, no trainable parameters.
    """
    precisions = Precisions.of(dtype)
    model = unwrap(model)
    require_trainable(model)
    with measuring(model, x, dtype=dtype) as probed:
        chain = Chain(probed, layers)
        again = precisions.again(lambda other: Chain(probed.in_dtype(other), layers))
        measure = LayerFactors(model, chain, again, precisions, int(memory_budget))
        basis = output_basis(subspace, chain.x, chain.logits)
        columns = measure.shares(basis)
        return Regularity(
            subspace=subspace if isinstance(subspace, str) else "given",
            whole=factor_of_columns(torch.cat(list(columns.values())), measure.rounding),
            terms=_terms(chain.segments, measure.plain(), measure.share_factors(columns)),
            restricted=_terms(chain.segments, measure.restricted(basis), measure.share_factors(columns)),
        )


def _terms(segments: Sequence[Segment], factors: Factors, shares: dict[str, Factor]) -> list[Term]:
    """Terms from factors, in the layers' order; only those of layers with parameters."""
    terms: list[Term] = []
    # The product of the later layers, from below and from above.
    low = high = 1.0
    later = ""
    for segment in reversed(segments):
        parameter, jacobian = factors[segment.name]
        if parameter is not None:
            cause = f"λ(Df): {parameter.cause}" if parameter.cause else later
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
                later = f"λ(Jf) of {segment.name}: {jacobian.cause}"
    return terms[::-1]
