"""The tangent kernel as an operator: its products and its extreme eigenvalues, where it is too large to store."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, UnsupportedModelError
from skip_conditioning.diagnostics.jacobians.operator import checked_jacobian_of
from skip_conditioning.diagnostics.kernel.result import read_outputs
from skip_conditioning.diagnostics.linalg.extremes import Extreme, largest_singular_value, smallest_singular_value
from skip_conditioning.diagnostics.linalg.operators import Operator, require_precision
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.maps import TOTAL, Map, check_map
from skip_conditioning.diagnostics.networks.measuring import ProbedModel, measuring
from skip_conditioning.diagnostics.networks.numerics import exact_numerics
from skip_conditioning.diagnostics.networks.probe import Call, Probe
from skip_conditioning.diagnostics.support.memory import GIB

COMBINATIONS = ("all", "sum", "centred")


class TangentKernelOperator(Operator):
    """The tangent kernel ``K = J Jᵀ`` of a model on a batch, known by its products.

    ``J`` is the Jacobian of the outputs in the parameters (Jacot, Gabriel & Hongler 2018), ``(N·R, P)``, and ``K`` is
    ``(N·R, N·R)``, rows over (sample, output): the matrix that ``tangent_kernel`` returns, except that ``centred`` is
    written in a basis of contrasts. Worth it where ``(N·R)²`` numbers do not fit, or only the ends of the spectrum are
    wanted; the dense function also tells the layers' shares and all eigenvalues.

    It is a snapshot: training the model further does not change it, and using it changes nothing of the model.

    Building it takes two forward passes and one in forward mode; it holds the activations twice and the weights twice.
    A product with ``K`` is one with ``Jᵀ`` and one with ``J``: about a gradient of the loss, and a vector of ``P``
    entries for each column. In ``sample`` mode all this is done for one sample at a time; unless an eval-mode forward
    pass mixes samples, ``batch`` after ``model.eval()`` is the same kernel, from one pass for all of them.

    Args:
        model: Any module whose forward pass takes ``x`` and returns logits, ``(N, O)``; other dimensions are flattened.
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        layer: Dotted module name, whose trainable parameters are the P; ``total`` for those of the whole model.
        batch_mode: ``batch`` is the kernel of the map of the whole batch, with the model's own train/eval flags, batch
            norm in train mode included; ``sample`` that of each sample by itself, in eval mode: entries between two
            samples are in it, unlike in the block-diagonal ``JacobianOperator``.
        outputs: ``all``, R = O; ``sum``: of ``Σ_o F_o``, R = 1; ``centred``: without the direction in which all outputs
            of a sample move together, in an orthonormal basis of contrasts (``result.contrasts``), R = O − 1.
            Projected to O rows a sample the kernel would have N eigenvalues of zero that mean nothing; in the basis the
            smallest one is that of ``TangentKernel.spectrum()``. Or which entries of the outputs count, as ``Probe``'s.
        dtype: Precision of the products; None keeps the model's.
        memory_budget: Bytes that the temporaries of a product with a block of vectors may take.
        reading: How the probe is read, as for ``Probe``.

    Attributes:
        jacobian: The operator ``J``, shape ``(N·R, P)``.

    Raises:
        UnknownLayerError: The layer is no module; near matches are offered.
        LayerCallError: The layer has no trainable parameters, or is never called.
        UnsupportedModelError: Outputs without a row for each sample, or an operator that cannot be differentiated.
        NonFiniteError: NaN or infinity in the inputs, the weights or the outputs.
        InputError: An unknown option; a glob for several layers; half precision; ``centred`` for a single output.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        layer: str = TOTAL,
        batch_mode: str = "batch",
        outputs: Any = "all",
        dtype: torch.dtype | None = None,
        memory_budget: int = GIB,
        **reading: Unpack[Call],
    ) -> None:
        check_map("kernel", batch_mode, dtype)
        probe, outputs = read_outputs(Probe.of(probe, unwrap(model), **reading), outputs, COMBINATIONS)
        if not isinstance(layer, str):
            raise InputError(f"the layer is {layer!r}; give the name of one module, or {TOTAL!r}")
        name = f"the tangent kernel of {layer!r}"
        blocks: list[Operator] = []
        with measuring(model, probe, batch_mode=batch_mode, dtype=dtype) as probed:
            point: Tensor | None = None
            for part in probed.snapshot().parts():
                map = _map_of(part, layer)
                require_precision(map.point.dtype, name)
                if outputs == "centred" and map.rows == len(part.probe):
                    raise InputError('centred outputs of a network with a single output are zero; use outputs="all"')
                # The parameters are the same for all samples: one vector of them is enough.
                point = map.point if point is None else point
                blocks.append(checked_jacobian_of(dataclasses.replace(map, point=point), memory_budget))
        self.jacobian: Operator = _Stacked(blocks)
        if outputs != "all":
            combinations, stacked = _Combinations(outputs, len(probe), self.jacobian), self.jacobian
            self.jacobian = combinations @ stacked  # type: ignore[assignment]
            self.jacobian.rounding = combinations.norm * stacked.rounding
        rows = self.jacobian.shape[0]
        super().__init__((rows, rows), self.jacobian.dtype, self.jacobian.device, name)
        self.rounding = self.jacobian.rounding**2

    @property
    def T(self) -> Operator:  # noqa: N802
        """The operator itself, which is symmetric."""
        return self

    def largest_eigenvalue(self, *, tolerance: float = 1e-3, max_steps: int = 200, seed: int = 0) -> Extreme:
        """λ_max, the square of the largest singular value of ``J``; see ``extremes.largest_singular_value``.

        Some 5 to 80 steps for most spectra; a step costs a product with ``J`` and one with ``Jᵀ``. Memory for
        ``max_steps`` vectors of ``min(N·R, P)`` entries.

        Args:
            tolerance: Residual to reach, relative to λ_max.
            max_steps: Steps after which the value is only a lower bound.
            seed: Of the start vector.

        Returns:
            ``value`` is λ_max and some eigenvalue lies within ``residual`` of it, by ``|λ − σ²| ≤ r (2σ + r)`` from the
            residual r of σ. The other attributes are those of σ.

        Raises:
            NonFiniteError: A product holds NaN or infinity.
        """
        with exact_numerics([self.device]):
            extreme = largest_singular_value(
                self.jacobian, tolerance=_tolerance_of_root(tolerance), max_steps=max_steps, seed=seed
            )
        return _squared(extreme)

    def smallest_eigenvalue(
        self, *, tolerance: float = 1e-2, max_products: int = 600, floor: float = 0.0, seed: int = 0
    ) -> Extreme:
        """λ_min, the last of ``N·R`` eigenvalues, from ``J``; see ``extremes.smallest_singular_value``.

        By Golub–Kahan–Lanczos on ``J``, as ``K`` squares the condition number: of ``K`` itself an eigenvalue is lost
        under ``eps · λ_max``, here under some ``eps² · λ_max``. With more rows than parameters the kernel is singular:
        λ_min is 0, and no product is made.

        A step costs a product with ``J`` and one with ``Jᵀ``; memory for ``max_products / 2`` vectors of ``N·R``
        entries. Where small eigenvalues lie densely the value remains an upper bound. Up to 64 rows it is exact, from
        the singular values of ``J`` itself, which takes its ``64·P`` entries in float64 on the CPU.

        Args:
            tolerance: Residual to reach, relative to λ_min.
            max_products: Products after which the value is only an upper bound.
            floor: Size below which an eigenvalue cannot be told from zero, such as the square of
                ``spectrum.jacobian_floor``; the search ends under it, with the bound ``upper``. The least used is the
                rounding of the products, ``(4 · eps)² · λ_max``.
            seed: Of the start vector.

        Returns:
            As for ``largest_eigenvalue``; the method is ``exact: rank`` with more rows than parameters.

        Raises:
            InputError: ``floor`` is negative.
            NonFiniteError: A product holds NaN or infinity.
        """
        if floor < 0:
            raise InputError(f"floor={floor}: eigenvalues of a tangent kernel are not negative; take 0 or more")
        start = time.perf_counter()
        rows, cols = self.jacobian.shape
        if rows > cols:
            return Extreme(0.0, 0.0, True, None, 0, "exact: rank", time.perf_counter() - start)
        with exact_numerics([self.device]):
            extreme = smallest_singular_value(
                self.jacobian,
                tolerance=_tolerance_of_root(tolerance),
                max_products=max_products,
                floor=math.sqrt(floor),
                seed=seed,
            )
        return _squared(extreme)

    def _apply(self, block: Tensor) -> Tensor:
        return self.jacobian._apply(self.jacobian._apply_adjoint(block))

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._apply(block)


