"""One batch of a tangent kernel: its forward pass, and sweeps of backward passes that keep what the kernel needs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.jacobians.pullback import CACHE_BYTES
from skip_conditioning.diagnostics.kernel.interaction import interactions
from skip_conditioning.diagnostics.kernel.parts import Extent, Part, PartSignals
from skip_conditioning.diagnostics.networks.measuring import ProbedModel
from skip_conditioning.diagnostics.networks.parameter_rules import ParameterRule, rule_for
from skip_conditioning.diagnostics.networks.parameter_units import Unit
from skip_conditioning.diagnostics.networks.recording import Recording, Use
from skip_conditioning.diagnostics.support.progress import Progress
from skip_conditioning.diagnostics.support.sharding import run_in_all, summed

#: Copies of the largest activation that a backward pass keeps alive at a time.
_LIVE_COPIES = 6


class Batch:
    """A batch and the outputs whose derivatives are wanted.

    The kernel has a row for each sample and row of ``basis``. Where samples do not interact one backward pass serves
    a row of ``basis`` for all samples (*independent*); where they do (batch norm in train mode), each row of the
    kernel takes its own (*coupled*).

    Attributes:
        probed: The model at the batch.
        basis: Combinations of outputs, shape ``(R, O)``; all single ones at first.
        samples: N.
        rules: The rule of each unit that has one.
        kept_bytes: Memory of the largest sweep so far.

    Args:
        probed: The model at the batch.
        units: Those whose kernels are wanted.
        memory_budget: Bytes that a backward pass may take.
        group: Processes to share the rows among.
        progress: Called with the rows done and the rows to do.
    """

    def __init__(
        self,
        probed: ProbedModel,
        units: Sequence[Unit],
        *,
        memory_budget: int,
        group: ProcessGroup | None,
        progress: Progress | None,
    ) -> None:
        self.probed, self._group = probed, group
        self._budget, self._progress, self._done = memory_budget, progress, 0
        self.recording = probed.recording()
        self.basis = torch.eye(
            self.recording.logits.shape[1], dtype=self.recording.logits.dtype, device=probed.probe.device
        )
        self.samples, self.kept_bytes = len(probed.probe), 0
        rules = {unit: self._rule(unit) for unit in units}
        self.rules = {unit: rule for unit, rule in rules.items() if rule is not None}

    @property
    def rows(self) -> int:
        """Rows of the kernel."""
        return self.samples * len(self.basis)

    @property
    def coarsest_eps(self) -> float:
        """Unit roundoff of the least precise parameter or tensor that depends on one."""
        return max(self.recording.eps, *(torch.finfo(leaf.dtype).eps for leaf in self.recording.leaves.values()))

    def random_cotangent(self, seed: int) -> Tensor:
        """A random vector of kernel rows, shape ``(N·R,)``, float64; no stream of the user's is touched."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.rows, generator=generator, dtype=torch.float64).to(self.probed.probe.device)

    def gradients(self, cotangent: Tensor) -> dict[nn.Parameter, Tensor]:
        """``Jᵀ v`` by autograd, those parameters that the outputs depend on.

        Args:
            cotangent: Shape ``(N·R,)``.
        """
        v = cotangent.to(self.basis.dtype).view(self.samples, -1) @ self.basis
        return self.recording.gradients(v)

    def interacting(self, units: Sequence[Unit]) -> set[Unit]:
        """Those of some units whose signals for one sample depend on the outputs of others.

        A unit without a rule, whose signals are not seen, is among them if another unit or the inputs are. In
        ``sample`` mode so are all units, as what they are called on may differ from that of a sample alone.
        """
        uses = {unit: self.rules[unit].uses for unit in units if self._has_signals_by_sample(unit)}
        listed = [use for calls in uses.values() for use in calls]
        alone = self.probed.batch_mode == "sample"
        unseen = [unit for unit in units if alone or unit not in self.rules]

        def by_sample(signal: Tensor, use: Use) -> Tensor:
            return signal.movedim(use.sample_axis, 0).unflatten(0, (self.samples, -1))

        def pull_back(cotangent: Tensor) -> list[Tensor]:
            arrived = self.recording.pull_back(cotangent[None], listed) if listed else []
            return [by_sample(signal[0], use) for signal, use in zip(arrived, listed, strict=True)]

        logits = self.recording.logits.detach()
        generator = torch.Generator().manual_seed(0)
        cotangent = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)
        interact = dict(zip(listed, interactions(pull_back, cotangent), strict=True))
        dependent = {unit for unit, calls in uses.items() if any(interact[use] for use in calls)}
        if dependent or (unseen and self._inputs_interact(cotangent)):
            dependent.update(unseen)
        return dependent

    def extent(self, unit: Unit, *, by_rule: bool, coupled: bool) -> Extent | None:
        """Sizes of a unit's signals on this batch; None where they cannot be told apart by sample.

        Args:
            unit: The unit.
            by_rule: Whether its kernel is found by its rule, or by autograd.
            coupled: Whether samples interact.
        """
        samples, rows = (1, self.rows) if coupled else (self.samples, len(self.basis))
        if not by_rule:
            return Extent(samples, rows, 1)
        rule = self.rules[unit]
        shapes = [rule.cotangents(_shape_only(use)).shape for use in rule.uses]
        if not coupled and any(shape[1] % self.samples for shape in shapes):
            return None
        return Extent(samples, rows, sum(shape[1] * shape[4] for shape in shapes) // samples)

    def sweep(self, parts: Sequence[Part], coupled: bool) -> list[PartSignals]:
        """Run the backward passes, and keep for each part what its kernel needs."""
        self.kept_bytes = max(self.kept_bytes, sum(part.bytes for part in parts))
        like = self.recording.logits.detach()
        kept = []
        for part in parts:
            extent = self.extent(part.unit, by_rule=part.rule is not None, coupled=coupled)
            assert extent is not None
            leaf = self.recording.leaves[part.unit.parameters[0]]
            early = part.keeps_gradients and part.rule is not None
            kept.append(
                PartSignals(part, extent, like.to(leaf.dtype), self.activations(part, coupled) if early else None)
            )
        alone = [signals for signals in kept if signals.part.rule is None and not coupled]
        joint = [signals for signals in kept if signals not in alone]
        run_in_all(lambda: self._joint_sweep(joint, coupled), self._group)
        run_in_all(lambda: self._sample_by_sample(alone), self._group)
        for signals in kept:
            summed(signals.values, self._group)
        return kept

    def activations(self, part: Part, coupled: bool) -> Tensor:
        """Activations of a part's layer, all its calls in a row: shape ``(S, G, D, T)``."""
        rule, calls = self.rules[part.unit], []
        with torch.no_grad():
            for use in rule.uses:
                a = rule.activations(use)
                calls.append(a.permute(1, 2, 0, 3).flatten(2)[None] if coupled else self._by_sample(a, 0).flatten(3))
        whole = calls[0] if len(calls) == 1 else torch.cat(calls, dim=3)
        return whole[:, part.start : part.stop] if rule.groups > 1 else whole

    def _has_signals_by_sample(self, unit: Unit) -> bool:
        return unit in self.rules and self.extent(unit, by_rule=True, coupled=False) is not None

    def _inputs_interact(self, cotangent: Tensor) -> bool:
        """Whether the derivative of one sample's outputs in another's real inputs is not zero."""
        probe = self.probed.probe
        tensors = {part: probe.tensors[part] for part in probe.differentiable}
        points = {part: x.detach().requires_grad_() for part, x in tensors.items() if len(x) == self.samples}
        # Copies of them may be changed in place.
        moved = probe.with_tensors({part: point.clone() for part, point in points.items()})
        logits = replace(self.probed, probe=moved).logits().reshape(cotangent.shape)
        if not points or not logits.requires_grad:
            return False

        def pull_back(v: Tensor) -> list[Tensor]:
            with self.probed.state.installed():  # for checkpoints, which run a part again
                arrived = torch.autograd.grad(logits, [*points.values()], v, retain_graph=True, materialize_grads=True)
            return list(arrived)

        return any(interactions(pull_back, cotangent))

    def _by_sample(self, tensor: Tensor, dimension: int) -> Tensor:
        """``(…, N·k, G, C, T)`` to ``(…, N, G, C, k, T)``."""
        return tensor.unflatten(dimension, (self.samples, -1)).movedim(dimension + 1, -2)

    def _joint_sweep(self, kept: list[PartSignals], coupled: bool) -> None:
        """Backward passes from many samples' outputs at once."""
        uses = {signals: self.rules[signals.part.unit].uses for signals in kept if signals.part.rule is not None}
        every = [use for calls in uses.values() for use in calls]
        by_autograd = [signals for signals in kept if signals.part.rule is None]
        leaves = [self.recording.leaves[key] for signals in by_autograd for key in signals.part.unit.parameters]
        count = self.rows if coupled else len(self.basis)
        if not every and not leaves:
            return
        for first, arrived in self._pull_back(self.recording, [*every, *leaves], count, coupled):
            parts = iter(arrived)
            for signals, calls in uses.items():
                cotangents = [self._cotangent(signals, next(parts), use, coupled) for use in calls]
                signals.add_cotangents(first, cotangents[0] if len(calls) == 1 else torch.cat(cotangents, dim=4))
            for signals in by_autograd:
                rows = [_flat(next(parts)) for _ in signals.part.unit.parameters]
                signals.add_gradients(first, torch.cat(rows, dim=1))

    def _cotangent(self, signals: PartSignals, g: Tensor, use: Use, coupled: bool) -> Tensor:
        """What arrived at one call's output, as ``(S, rows, G, C, T)``."""
        g = self.rules[signals.part.unit].cotangents(g.movedim(use.sample_axis + 1, 1))
        if coupled:
            return g.permute(0, 2, 3, 1, 4).flatten(3)[None]
        return self._by_sample(g, 1).flatten(4).transpose(0, 1)

    def _sample_by_sample(self, kept: list[PartSignals]) -> None:
        """Forward and backward passes of one sample at a time, for parameters without a rule."""
        if not kept:
            return
        for sample in self._own(range(self.samples)):
            alone = self.probed.samples()[sample].recording()
            leaves = [alone.leaves[key] for signals in kept for key in signals.part.unit.parameters]
            for first, arrived in self._pull_back(alone, leaves, len(self.basis), False, every=True):
                parts = iter(arrived)
                for signals in kept:
                    rows = [_flat(next(parts)) for _ in signals.part.unit.parameters]
                    signals.add_gradients(first, torch.cat(rows, dim=1), sample)

    def _pull_back(
        self, recording: Recording, targets: Sequence[Use | Tensor], count: int, coupled: bool, every: bool = False
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Rows of the kernel pulled back in chunks: the first row of each, and what arrived at the targets."""
        chunk = self._chunk(recording)
        starts = range(0, count, chunk)
        for first in starts if every else self._own(starts):
            rows = range(first, min(first + chunk, count))
            cotangents = self._cotangents(recording, rows, coupled)
            try:
                arrived = recording.pull_back(cotangents, targets)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                if len(rows) == 1:
                    raise
                # Some operator cannot be batched; one row at a time always works.
                singly = [recording.pull_back(row[None], targets) for row in cotangents]
                arrived = [torch.cat(parts) for parts in zip(*singly, strict=True)]
            yield first, arrived
            self._done += len(rows)
            if self._progress is not None:
                self._progress(self._done, max(self._done, count))

    def _cotangents(self, recording: Recording, rows: range, coupled: bool) -> Tensor:
        logits = recording.logits
        if not coupled:
            return self.basis[rows.start : rows.stop, None].expand(-1, *logits.shape)
        cotangents = logits.new_zeros(len(rows), *logits.shape)
        for index, row in enumerate(rows):
            cotangents[index, row // len(self.basis)] = self.basis[row % len(self.basis)]
        return cotangents

    def _own(self, indices: range) -> range:
        """This process's share."""
        if self._group is None:
            return indices
        return indices[torch.distributed.get_rank(self._group) :: torch.distributed.get_world_size(self._group)]

    def _chunk(self, recording: Recording) -> int:
        """Rows to pull back at a time."""
        logits = recording.logits
        largest = recording.widest * logits.element_size()
        limit = self._budget // (_LIVE_COPIES * largest)
        if logits.device.type == "cpu":
            limit = min(limit, CACHE_BYTES // largest)
        return max(int(limit), 1)

    def _rule(self, unit: Unit) -> ParameterRule | None:
        """The rule of a unit whose parameters are used in calls of one kind only, as far as can be seen."""
        held = [(use, unit.holds(use.weight), unit.holds(use.bias)) for use in self.recording.uses]
        uses = [use for use, has_weight, has_bias in held if has_weight or has_bias]
        kinds = {(use.function, has_weight, has_bias) for use, has_weight, has_bias in held if has_weight or has_bias}
        if len(kinds) != 1:
            return None
        _, has_weight, has_bias = kinds.pop()
        return rule_for(uses, has_weight, has_bias) if has_weight + has_bias == len(unit.parameters) else None


def _flat(gradients: Tensor) -> Tensor:
    """Gradients ``(rows, …)`` as ``(rows, entries)``; those of a parameter without dimensions too."""
    return gradients.reshape(len(gradients), -1)


def _shape_only(use: Use) -> Tensor:
    """Cotangents of a call's output without memory, samples first."""
    return torch.empty((1, *use.output_shape), device="meta").movedim(use.sample_axis + 1, 1)
