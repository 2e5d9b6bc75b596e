"""The kernel of each unit of a network between two batches, by the cheapest route that autograd confirms.

A unit's kernel is computed by one of up to four routes: by the rule of its layer or by autograd, for samples alone or
coupled. ``unit_kernels`` tries them, cheap ones first, until one agrees with ``AutogradReference``: a random product
of the kernel that takes nothing but plain backward passes. Whether samples interact, be it weakly, is told by
``interaction``.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.errors import MemoryBudgetError, NonFiniteError, UnsupportedModelError
from skip_conditioning.diagnostics.kernel.batch import Batch
from skip_conditioning.diagnostics.kernel.parts import Part, PartSignals, part_kernel, part_method, parts_of
from skip_conditioning.diagnostics.networks.parameter_units import Unit
from skip_conditioning.diagnostics.support.memory import readable
from skip_conditioning.diagnostics.support.sharding import run_in_all, summed


class AutogradReference:
    """One random product of the kernel between two batches, by autograd, with which kernels are compared.

    Args:
        left: The first batch.
        right: The second; the same object for a batch with itself.

    Raises:
        NonFiniteError: A gradient holds NaN or infinity.
    """

    def __init__(self, left: Batch, right: Batch) -> None:
        self._v = left.random_cotangent(0)
        self._w = self._v if right is left else right.random_cotangent(1)
        gradients = left.gradients(self._v)
        others = gradients if right is left else right.gradients(self._w)
        self._products = {
            parameter: _product(part, others[parameter]) for parameter, part in gradients.items() if parameter in others
        }
        self._squares = [
            {parameter: _product(part, part) for parameter, part in side.items()} for side in (gradients, others)
        ]
        #: The largest difference of a kernel that agreed, relative to what autograd's product may be at most.
        self.difference = 0.0
        eps = left.coarsest_eps
        #: What a wrong rule leaves out is of the size of the gradient itself. Rounding is of that of the terms which
        #: may cancel in it (a bias before batch norm), say 100 · eps of the whole gradient, squared; and where they
        #: cancel in part, by Young's inequality, that over the relative tolerance.
        self._relative = 10 * eps**0.5
        self._absolute = (100 * eps) ** 2 / self._relative
        self._whole = math.sqrt(math.prod(sum(squares.values()) for squares in self._squares))
        if not math.isfinite(self._whole):
            raise NonFiniteError(
                "the gradients of the tangent kernel hold NaN or infinite values; measure an earlier step, or in dtype "
                "float64"
            )

    def is_used(self, unit: Unit) -> bool:
        """Whether the outputs depend on a unit's parameters at all."""
        return any(parameter in side for side in self._squares for parameter in unit.parameters)

    def agrees(self, unit: Unit, kernel: Tensor) -> bool:
        """Whether a unit's kernel gives the product that autograd gives."""
        expected = sum(self._products.get(parameter, 0.0) for parameter in unit.parameters)
        sizes = [sum(squares.get(parameter, 0.0) for parameter in unit.parameters) for squares in self._squares]
        size = math.sqrt(math.prod(sizes))
        error = abs(float(self._v @ (kernel @ self._w)) - expected)
        agrees = error <= self._relative * size + self._absolute * self._whole
        if agrees and size > 0:
            self.difference = max(self.difference, error / size)
        return agrees


def _product(left: Tensor, right: Tensor) -> float:
    """The scalar product of two gradients, in float64."""
    if left is right and math.isfinite(norm := float(torch.linalg.vector_norm(left))):
        return norm**2  # several times faster than in float64, and as good unless squares leave the range
    return float(left.flatten().double() @ right.flatten().double())


@dataclass(frozen=True)
class Route:
    """A way to a unit's kernel.

    Attributes:
        coupled: Whether every row of the kernel takes a backward pass of its own, which allows samples to interact.
        by_rule: Whether by the rule of its layer, or by autograd.
    """

    coupled: bool
    by_rule: bool


@dataclass(frozen=True)
class UnitKernel:
    """One unit's share of the kernel.

    Attributes:
        unit: The unit.
        matrix: Shape ``(N·R, N'·R)``, float64.
        method: The way to it, one of the names in ``parts``.
    """

    unit: Unit
    matrix: Tensor
    method: str


def unit_kernels(
    sides: Sequence[Batch],
    units: Sequence[Unit],
    routes: dict[Unit, Route],
    reference: AutogradReference | None,
    *,
    coupled: bool,
    interacting: Collection[Unit],
    may_couple: bool,
    memory_budget: int,
    group: ProcessGroup | None,
) -> Iterator[UnitKernel]:
    """The kernels of some units, in no particular order.

    Args:
        sides: The batch, or the two between which the kernel is wanted.
        units: Those wanted.
        routes: Filled with the route that served each unit, or followed if there is no ``reference``.
        reference: What the results have to agree with; None trusts ``routes``.
        coupled: Whether samples are known to interact.
        interacting: Units for which they do; as for ``Batch.interacting``.
        may_couple: Whether a kernel of interacting samples is a valid answer.
        memory_budget: Bytes to take.
        group: Processes to share the work among.

    Raises:
        UnsupportedModelError: No route's result agrees with autograd.
        MemoryBudgetError: Not even one channel of a layer fits the budget.
    """
    left_over, possible_routes = list(units), _routes(coupled, may_couple)
    for route in possible_routes:
        if reference is None:
            possible = [unit for unit in left_over if routes[unit] == route]
        else:
            possible = [unit for unit in left_over if _is_open(route, unit, sides, interacting, coupled, may_couple)]
        for result in _attempted(
            _by_route(sides, possible, route, memory_budget, group), may_fail=route != possible_routes[-1], group=group
        ):
            if reference is None or reference.agrees(result.unit, result.matrix):
                left_over.remove(result.unit)
                routes[result.unit] = route
                yield result
    if left_over:
        reason = (
            "does not agree with autograd; is the forward pass random, or another at each call? Of near-equal samples "
            "rounding may be all that is left in float32: use dtype=torch.float64"
            if may_couple
            else 'does not agree with autograd sample by sample; do samples interact? Measure batch_mode="batch". Or '
            "is the forward pass random, or another at each call?"
        )
        raise UnsupportedModelError(f"the tangent kernel of {left_over[0].name!r} {reason}")