def _map_of(probed: ProbedModel, layer: str) -> Map:
    """The outputs as a function of one layer's parameters."""
    maps = probed.maps("kernel", [layer])
    if len(maps) != 1:
        raise InputError(f"{layer!r} stands for {len(maps)} layers; name one of them")
    shape = maps[0].output_shape
    if not shape or shape[0] != len(probed.probe):
        raise UnsupportedModelError(
            f"the model returns a tensor of shape {tuple(shape)} for {len(probed.probe)} samples; a tangent kernel "
            "needs outputs (N, O): return one row of outputs for each sample"
        )
    return maps[0]


def _tolerance_of_root(tolerance: float) -> float:
    """The relative residual of σ at which that of ``σ²`` is ``tolerance``: ``t (2 + t) = tolerance``."""
    return tolerance / (1 + math.sqrt(1 + tolerance))


def _squared(extreme: Extreme) -> Extreme:
    """A singular value of ``J`` as an eigenvalue of ``J Jᵀ``."""
    residual = extreme.residual * (2 * extreme.value + extreme.residual)
    return dataclasses.replace(extreme, value=extreme.value**2, residual=residual)


class _Stacked(Operator):
    """Jacobians in the same parameters, one below the other; ``sample`` mode's samples."""

    def __init__(self, blocks: Sequence[Operator]) -> None:
        first, rows = blocks[0], sum(block.shape[0] for block in blocks)
        super().__init__((rows, first.shape[1]), first.dtype, first.device, first.name)
        self.blocks = blocks
        self.rounding = math.sqrt(sum(block.rounding**2 for block in blocks))

    def _apply(self, block: Tensor) -> Tensor:
        with exact_numerics([self.device]):
            parts = [item._apply(block) for item in self.blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        with exact_numerics([self.device]):
            if len(self.blocks) == 1:
                return self.blocks[0]._apply_adjoint(block)
            total = block.new_zeros(self.shape[1], block.shape[1])
            for item, part in zip(self.blocks, block.split([item.shape[0] for item in self.blocks]), strict=True):
                total += item._apply_adjoint(part)
            return total


class _Combinations(Operator):
    """Combinations of each sample's outputs: ``I_N ⊗ C`` with ``C`` of shape ``(R, O)``, never formed.

    Args:
        outputs: ``sum`` or ``centred``; for the latter ``C`` is the transpose of ``result.contrasts``.
        samples: N.
        jacobian: What it is to be applied after, ``(N·O, P)``.

    Attributes:
        norm: Its spectral norm.
    """

    def __init__(self, outputs: str, samples: int, jacobian: Operator) -> None:
        self._outputs, self._samples, rows = outputs, samples, jacobian.shape[0]
        self.norm = math.sqrt(rows / samples) if outputs == "sum" else 1.0
        combined = 1 if outputs == "sum" else rows // samples - 1
        name = "the sum of outputs" if outputs == "sum" else "the centred outputs"
        super().__init__((samples * combined, rows), jacobian.dtype, jacobian.device, name)
        # Contrast c: the sum of the outputs up to the c-th, less c times the next one, normalised.
        count = torch.arange(1, rows // samples, dtype=torch.float64)[:, None]
        self._count = count.to(jacobian.device, jacobian.dtype)
        self._scale = (count * (count + 1)).rsqrt().to(self._count)

    def _apply(self, block: Tensor) -> Tensor:
        outputs = block.reshape(self._samples, -1, block.shape[1])
        if self._outputs == "sum":
            return outputs.sum(1)
        return ((outputs.cumsum(1)[:, :-1] - self._count * outputs[:, 1:]) * self._scale).flatten(0, 1)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        combined = block.reshape(self._samples, -1, block.shape[1])
        if self._outputs == "sum":
            return combined.expand(-1, self.shape[1] // self._samples, -1).flatten(0, 1)
        scaled = combined * self._scale
        zero = scaled.new_zeros(self._samples, 1, block.shape[1])
        earlier = torch.cat([scaled.flip(1).cumsum(1).flip(1), zero], dim=1)
        return (earlier - torch.cat([zero, self._count * scaled], dim=1)).flatten(0, 1)
