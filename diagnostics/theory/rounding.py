"""What rounding does to a derivative, measured by taking it in another precision.

Dimensions and norms do not show it: batch norm over two samples, or over nearly equal ones, cancels all but the last
digits of what goes through it. How much is lost shows in float32, and is as much less in float64 as its unit is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError, UnsupportedModelError
from skip_conditioning.diagnostics.jacobians.operator import jacobian_of
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.networks.recording import Recording

Result = TypeVar("Result")

#: Rounding in float64 is at most this many times that of float32, scaled by the units; some operations have
#: float32 kernels that add up better.
_SAFETY = 32.0
#: Units in the last place of the terms of a Gram matrix that it may be off by.
_GRAM_UNITS = 8.0
#: Random vectors by which the norm of an error is estimated; it is then right to a factor of about two.
_VECTORS = 4


@dataclass(frozen=True)
class Precisions:
    """A precision, and another that shows what it rounds.

    Attributes:
        dtype: That of the measurement.
        other: The one it is compared with.
        share: Rounding in ``dtype`` is taken to be at most this share of their difference.
    """

    dtype: torch.dtype
    other: torch.dtype
    share: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> "Precisions":
        """For float64 the other is float32; for float32, float64.

        Raises:
            InputError: Any other precision, or none.
        """
        if dtype == torch.float64:
            return cls(dtype, torch.float32, _SAFETY * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps)
        if dtype == torch.float32:
            return cls(dtype, torch.float64, 4.0)
        raise InputError(f"the theory is checked in torch.float64 or torch.float32; dtype is {dtype!r}")

    def within(self, recording: Recording) -> "Precisions":
        """The same for a network that computes some of it in a narrower precision, whatever is asked for."""
        return replace(self, share=self.share * recording.eps / torch.finfo(recording.logits.dtype).eps)

    def again(self, measure: Callable[[torch.dtype], Result]) -> Result | None:
        """What a measurement gives in the other precision; None where its range does not suffice."""
        try:
            return measure(self.other)
        except (NonFiniteError, UnsupportedModelError):  # the latter where a kernel does not agree with autograd
            return None

    def error(self, measured: Tensor, again: Tensor | None) -> float:
        """Bound of the Frobenius norm of the rounding in a result, given the same in the other precision.

        Without the latter, it is the same share of the norm: that some digits are left is all that is known.
        """
        difference = math.nan
        if again is not None:
            difference = float(torch.linalg.vector_norm(measured.double() - again.double()))
        if not math.isfinite(difference):
            difference = float(torch.linalg.vector_norm(measured.double()))
        return self.share * difference

    def of_map(self, map: Map, again: Map | None, memory_budget: int) -> float:
        """The same of a map's whole Jacobian, estimated from its adjoint's products with a few random vectors.

        Args:
            map: The map in ``dtype``.
            again: It in the other precision.
            memory_budget: Bytes that the temporaries of a product may take.
        """
        vectors = random_vectors(map.rows).to(map.point.device)
        products, others = (
            None if item is None else jacobian_of(item, memory_budget)._apply_adjoint(vectors.to(item.point.dtype))
            for item in (map, again)
        )
        assert products is not None
        return self.error(products, others) / math.sqrt(_VECTORS)


def random_vectors(rows: int) -> Tensor:
    """Standard normal vectors, ``(rows, k)``, float64: ``‖Aᵀ V‖_F² / k`` is ``‖A‖_F²`` on average."""
    return torch.randn(rows, _VECTORS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gram_rounding(recording: Recording, direction: Tensor) -> float:
    """What rounding may do to ``vᵀKv``, where kernels are made of Gram matrices of activations and of cotangents.

    Their terms cancel where samples are nearly equal and batch norm follows; rounding is that of the terms. For a
    vector of standard normal entries its mean is that of the trace, which bounds any eigenvalue's.

    Args:
        recording: A forward pass; to be used inside ``isolation.quiet``.
        direction: ``v``, shape ``(N, O)``.
    """
    terms = 0.0
    if not recording.uses:
        return terms
    cotangents = recording.pull_back(direction.to(recording.logits)[None], recording.uses)
    for use, cotangent in zip(recording.uses, cotangents, strict=True):
        real = use.input.is_floating_point()
        activations = float((use.input.double() ** 2).sum()) if real else use.input.numel()
        # The kernel of a convolution meets an activation once at each position; a bias counts as an activation.
        activations = use.weight_shape[2:].numel() * activations + cotangent.numel()
        terms += activations * float((cotangent.double() ** 2).sum())
    return _GRAM_UNITS * recording.eps * terms
