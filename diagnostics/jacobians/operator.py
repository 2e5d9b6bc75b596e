"""The Jacobian of a map as an operator: products with vectors from one forward pass, without the matrix itself.

Products with the Jacobian repeat a recorded forward mode (``linearize``), those with its adjoint a saved backward pass:
``JᵀJ v`` costs about one evaluation of the map's gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.jacobians.forward_mode import NotLinearizableError, linearize
from skip_conditioning.diagnostics.jacobians.rows import chunk_size, clear_autograd_errors
from skip_conditioning.diagnostics.linalg.operators import Operator
from skip_conditioning.diagnostics.networks.isolation import exact_numerics
from skip_conditioning.diagnostics.networks.maps import TOTAL, Map, check_map
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.support.memory import GIB


class JacobianOperator(Operator):
    """The Jacobian of one map of a model at a batch, known by its products.

    It is a snapshot: training the model further does not change it, and using it changes nothing of the model. The
    matrix is the one that ``jacobian`` returns; in ``sample`` mode the block-diagonal one of all samples,
    and for ``kernel`` the kernel ``J·Jᵀ``. Vectors are flat, entries running over (sample, coordinate), row-major.

    Use it where the matrix does not fit or a few products are enough. Building it takes a forward pass and a
    forward-mode pass of the map; it holds the activations between the map's ends twice, and a copy of the weights.

    Args:
        model: Any module whose forward pass takes ``x`` and returns logits.
        x: Probe inputs, shape ``(N, *input_shape)``.
        map: ``layer``, ``tail``, ``network``, ``param`` or ``kernel``, as for ``spectra``.
        layer: Dotted module name, with its call (``"name#2"``) where it is called several times; not needed for
            ``network``, and ``total`` by default for ``kernel``.
        batch_mode: ``batch`` or ``sample``, as for ``spectra``.
        dtype: Precision of the products; None keeps the model's.
        memory_budget: Bytes that the temporaries of a product with a block of vectors may take.

    Raises:
        InputError: As for ``spectra``; also when no layer, or more than one, is named for a map that needs one.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        *,
        map: str = "layer",
        layer: str | None = None,
        batch_mode: str = "batch",
        dtype: torch.dtype | None = None,
        memory_budget: int = GIB,
    ) -> None:
        check_map(map, batch_mode, dtype)
        if layer is None and map == "kernel":
            layer = TOTAL
        if layer is None and map != "network":
            raise InputError(f"the {map} map needs a layer; name one of the model's modules")
        with measuring(model, x, batch_mode=batch_mode, dtype=dtype) as probed:
            parts = probed.snapshot().parts()
            maps = [part.maps(map, None if layer is None else [layer]) for part in parts]
            if len(maps[0]) != 1:
                raise InputError(f"{layer!r} stands for {len(maps[0])} layers; name one of them")
            blocks = [operator_of(part_maps[0], memory_budget) for part_maps in maps]
        self._inner = blocks[0] if len(blocks) == 1 else _BlockDiagonal(blocks)
        super().__init__(self._inner.shape, self._inner.dtype, self._inner.device, self._inner.name)

    def _apply(self, block: Tensor) -> Tensor:
        with exact_numerics([self.device]):
            return self._inner._apply(block)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        with exact_numerics([self.device]):
            return self._inner._apply_adjoint(block)


def operator_of(map: Map, memory_budget: int) -> Operator:
    """A map's matrix as an operator: its Jacobian, or ``J·Jᵀ`` for ``kernel``.

    Args:
        map: The map; to be called, and its result used, inside ``isolation.quiet``.
        memory_budget: Bytes that the temporaries of a product may take.

    Raises:
        UnsupportedModelError: An operator in the model cannot be differentiated.
    """
    operator = jacobian_of(map, memory_budget)
    return operator @ operator.T if map.name == "kernel" else operator  # type: ignore[return-value]


def jacobian_of(map: Map, memory_budget: int) -> Operator:
    """A map's Jacobian as an operator, for ``kernel`` too; otherwise as ``operator_of``."""
    return _MapOperator(map, memory_budget)


class _MapOperator(Operator):
    """The Jacobian of a map."""

    def __init__(self, map: Map, memory_budget: int) -> None:
        device, dtype = map.point.device, map.point.dtype
        super().__init__((map.rows, map.cols), dtype, device, f"the {map.name} map of {map.layer!r}")
        self._map, self._chunk = map, chunk_size(map, memory_budget)
        with clear_autograd_errors(map):
            output, pullback = vjp(map.function, map.point)[:2]
            self._pullback: Callable[[Tensor], Tensor] = lambda cotangent: pullback(cotangent)[0]
            try:
                self._pushforward = linearize(map.function, map.point)
            except NotLinearizableError:
                # The pullback is linear in its cotangent: the adjoint of its derivative is the Jacobian.
                twice = vjp(self._pullback, torch.zeros_like(output))[1]
                self._pushforward = lambda tangent: twice(tangent)[0]

    def _apply(self, block: Tensor) -> Tensor:
        return self._columns(self._pushforward, block, self._map.point.shape)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._columns(self._pullback, block, self._map.output_shape)

    def _columns(self, function: Callable[[Tensor], Tensor], block: Tensor, shape: torch.Size) -> Tensor:
        """A function of one tensor applied to each column of a block, as many at a time as memory allows."""
        vectors = block.T.reshape(-1, *shape)
        with torch.no_grad(), clear_autograd_errors(self._map):
            if self._chunk > 1 and len(vectors) > 1:
                try:
                    chunks = [vmap(function)(chunk).flatten(1) for chunk in vectors.split(self._chunk)]
                    return torch.cat(chunks).T
                except RuntimeError:
                    self._chunk = 1  # some operator cannot be batched; one vector at a time always works
            products = [function(vector).reshape(-1, 1) for vector in vectors]
            return products[0] if len(products) == 1 else torch.cat(products, dim=1)


class _BlockDiagonal(Operator):
    """A block-diagonal matrix of operators: those of the samples in ``sample`` mode."""

    def __init__(self, blocks: list[Operator]) -> None:
        self.blocks = blocks
        rows, cols = (sum(block.shape[side] for block in blocks) for side in (0, 1))
        super().__init__((rows, cols), blocks[0].dtype, blocks[0].device, blocks[0].name)

    def _apply(self, block: Tensor) -> Tensor:
        parts = block.split([operator.shape[1] for operator in self.blocks])
        return torch.cat([operator._apply(part) for operator, part in zip(self.blocks, parts, strict=True)])

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        parts = block.split([operator.shape[0] for operator in self.blocks])
        return torch.cat([operator._apply_adjoint(part) for operator, part in zip(self.blocks, parts, strict=True)])
