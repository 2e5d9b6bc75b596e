"""Parts of a tangent kernel: the signals of some channels of a layer, kept from the backward passes, and their kernel.

Output channels contribute to the kernel independently, so a layer too large for the memory budget is cut into parts
along them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from skip_conditioning.diagnostics.linalg.gram import product
from skip_conditioning.diagnostics.networks.parameter_rules import ParameterRule
from skip_conditioning.diagnostics.networks.parameter_units import Unit

#: The ways to the kernel of a part, as results name them.
BY_GRAMS = "activation Gram times cotangent Gram"
BY_GRADIENTS = "per-sample gradients"
BY_AUTOGRAD = "autograd"


@dataclass(frozen=True, eq=False)
class Part:
    """Some of a unit's channels, or of its parameters where it has no rule.

    Attributes:
        unit: The unit.
        rule: Its rule; None for autograd.
        start: First channel (group, if there are several) or parameter.
        stop: The one after the last.
        keeps_gradients: Whether gradients are formed at once and the cotangents dropped, which may take less memory.
        bytes: Memory of its signals.
    """

    unit: Unit
    rule: ParameterRule | None
    start: int
    stop: int
    keeps_gradients: bool
    bytes: int


@dataclass(frozen=True)
class Extent:
    """Sizes of a unit's signals on one batch: S independent samples, R rows of each, T positions."""

    samples: int
    rows: int
    positions: int


