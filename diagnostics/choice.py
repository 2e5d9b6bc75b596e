"""Which method measures a map: exactly, or matrix-free where that does not fit or costs too much."""

import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from diagnostics.errors import InputError, MemoryBudgetError, near_matches
from diagnostics.exact import Plan
from diagnostics.maps import Map

METHODS = ("auto", "exact", "lanczos")

#: Products that a matrix-free measurement takes, about: a few probe vectors with a few dozen steps of two each, run
#: singly, which makes them several times slower than rows in chunks.
_MATRIX_FREE_PRODUCTS = 1000

#: Operations that take a few seconds at most: all singular values are worth them.
_CHEAP = 1e11


def check_method(method: str, tolerance: float | None) -> None:
    """Raise ``InputError`` for an unknown method, or a tolerance that is none."""
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; known are {', '.join(METHODS)}.{near_matches(method, METHODS)}")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise InputError(f"tolerance must be a positive relative error such as 0.01, or None; it is {tolerance!r}")


def choose_method(map: Map, memory_budget: int) -> tuple[str, str]:
    """``exact`` or ``lanczos``, and the reason in words.

    Exact while it fits the budget and is cheaper by estimated cost, or a matter of seconds. Costs are counted in
    arithmetic operations, not timed, so that a measurement repeats.

    Args:
        map: The map; to be used inside ``isolation.quiet``.
        memory_budget: Bytes that a measurement may take.
    """
    try:
        plan = Plan.of(map, memory_budget)
    except MemoryBudgetError:
        return "lanczos", "auto: an exact spectrum does not fit the memory budget"
    products, algebra = plan.products(map), plan.algebra(map)
    if products <= _MATRIX_FREE_PRODUCTS and algebra <= _CHEAP:
        return "exact", f"auto: exact fits, with {products:.0f} products"
    product = _product_cost(map)
    exact, free = products * product + algebra, _MATRIX_FREE_PRODUCTS * product
    if exact <= max(free, _CHEAP):
        return "exact", f"auto: exact fits, at about {exact:.1g} operations"
    return "lanczos", f"auto: exact would take about {exact:.1g} operations, matrix-free {free:.1g}"


def _product_cost(map: Map) -> float:
    """Operations of one product with the Jacobian: those of a forward pass, element by element ones included."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        map.function(map.point)
    return counter.get_total_flops() + 10.0 * map.widest