def _attempted(kernels: Iterator[UnitKernel], *, may_fail: bool, group: ProcessGroup | None) -> Iterator[UnitKernel]:
    """Kernels up to the first error of the model's own, in any process, where another route is left.

    A model that makes samples interact may not run on a single one at all.
    """
    while True:
        try:
            result = run_in_all(lambda: next(kernels, None), group)
        except (MemoryBudgetError, torch.OutOfMemoryError):
            raise
        except Exception:
            if not may_fail:
                raise
            return
        if result is None:
            return
        yield result


def _routes(coupled: bool, may_couple: bool) -> list[Route]:
    """The routes that may give a valid answer, cheap ones first."""
    alone = [] if coupled else [Route(coupled=False, by_rule=True), Route(coupled=False, by_rule=False)]
    return alone + ([Route(coupled=True, by_rule=True), Route(coupled=True, by_rule=False)] if may_couple else [])


def _is_open(
    route: Route, unit: Unit, sides: Sequence[Batch], interacting: Collection[Unit], coupled: bool, may_couple: bool
) -> bool:
    """Whether a route can serve a unit, and is worth trying; arguments as for ``unit_kernels``."""
    known = all(unit in side.rules for side in sides)
    if not route.coupled and unit in interacting and (route.by_rule or may_couple):
        return False
    if not route.by_rule:
        # A rule whose result was wrong for samples alone may be right for coupled ones, and is cheaper.
        return not known or route.coupled or coupled or not may_couple
    return known and all(side.extent(unit, by_rule=True, coupled=route.coupled) is not None for side in sides)


def _by_route(
    sides: Sequence[Batch], units: Sequence[Unit], route: Route, memory_budget: int, group: ProcessGroup | None
) -> Iterator[UnitKernel]:
    """Kernels of some units by one route, in as few sweeps of backward passes as the budget allows."""
    # Half of the budget for the signals of a sweep, a quarter for the kernels computed from them.
    limit = memory_budget // (2 * len(sides))
    parts = [part for unit in units for part in _parts(sides, unit, route, limit)]
    missing = {unit: sum(part.unit is unit for part in parts) for unit in units}
    sums: dict[Unit, Tensor] = {}
    methods: dict[Unit, str] = {}
    for sweep in _sweeps(parts, limit):
        kept = [side.sweep(sweep, route.coupled) for side in sides]
        for index, part in enumerate(sweep):
            share, methods[part.unit] = _shared(sides, kept, index, route.coupled, memory_budget // 4, group)
            sums[part.unit] = sums[part.unit].add_(share) if part.unit in sums else share
            missing[part.unit] -= 1
            if not missing[part.unit]:
                yield UnitKernel(part.unit, sums.pop(part.unit), methods[part.unit])


def _parts(sides: Sequence[Batch], unit: Unit, route: Route, limit: int) -> list[Part]:
    rule = sides[0].rules[unit] if route.by_rule else None
    known = [side.extent(unit, by_rule=route.by_rule, coupled=route.coupled) for side in sides]
    extents = [extent for extent in known if extent is not None]
    largest = max(extents, key=lambda extent: extent.samples * extent.rows * extent.positions)
    return parts_of(unit, rule, largest, sides[0].basis.element_size(), limit)


def _sweeps(parts: Sequence[Part], limit: int) -> Iterator[list[Part]]:
    """Parts in groups that fit the limit together.

    Raises:
        MemoryBudgetError: One does not fit by itself.
    """
    group: list[Part] = []
    for part in parts:
        if part.bytes > limit:
            raise MemoryBudgetError(
                f"the tangent kernel of {part.unit.name!r} needs {readable(4 * part.bytes)} even for one channel at a "
                f"time, and half of the memory budget is {readable(limit)}; use fewer probe samples, a larger "
                'memory_budget, outputs="trace", or TangentKernelOperator, which stores nothing'
            )
        if group and sum(item.bytes for item in group) + part.bytes > limit:
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _shared(
    sides: Sequence[Batch],
    kept: Sequence[list[PartSignals]],
    index: int,
    coupled: bool,
    limit: int,
    group: ProcessGroup | None,
) -> tuple[Tensor, str]:
    """A part's share of the kernel, computed by one of the processes for all; its signals are released."""
    ends = [signals[index] for signals in kept]
    for signals in kept:
        signals[index] = None  # type: ignore[call-overload]
    part = ends[0].part

    def compute() -> tuple[Tensor, str]:
        for side, end in zip(sides, ends, strict=True):
            if part.rule is not None and not part.keeps_gradients:
                end.activations = side.activations(part, coupled)
        return part_kernel(ends[0], ends[-1], limit)

    if group is None:
        return compute()
    mine = index % distributed.get_world_size(group) == distributed.get_rank(group)
    rows, columns = sides[0].rows, sides[-1].rows
    nothing = torch.zeros(rows, columns, dtype=torch.float64, device=ends[0].values.device)
    share, method = run_in_all(lambda: compute() if mine else (nothing, part_method(ends[0], ends[-1], limit)), group)
    summed(share, group)
    return share, method
