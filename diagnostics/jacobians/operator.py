"""The Jacobian of a map as an operator: products with vectors from one forward pass, without the matrix itself.

Both come from one kept backward graph (``pullback``): ``JᵀJ v`` costs about one evaluation of the map's gradient.
"""

import math
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, UnsupportedModelError
from skip_conditioning.diagnostics.jacobians.witness import forward_agrees, witness_of, witnessed_pullback
from skip_conditioning.diagnostics.linalg.operators import Operator
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.maps import TOTAL, Map, check_map
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.numerics import exact_numerics
from skip_conditioning.diagnostics.networks.probe import Probe, Reading
from skip_conditioning.diagnostics.support.memory import GIB

#: Products that differ by more than this from those in float64 are refused.
_MOST_ROUNDING = 0.1


class JacobianOperator(Operator):
    """The Jacobian of one map of a model at a batch, known by its products.

    It is a snapshot: training the model further does not change it, and using it changes nothing of the model. The
    matrix is the one that ``jacobian`` returns; in ``sample`` mode the block-diagonal one of all samples,
    and for ``kernel`` the kernel ``J·Jᵀ``. Vectors are flat, entries running over (sample, coordinate), row-major.

    Use it where the matrix does not fit or a few products are enough. Building it takes a forward and
    a backward pass of the map; it holds the activations between the map's ends twice, and a copy of the weights.

    Args:
        model: Any module whose forward pass takes ``x`` and returns logits.
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        map: ``layer``, ``tail``, ``network``, ``param`` or ``kernel``, as for ``spectra``.
        layer: Dotted module name, with its call (``"name#2"``) where it is called several times; not needed for
            ``network``, and ``total`` by default for ``kernel``.
        batch_mode: ``batch`` or ``sample``, as for ``spectra``.
        dtype: Precision of the products; None keeps the model's.
        memory_budget: Bytes that the temporaries of a product with a block of vectors may take.
        reading: How the probe is read, as for ``Probe``.

    Raises:
        InputError: As for ``spectra``; also when no layer, or more than one, is named for a map that needs one.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        map: str = "layer",
        layer: str | None = None,
        batch_mode: str = "batch",
        dtype: torch.dtype | None = None,
        memory_budget: int = GIB,
        **reading: Unpack[Reading],
    ) -> None:
        check_map(map, batch_mode, dtype)
        if layer is None and map == "kernel":
            layer = TOTAL
        if layer is None and map != "network":
            raise InputError(f"the {map} map needs a layer; name one of the model's modules")
        with measuring(model, Probe.of(probe, unwrap(model), **reading), batch_mode=batch_mode, dtype=dtype) as probed:
            parts = probed.snapshot().parts()
            maps = [part.maps(map, None if layer is None else [layer]) for part in parts]
            if len(maps[0]) != 1:
                raise InputError(f"{layer!r} stands for {len(maps[0])} layers; name one of them")
            blocks = [operator_of(part_maps[0], memory_budget) for part_maps in maps]
        self._inner = blocks[0] if len(blocks) == 1 else _BlockDiagonal(blocks)
        super().__init__(self._inner.shape, self._inner.dtype, self._inner.device, self._inner.name)
        self.rounding = max(block.rounding for block in blocks)

    def _apply(self, block: Tensor) -> Tensor:
        with exact_numerics([self.device]):
            return self._inner._apply(block)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        with exact_numerics([self.device]):
            return self._inner._apply_adjoint(block)


def checked_jacobian_of(map: Map, memory_budget: int) -> "MapOperator":
    """As ``jacobian_of``, for products without a floor beside them: refused where they are mostly rounding.

    Raises:
        UnsupportedModelError: Products are off by more than a tenth.
    """
    operator = jacobian_of(map, memory_budget)
    # Products that are not finite are named when they are made.
    if operator.difference is not None and _MOST_ROUNDING < operator.difference < math.inf:
        raise UnsupportedModelError(
            f"products with {operator.name} are off by {operator.difference:.2g} of their size, by rounding in "
            f"{map.point.dtype}; use dtype=torch.float64"
        )
    return operator


def operator_of(map: Map, memory_budget: int) -> Operator:
    """A map's matrix as an operator: its Jacobian, or ``J·Jᵀ`` for ``kernel``.

    Args:
        map: The map; to be called, and its result used, inside ``isolation.quiet``.
        memory_budget: Bytes that the temporaries of a product may take.

    Raises:
        UnsupportedModelError: An operator in the model cannot be differentiated.
    """
    operator = checked_jacobian_of(map, memory_budget)
    if map.name != "kernel":
        return operator
    kernel: Operator = operator @ operator.T  # type: ignore[assignment]
    kernel.rounding = operator.rounding**2
    return kernel


def jacobian_of(map: Map, memory_budget: int) -> "MapOperator":
    """A map's Jacobian as an operator, for ``kernel`` too; otherwise as ``operator_of``."""
    return MapOperator(map, memory_budget)


class MapOperator(Operator):
    """The Jacobian of a map.

    Args:
        map: The map; to be made and used inside ``isolation.quiet``.
        memory_budget: Bytes that the temporaries of a product may take.

    Attributes:
        difference: How far its products lie from plain autograd's, relative to these; None without a witness.
        rounding: As for ``Operator``; 0 without a witness.
        note: A slower route that was taken; else empty.

    Raises:
        UnsupportedModelError: An operator in the model cannot be differentiated, or no route's products are right.
    """

    def __init__(self, map: Map, memory_budget: int) -> None:
        device, dtype = map.point.device, map.point.dtype
        super().__init__((map.rows, map.cols), dtype, device, f"the {map.name} map of {map.layer!r}")
        witness, self.note, self._matrix = witness_of(map), "", None
        self.difference: float | None = None
        self._pullback, products = witnessed_pullback(replace(map, reference=None), memory_budget, witness, twice=True)
        if witness is None or products is None:
            return
        self.difference, self.rounding = witness.difference(products), witness.floor(products)
        if not forward_agrees(map, self._pullback, witness, products):
            if map.rows * map.cols * map.point.element_size() > memory_budget:
                raise UnsupportedModelError(
                    f"{self.name}: products with it need a second derivative, which some operator does not have or has "
                    f"wrong, and its {map.rows}×{map.cols} entries do not fit the memory budget; choose another layer, "
                    "fewer probe samples, or a larger memory_budget"
                )
            self._matrix = self._pullback(torch.eye(map.rows, dtype=dtype, device=device))
            products = witness.cotangents @ self._matrix.double()
            if not witness.accepts(products):
                raise witness.refuse("its Jacobian", products)
            self.note = "from the whole Jacobian, as some operator has no second derivative"

    def _apply(self, block: Tensor) -> Tensor:
        return self._pullback.forward(block.T).T if self._matrix is None else self._matrix @ block

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._pullback(block.T).T if self._matrix is None else self._matrix.T @ block


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