def parts_of(unit: Unit, rule: ParameterRule | None, extent: Extent, item: int, limit: int) -> list[Part]:
    """A unit cut into parts of at most ``limit`` bytes each, or single channels if even those take more.

    Args:
        unit: The unit.
        rule: Its rule.
        extent: Of the larger batch.
        item: Bytes of a number.
        limit: Bytes a part may take.
    """
    whole = extent.samples * extent.rows
    if rule is None:
        channels, fixed, each, gradients = sum(parameter.numel() for parameter in unit.parameters), 0, whole, True
    else:
        channels = rule.groups if rule.groups > 1 else rule.outputs
        wide = rule.outputs if rule.groups > 1 else 1
        signal = whole * wide * extent.positions
        gradient = whole * wide * (rule.inputs + rule.has_bias)
        activations = extent.samples * rule.groups * rule.inputs * extent.positions
        smaller = gradient * channels + activations < signal * channels
        fits = (gradient + activations) * item <= limit or signal * item > limit
        gradients = rule.forms_gradients and smaller and fits
        fixed, each = (activations, gradient) if gradients else (0, signal)
    count = max(1, min(channels, (limit // item - fixed) // max(each, 1)))
    return [
        Part(unit, rule, start, min(start + count, channels), gradients, item * (fixed + each * min(count, channels)))
        for start in range(0, channels, count)
    ]


class PartSignals:
    """What one batch's backward passes leave of a part: cotangents, or gradients formed from them.

    Args:
        part: The part.
        extent: Sizes.
        like: A tensor of the dtype and on the device wanted.
        activations: Of the part's groups, shape ``(S, G, D, T)``; None unless gradients are to be kept.
    """

    def __init__(self, part: Part, extent: Extent, like: Tensor, activations: Tensor | None) -> None:
        self.part, self.extent = part, extent
        samples, rows, positions = extent.samples, extent.rows, extent.positions
        count = part.stop - part.start
        if part.rule is None:
            shape: tuple[int, ...] = (samples, rows, count)
        else:
            groups, outputs = (count, part.rule.outputs) if part.rule.groups > 1 else (1, count)
            last = part.rule.inputs + part.rule.has_bias if part.keeps_gradients else positions
            shape = (samples, rows, groups, outputs, last)
        self.activations = activations
        self.values = like.new_zeros(shape)  # zeros, as processes that share the rows add theirs

    def add_cotangents(self, first: int, g: Tensor) -> None:
        """Keep the cotangents ``(S, rows, G, C, T)`` of some rows from ``first`` on, or the gradients they give."""
        assert self.part.rule is not None
        dimension = 2 if self.part.rule.groups > 1 else 3
        g = g.narrow(dimension, self.part.start, self.part.stop - self.part.start)
        if self.part.keeps_gradients:
            assert self.activations is not None
            rows = self.values[:, first : first + g.shape[1]]
            rows[..., : self.part.rule.inputs] = gradients(self.activations, g)
            if self.part.rule.has_bias:
                rows[..., -1] = g.sum(-1)
        else:
            self.values[:, first : first + g.shape[1]] = g

    def add_gradients(self, first: int, rows: Tensor, sample: int = 0) -> None:
        """Keep the gradients of some rows of a sample.

        Args:
            first: The first row.
            rows: Shape ``(rows, P)``.
            sample: Index of the sample.
        """
        self.values[sample, first : first + len(rows)] = rows[:, self.part.start : self.part.stop]


def gradients(a: Tensor, g: Tensor) -> Tensor:
    """Weight gradients: activations ``(S, G, D, T)`` and cotangents ``(S, R, G, C, T)`` to ``(S, R, G, C, D)``."""
    samples, rows, groups, outputs, positions = g.shape
    inputs = a.shape[2]
    if groups == 1:
        flat = g.reshape(samples, rows * outputs, positions) @ a[:, 0].transpose(1, 2)
        return flat.view(samples, rows, 1, outputs, inputs)
    if outputs == inputs == 1:
        # Batches of products of single rows and columns are slow.
        return (g[:, :, :, 0] * a[:, None, :, 0]).sum(-1)[..., None, None]
    flat = g.transpose(1, 2).reshape(samples, groups, rows * outputs, positions) @ a.transpose(2, 3)
    return flat.view(samples, groups, rows, outputs, inputs).transpose(1, 2)


def part_method(left: PartSignals, right: PartSignals, limit: int) -> str:
    """The way to a part's kernel, one of the names above; arguments as for ``part_kernel``."""
    if left.part.rule is None:
        return BY_AUTOGRAD
    if left.part.keeps_gradients or not _by_grams_is_cheaper(left, right, limit):
        return BY_GRADIENTS
    return BY_GRAMS


def part_kernel(left: PartSignals, right: PartSignals, limit: int) -> tuple[Tensor, str]:
    """A part's share of the kernel between two batches, and the way to it.

    Args:
        left: What was kept of the first batch, activations included.
        right: Of the second; the same object for a batch with itself.
        limit: Bytes that temporaries may take.

    Returns:
        Shape ``(S·R, S'·R')``, float64, and one of the names above.
    """
    method = part_method(left, right, limit)
    if method == BY_GRAMS:
        assert left.part.rule is not None
        return _by_grams(left.part.rule, left, right, limit), method
    if left.part.rule is None or left.part.keeps_gradients:
        flat = left.values.flatten(2).flatten(0, 1)
        return product(flat, flat if right is left else right.values.flatten(2).flatten(0, 1)), method
    return _by_gradients(left, right, limit), method


def _by_grams_is_cheaper(left: PartSignals, right: PartSignals, limit: int) -> bool:
    """Compare multiplications, unless memory or the layer leave no choice."""
    rule, (ours, theirs) = left.part.rule, (left.extent, right.extent)
    assert rule is not None
    if not rule.forms_gradients:
        return True
    if rule.groups > 1:
        return False
    outputs = left.part.stop - left.part.start
    positions, others = ours.samples * ours.positions, theirs.samples * theirs.positions
    if ours.positions * theirs.positions > 1 and 8 * positions * others > limit:
        return False
    rows, columns = ours.samples * ours.rows, theirs.samples * theirs.rows
    by_grams = positions * others * (rule.inputs + ours.rows * outputs) + rows * columns * theirs.positions * outputs
    by_gradients = (rows * ours.positions + rows * columns) * rule.inputs * outputs
    return by_grams <= by_gradients


def _by_gradients(left: PartSignals, right: PartSignals, limit: int) -> Tensor:
    """Gradients formed for as many channels at a time as memory allows, and their Gram matrix."""
    total: Tensor | None = None
    rule, samples, rows = left.part.rule, left.extent.samples, left.extent.rows
    assert rule is not None
    dimension = 2 if rule.groups > 1 else 3
    channels = left.part.stop - left.part.start
    wide = rule.outputs if rule.groups > 1 else 1
    each = samples * rows * wide * rule.inputs * left.values.element_size()
    count = max(1, min(channels, limit // max(2 * each, 1)))
    for start in range(0, channels, count):
        stop = min(start + count, channels)

        def formed(kept: PartSignals, start: int = start, stop: int = stop) -> Tensor:
            a = kept.activations
            assert a is not None
            a = a[:, start:stop] if rule.groups > 1 else a
            g = kept.values.narrow(dimension, start, stop - start)
            return gradients(a, g).flatten(2).flatten(0, 1)

        flat = formed(left)
        share = product(flat, flat if right is left else formed(right))
        total = share if total is None else total.add_(share)
    assert total is not None
    if rule.has_bias:
        flat = left.values.sum(-1).flatten(2).flatten(0, 1)
        total += product(flat, flat if right is left else right.values.sum(-1).flatten(2).flatten(0, 1))
    return total


def _by_grams(rule: ParameterRule, left: PartSignals, right: PartSignals, limit: int) -> Tensor:
    """``Σ_{c,t,t'} (a[t]·a'[t']) g[c,t] g'[c,t']``, everything in float64."""
    (samples, rows, positions), (others, columns, other_positions) = (
        (kept.extent.samples, kept.extent.rows, kept.extent.positions) for kept in (left, right)
    )
    assert left.activations is not None
    assert right.activations is not None
    similar = rule.similarities(left.activations, right.activations)
    if positions == other_positions == 1:
        flat = left.values.flatten(2).flatten(0, 1)
        grams = product(flat, flat if right is left else right.values.flatten(2).flatten(0, 1))
        grams.view(samples, rows, others, columns).mul_(similar[:, None, :, None])
        return grams
    pairs = similar.view(samples, positions, others, other_positions).transpose(1, 2).contiguous()
    total = torch.zeros(samples, others, rows, columns, dtype=torch.float64, device=similar.device)
    channels = left.values.shape[3]
    # Copies in float64 of the cotangents on both sides, and those of one sample met by similarities with all others.
    each = 8 * (samples * rows * positions + others * (rows + columns) * other_positions)
    count = max(1, min(channels, limit // each))
    for start in range(0, channels, count):
        g = left.values[:, :, 0, start : start + count].double()
        other = g if right is left else right.values[:, :, 0, start : start + count].double()
        for sample in range(samples):
            first = sample if right is left else 0  # the other half is its transpose
            met = g[sample].flatten(0, 1) @ pairs[sample, first:]
            total[sample, first:].baddbmm_(met.unflatten(1, (rows, -1)).flatten(2), other[first:].flatten(2).mT)
    if right is left:
        for sample in range(samples):
            total[sample + 1 :, sample] = total[sample, sample + 1 :].mT
    return total.transpose(1, 2).reshape(samples * rows, others * columns)
