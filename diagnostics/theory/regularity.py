"""Regularity: the tangent kernel is bounded below by its layers, ``λ(DF) ≥ Σ_l λ(Df_l) Π_{j>l} λ(Jf_j)``.

A term is zero as soon as one of its layers is not surjective, and the bound is vacuous where all terms are. With each
factor *restricted* to the directions that the later layers pass on it is never weaker, and says something more often.

Source: MacDonald et al. 2023, section 4; docs/paper.md §2.2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.kernel.result import contrasts
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.probe import Probe, Reading
from skip_conditioning.diagnostics.spectrum import jacobian_floor
from skip_conditioning.diagnostics.support.memory import GIB
from skip_conditioning.diagnostics.theory.chain_rule import require_trainable
from skip_conditioning.diagnostics.theory.layered_network import LayeredNetwork, NetworkLayer
from skip_conditioning.diagnostics.theory.regularity_factors import Factor, Factors, LayerFactors, factor_of_columns
from skip_conditioning.diagnostics.theory.rounding import Precisions
from skip_conditioning.diagnostics.theory.statement import Statement

SUBSPACES = ("all", "centred", "data")

_BOUND = "λ(DF) ≥ Σ_l λ(Df_l) Π_{j>l} λ(Jf_j)"
_TERM = "λ(D_{θ_l}F) ≥ λ(Df_l) Π_{j>l} λ(Jf_j)"


@dataclass(frozen=True)
class Term:
    """One layer's term of the bound.

    Attributes:
        layer: The layer.
        share: ``λ(D_{θ_l}F)``, of which the term is a lower bound.
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
        cause = "" if positive else _first_cause(terms)
        if positive and self.whole.cause:
            cause = f"λ(DF) cannot be told from zero: {self.whole.cause}"
        right, error = sum(term.value for term in terms), sum(term.error for term in terms)
        summary = f"{positive} of {len(terms)} terms positive"
        if positive:
            largest = max(terms, key=lambda term: term.value)
            summary += f", {largest.layer} gives {largest.value / right:.0%}"
        note = summary if self.subspace == "all" else f"on the outputs '{self.subspace}'; {summary}"
        return Statement(name, _BOUND, self.whole.value, ">=", right, self.whole.error + error, cause=cause, note=note)


def _first_cause(terms: Sequence[Term]) -> str:
    """Why no term is positive: the cause of the first, and how many others there are."""
    more = f" ({len(terms) - 1} more layers add nothing either)" if len(terms) > 1 else ""
    return f"{terms[0].layer}: {terms[0].cause}{more}" if terms else "no layer was measured"


def regularity(
    model: nn.Module,
    probe: Any,
    *,
    layers: Sequence[str] | str | None = None,
    subspace: str | Tensor = "all",
    dtype: torch.dtype = torch.float64,
    memory_budget: int = GIB,
    **reading: Unpack[Reading],
) -> Regularity:
    """``λ(DF)`` against the product of its layers, with every factor and the reason of each that is zero.

    The layers act on the whole probe, with the model's own train/eval flags: batch norm in train mode is a layer like
    any other. Costs the singular values of each layer's two Jacobians; one that does not fit the budget is left out of
    the bound, which stays valid without it, as all terms are nonnegative.

    Args:
        model: The model, left as it is.
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        layers: Modules to cut the network behind; None takes the blocks.
        subspace: Outputs on which ``λ(DF)`` is taken: ``all``; ``centred``, those that sum to zero over a sample's
            outputs, where softmax gradients live; ``data``, the range of the data matrix (``span(X) ⊗ R^O``); or an
            orthonormal basis, shape ``(N·O, r)``.
        dtype: ``torch.float64``, or ``torch.float32``; what it rounds is measured in the other.
        memory_budget: Bytes for a matrix and its temporaries.
        reading: How the probe is read, as for ``Probe``.

    Returns:
        Both sides of the bound, and the factors of every layer.

    Raises:
        UnknownLayerError: A name that is no module.
        LayerCallError: A layer never called, or several times with no call named.
        UnsupportedModelError: The layers do not form a chain, or share parameters.
        MemoryBudgetError: Not even the derivative in a single parameter fits.
        InputError: An unknown subspace, a basis that is not orthonormal, another precision, no trainable parameters.
    """
    precisions = Precisions.of(dtype)
    model = unwrap(model)
    probe = Probe.of(probe, model, **reading)
    require_trainable(model)
    with measuring(model, probe, dtype=dtype) as probed:
        precisions = precisions.within(probed.recording())
        network = LayeredNetwork(probed, layers)
        again = precisions.again(lambda other: LayeredNetwork(probed.in_dtype(other), layers))
        measure = LayerFactors(model, network, again, precisions, int(memory_budget))
        basis = _output_basis(subspace, network.probe.first, network.logits)
        columns = measure.shares(basis)
        return Regularity(
            subspace=subspace if isinstance(subspace, str) else "given",
            whole=factor_of_columns(torch.cat(list(columns.values())), measure.rounding),
            terms=_terms(network.layers, measure.plain(), measure.share_factors(columns)),
            restricted=_terms(network.layers, measure.restricted(basis), measure.share_factors(columns)),
        )


