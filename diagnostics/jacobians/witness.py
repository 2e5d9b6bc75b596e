"""Witnesses: products of what an engine computes with, held against plain autograd on the network itself.

The difference tells two things. Is it the same matrix at all? A wrong rule of an operator or of batching, or a module
that does something else when it is called again, shows as more than rounding; the engine then takes a slower route, or
refuses. And how far has rounding moved the matrix? By Weyl's inequality singular values move by no more than the norm
of the difference, so that it is the ``floor`` under which a value cannot be told from zero.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import UnsupportedModelError
from skip_conditioning.diagnostics.jacobians.pullback import Pullback, clear_autograd_errors
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.networks.reference import Reference

#: Relative differences up to this many units in the last place are rounding in any network, and need no second look.
_UNITS = 2.0**10

#: A larger one is rounding if plain autograd in the same precision is off by as much, up to this factor.
_ROUNDING = 10.0

#: The floor, in estimated norms of the difference: what exceeds it is right to 10 % on the networks tried
#: (tests/diagnostics/test_floor.py), where at most 2.7 were needed.
NORMS = 4.0


class Witness:
    """The witness of one map.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        reference: Its products by plain autograd.
    """

    def __init__(self, map: Map, reference: Reference) -> None:
        self._name = f"the {map.name} map of {map.layer!r}"
        self._reference, self._eps = reference, torch.finfo(map.point.dtype).eps
        with clear_autograd_errors(map):
            self.cotangents, self._exact = reference.cotangents, reference.exact

    def difference(self, products: Tensor) -> float:
        """How far products lie from plain autograd's, relative to these; see ``Spectrum.witness``.

        Args:
            products: ``U J`` for the ``cotangents`` ``U``, shape ``(k, cols)``.
        """
        return _relative(products.double() - self._exact, self._exact)

    def accepts(self, products: Tensor) -> bool:
        """Whether products differ from plain autograd's by rounding only; arguments as for ``difference``.

        Products that are not finite are left to whoever measures: they are refused there.
        """
        products = products.double()
        if self.difference(products) <= _UNITS * self._eps or not bool(torch.isfinite(products).all()):
            return True
        plain = self._reference.plain
        allowed = max(_ROUNDING * _norm(plain - self._exact), _UNITS * self._eps * _norm(self._exact))
        by_rounding = _norm(products - self._exact) <= allowed
        return by_rounding or _relative(products - plain, plain) <= _UNITS * self._eps

    def accepts_images(self, products: Tensor, tangents: Tensor, images: Tensor) -> bool:
        """Whether products ``J v`` agree with accepted ones ``uᵀJ``: ``uᵀ(J v) = (uᵀJ) v``.

        Args:
            products: ``U J``, shape ``(k, cols)``.
            tangents: Random ``v`` in rows, shape ``(m, cols)``.
            images: ``J v`` in rows, shape ``(m, rows)``.
        """
        products, tangents, images = products.double(), tangents.double(), images.double()
        error = _norm(self.cotangents @ images.T - products @ tangents.T)
        if not math.isfinite(error):
            return not bool(torch.isfinite(products).all())  # where these are finite, a second derivative is not
        allowed = _UNITS * self._eps * _norm(products) + _ROUNDING * _norm(products - self._exact)
        return error <= math.sqrt(len(tangents)) * allowed

    def floor(self, products: Tensor) -> float:
        """``floor_of`` of the difference; arguments as for ``difference``."""
        return floor_of(products.double() - self._exact, self.cotangents.shape[1])

    def refuse(self, what: str, products: Tensor) -> UnsupportedModelError:
        """The error about products that do not agree by any route."""
        ours, plain = _norm(products.double()), _norm(self._exact)
        return UnsupportedModelError(
            f"{self._name}: {what} differs from plain autograd's on the network itself (by "
            f"{self.difference(products):.2g}; norms {ours:.4g} and {plain:.4g}); is its forward pass another at each "
            "call, or its gradient changed by a hook? Choose another layer"
        )


def floor_of(error: Tensor, rows: int) -> float:
    """The size below which rounding may have made a singular value what it is, from random products of the rounding.

    The norm of the rounding ``E`` is estimated from pairs of products: ``(uᵀEEᵀw)²`` is ``‖E‖₄⁴`` on average for
    independent standard normal ``u`` and ``w``, in the Schatten norm that is at least ``‖E‖₂``, and at most
    ``(‖E‖₂ ‖E‖_F)^½``. Nor is it less than ``‖E‖_F`` over the root of the number of directions.

    Args:
        error: ``U E``, shape ``(k, cols)``, float64, for standard normal ``U``.
        rows: Of ``E``.
    """
    scale = float(error.abs().max())
    if not 0 < scale < math.inf:
        return 0.0 if scale == 0 else math.inf
    gram = (error / scale) @ (error / scale).T
    pairs = gram - torch.diag(gram.diag())
    count = len(gram)
    spread = float(pairs.square().sum() / (count * (count - 1))) ** 0.25
    least = math.sqrt(float(gram.diag().mean()) / min(rows, error.shape[1]))
    return NORMS * scale * max(spread, least)


def witness_of(map: Map) -> Witness | None:
    """The map's witness; None for a function that is no module's."""
    return None if map.reference is None else Witness(map, map.reference)


def witnessed_pullback(
    map: Map, memory_budget: int, witness: Witness | None, *, twice: bool = False
) -> tuple[Pullback, Tensor | None]:
    """A map's products by a route that its witness accepts: several vectors at a time, or one by one.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        memory_budget: Bytes that the temporaries of a product may take.
        witness: The map's.
        twice: Whether products with the Jacobian itself are wanted too.

    Returns:
        The products, and those of the witness's cotangents: ``(k, cols)``, None without a witness.

    Raises:
        UnsupportedModelError: None is accepted.
    """
    pullback = Pullback(map, memory_budget, twice=twice)
    if witness is None:
        return pullback, None
    products = _by_some_route(pullback, lambda: pullback(witness.cotangents.to(map.point.dtype)), witness.accepts)
    if not witness.accepts(products):
        raise witness.refuse("a product with its Jacobian", products)
    return pullback, products


def forward_agrees(map: Map, pullback: Pullback, witness: Witness, products: Tensor) -> bool:
    """Whether products with the Jacobian itself agree with those of its adjoint, by some route.

    Args:
        map: The map.
        pullback: Its products.
        witness: Its witness.
        products: Those of the witness's cotangents, accepted.
    """
    generator = torch.Generator().manual_seed(1)
    tangents = torch.randn(2, map.cols, generator=generator, dtype=torch.float32).to(map.point)
    try:
        images = _by_some_route(
            pullback,
            lambda: pullback.forward(tangents),
            lambda images: witness.accepts_images(products, tangents, images),
        )
    except UnsupportedModelError:
        return False
    return witness.accepts_images(products, tangents, images)


def _by_some_route(pullback: Pullback, product: Callable[[], Tensor], accepts: Callable[[Tensor], bool]) -> Tensor:
    """A product with several vectors at a time where that is accepted, else with one at a time."""
    result = product()
    if pullback.chunk > 1 and not accepts(result):
        pullback.chunk = 1
        result = product()
    return result


def _relative(difference: Tensor, of: Tensor) -> float:
    """The norm of a difference relative to what it is one of; 0 where both vanish."""
    size, error = _norm(of), _norm(difference)
    return error / size if size > 0 else (0.0 if error == 0 else math.inf)


def _norm(tensor: Tensor) -> float:
    """The Frobenius norm, at any scale: squares of extreme values would leave the range of float64."""
    scale = float(tensor.abs().max())
    return scale * float(torch.linalg.vector_norm(tensor / scale)) if 0 < scale < math.inf else scale
