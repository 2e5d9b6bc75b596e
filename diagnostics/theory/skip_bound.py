"""What a skip does for one block: ``σ_min(αI + Jg) ≥ α − ‖Jg‖``, for a block ``x ↦ αx + g(x)``.

Source: MacDonald et al. 2023, section 5; docs/paper.md §2.6.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import nn

from skip_conditioning.diagnostics.errors import InputError, LayerCallError
from skip_conditioning.diagnostics.jacobians.exact import exact_spectrum
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.probe import Probe, Reading
from skip_conditioning.diagnostics.support.memory import GIB
from skip_conditioning.diagnostics.theory.rank_limits import rank_limit
from skip_conditioning.diagnostics.theory.rounding import Precisions
from skip_conditioning.diagnostics.theory.statement import Statement

_BOUND = "σ_min(αI + Jg) ≥ α − ‖Jg‖"


def skip_bound(
    model: nn.Module,
    probe: Any,
    *,
    layers: Sequence[str] | str | None = None,
    gain: float = 1.0,
    dtype: torch.dtype = torch.float64,
    memory_budget: int = GIB,
    **reading: Unpack[Reading],
) -> list[Statement]:
    """The smallest singular value of each block against what its skip guarantees, ``g`` being the block less ``αx``.

    Where ``‖Jg‖ ≥ α`` the bound is vacuous, which is common: the branch is then stronger than the skip, and the block
    may or may not be well conditioned.

    Args:
        model: The model, left as it is.
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        layers: Blocks, names or globs; None takes those of the default blocks whose output has their input's shape.
        gain: ``α``, the gain of the skips.
        dtype: ``torch.float64``, or ``torch.float32``; what it rounds is measured in the other.
        memory_budget: Bytes for a Jacobian and its temporaries.
        reading: How the probe is read, as for ``Probe``.

    Returns:
        A statement for each block, in order.

    Raises:
        UnknownLayerError: A name that is no module.
        LayerCallError: A named block that is never called, several times with no call named, or whose output has not
            its input's shape; or no block has.
        MemoryBudgetError: A Jacobian that does not fit.
        InputError: A gain that is not positive, a precision that is neither float32 nor float64.
    """
    if not 0 < gain < math.inf:
        raise InputError(f"the gain of a skip must be a positive number; it is {gain!r}")
    precisions = Precisions.of(dtype)
    probe = Probe.of(probe, unwrap(model), **reading)
    with measuring(model, probe, dtype=dtype) as probed:
        model, maps = probed.model, probed.maps("layer", layers)
        precisions = precisions.within(probed.recording())
        other_maps = precisions.again(lambda other: probed.in_dtype(other).maps("layer", layers))
        again: Sequence[Map | None] = other_maps or [None] * len(maps)
        pairs = [(map, other) for map, other in zip(maps, again, strict=True) if map.output_shape == map.point.shape]
        if layers is not None and len(pairs) < len(maps):
            other = next(map for map in maps if map.output_shape != map.point.shape)
            raise LayerCallError(
                f"layer {other.layer!r} takes {tuple(other.point.shape)} and returns {tuple(other.output_shape)}; an "
                "identity skip needs the same shape: name blocks that keep it"
            )
        if not pairs:
            raise LayerCallError(f"{type(model).__name__} has no block whose output has the shape of its input")
        return [
            _statement(map, gain, precisions.of_map(map, other, int(memory_budget)), model, int(memory_budget))
            for map, other in pairs
        ]


def _statement(map: Map, gain: float, rounding: float, model: nn.Module, memory_budget: int) -> Statement:
    """The bound for one block, whose Jacobian is known up to ``rounding`` in Frobenius norm."""
    # No module's map, so that nothing is there to hold it against.
    branch = dataclasses.replace(map, function=lambda point: map.function(point) - gain * point, reference=None)
    block, rest = (exact_spectrum(item, memory_budget=memory_budget) for item in (map, branch))
    left, norm = float(block.values[-1]), float(rest.values[0])
    error = max(block.floor, rounding) + max(rest.floor, rounding)
    cause = ""
    if norm >= gain - error:
        cause = f"‖Jg‖ = {norm:.4g} is not less than α = {gain:g}"
        if (limit := rank_limit(model, map)) is not None:
            cause += f"; {limit}"
    note = f"‖Jg‖ = {norm:.4g}, ‖αI + Jg‖ = {float(block.values[0]):.4g}"
    return Statement("skip", _BOUND, left, ">=", gain - norm, error, map.layer, cause, note)