def _terms(layers: Sequence[NetworkLayer], factors: Factors, shares: dict[str, Factor]) -> list[Term]:
    """Terms from factors, in the layers' order; only those of layers with parameters."""
    terms: list[Term] = []
    # The product of the later layers, from below and from above.
    low = high = 1.0
    later = ""
    for layer in reversed(layers):
        parameter, jacobian = factors[layer.name]
        if parameter is not None:
            cause = f"λ(Df): {parameter.cause}" if parameter.cause else later
            value = parameter.value * (low + high) / 2
            if not cause and not 0 < value < math.inf:
                cause = f"the product is {value:.2g} in float64"
            error = 0.0 if cause else (parameter.value + parameter.error) * high - value
            terms.append(
                Term(layer.name, shares[layer.name], parameter, jacobian, 0.0 if cause else value, error, cause)
            )
        if jacobian is not None:
            low, high = low * max(jacobian.value - jacobian.error, 0.0), high * (jacobian.value + jacobian.error)
            if jacobian.cause and not later:
                later = f"λ(Jf) of {layer.name}: {jacobian.cause}"
    return terms[::-1]


def _output_basis(subspace: str | Tensor, x: Tensor, logits: Tensor) -> Tensor:
    """An orthonormal basis of a subspace of the outputs, shape ``(N·O, r)``, rows over (sample, output).

    Args:
        subspace: ``all``; ``centred``: what sums to zero over each sample's outputs, where softmax gradients live;
            ``data``: ``span(X) ⊗ R^O``, all that a linear network can change; or an orthonormal basis.
        x: Inputs, shape ``(N, *input_shape)``.
        logits: Outputs, samples first.

    Raises:
        InputError: The subspace is unknown or empty, or the basis is not orthonormal or has another shape.
    """
    if isinstance(subspace, Tensor):
        return _checked_basis(subspace.detach().to(logits), logits.numel())
    if subspace not in SUBSPACES:
        hint = near_matches(subspace, SUBSPACES)
        raise InputError(f"unknown subspace {subspace!r}; known are {', '.join(SUBSPACES)}.{hint}")
    samples, outputs = len(logits), logits.numel() // len(logits)
    of_samples, of_outputs = torch.eye(samples).to(logits), torch.eye(outputs).to(logits)
    if subspace == "centred":
        if outputs == 1:
            raise InputError('centred outputs of a network with a single output are all zero; use subspace="all"')
        of_outputs = contrasts(outputs).to(logits)
    if subspace == "data":
        left, sizes, _ = torch.linalg.svd(x.reshape(samples, -1).to(logits), full_matrices=False)
        floor = jacobian_floor(float(torch.linalg.vector_norm(sizes)), torch.finfo(logits.dtype).eps)
        of_samples = left[:, sizes > floor].contiguous()
        if not of_samples.numel():
            raise InputError("the probe is zero, so its range is empty; use another probe or subspace")
    return torch.kron(of_samples, of_outputs)


def _checked_basis(basis: Tensor, entries: int) -> Tensor:
    if basis.dim() != 2 or len(basis) != entries or not 0 < basis.shape[1] <= entries:
        raise InputError(f"a basis of these outputs has shape ({entries}, r); this one has {tuple(basis.shape)}")
    if not torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]).to(basis), rtol=0, atol=1e-6):
        raise InputError("a basis of outputs must be orthonormal; take torch.linalg.qr of it first")
    return torch.linalg.qr(basis).Q  # to rounding
