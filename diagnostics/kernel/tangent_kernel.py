"""The tangent kernel of a network at finite width, layer by layer, in both batch modes."""

import functools
import time
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.errors import (
    InputError,
    LayerCallError,
    MemoryBudgetError,
    UnsupportedModelError,
)
from skip_conditioning.diagnostics.kernel.batch import Batch
from skip_conditioning.diagnostics.kernel.engine import AutogradReference, Route, UnitKernel, unit_kernels
from skip_conditioning.diagnostics.kernel.result import TangentKernel, centred, read_outputs
from skip_conditioning.diagnostics.kernel.rounding import measured_floors
from skip_conditioning.diagnostics.networks.isolation import require_finite, unwrap
from skip_conditioning.diagnostics.networks.maps import TOTAL, check_map
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.parameter_units import Unit, blocks_of, units_of
from skip_conditioning.diagnostics.networks.probe import Call, Probe
from skip_conditioning.diagnostics.networks.recording import Recording
from skip_conditioning.diagnostics.support.memory import GIB, readable
from skip_conditioning.diagnostics.support.progress import progress_bar
from skip_conditioning.diagnostics.support.sharding import distribute, fails_together


@fails_together
def tangent_kernel(
    model: nn.Module,
    probe: Any,
    x2: Any = None,
    *,
    layers: Sequence[str] | str | None = None,
    batch_mode: str = "batch",
    outputs: Any = "all",
    memory_budget: int = GIB,
    dtype: torch.dtype | None = None,
    floors: bool = False,
    progress: bool = False,
    group: ProcessGroup | None = None,
    **reading: Unpack[Call],
) -> TangentKernel:
    """The tangent kernel of a model on a batch, or between two, with the share of every layer.

    Costs one forward pass and ``O`` backward passes (``N·O`` where batch norm in train mode couples the samples),
    which compute no parameter gradients, and a Gram matrix for each layer: from activations and cotangents alone
    where that is cheaper than to form the gradients. The whole ``N·O × P`` Jacobian never exists. Whether samples
    interact is found by two backward passes, and every block is held against autograd by one random product; what does
    not agree is computed the slow way, and if that does not either, refused.

    The model comes out as it went in: weights, buffers, gradients, flags and random streams.

    Args:
        model: Any module with a row of outputs for each sample, ``(N, O)``; other dimensions are flattened.
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        x2: Other inputs, likewise, for the rectangular kernel ``K(x, x2)``.
        layers: Module names or globs; None takes the blocks and whatever parameters lie outside them, so that the
            blocks sum to the whole. With ``"total"`` among them, ``total`` is the whole; else the sum of those named.
        batch_mode: ``batch`` is the kernel of the map of the whole batch, with the model's own train/eval flags, batch
            norm in train mode included; ``sample`` that of each sample by itself, in eval mode.
        outputs: ``all``; ``trace``: ``Σ_o K[(i,o),(j,o)]``, ``N × N``; ``sum``: the kernel of ``Σ_o F_o``, ``N × N``;
            ``centred``: without the direction in which all outputs of a sample move together, which softmax does not
            see (rows and columns sum to zero over the outputs). Or which entries of the outputs count, as ``Probe``'s.
        memory_budget: Bytes the measurement may take besides the forward pass; with few of them, passes are repeated.
        dtype: Precision of the derivatives; None keeps the model's. Gram matrices are accumulated in float64 always.
        floors: Whether to measure how far rounding has moved the kernel, for the floors of ``spectrum()``; otherwise
            they are assumed from the precision, unless batch norm couples the samples. Costs a forward and about eight
            backward passes, as much as the kernel itself where samples are alone.
        progress: Whether to show a bar.
        group: Processes of ``torch.distributed`` to share the backward passes and Gram matrices among. Every one of
            them has to call, and gets what a single process would.
        reading: How the probe is read, as for ``Probe``.

    Returns:
        The kernel of each block and of the whole, ``(N·R, N'·R)`` in float64.

    Raises:
        UnknownLayerError: A name that is no module; near matches are offered.
        LayerCallError: A named layer without trainable parameters, or that is never called.
        MemoryBudgetError: The kernel does not fit the budget.
        UnsupportedModelError: A complex parameter, outputs without a row for each sample, a forward pass that differs
            from call to call.
        NonFiniteError: NaN or infinity in the inputs, the weights or the kernel.
        InputError: An unknown option; no trainable parameters; ``centred`` for a single output.
    """
    start = time.perf_counter()
    check_map("kernel", batch_mode, dtype)
    model = unwrap(model)
    probe, outputs = read_outputs(Probe.of(probe, model, **reading), outputs)
    flags = _running_statistics(model, batch_mode)
    with (
        measuring(model, probe, batch_mode=batch_mode, dtype=dtype) as probed,
        progress_bar("tangent kernel", show=progress) as advance,
    ):
        units = units_of(model)
        blocks = blocks_of(model, layers, units)
        whole = layers is None or TOTAL in ([layers] if isinstance(layers, str) else layers)
        wanted = [unit for unit in units if whole or any(unit in held for held in blocks.values())]
        wanted = [unit for unit in wanted if _count([unit])]
        sides = [
            Batch(batch, wanted, memory_budget=int(memory_budget) // 4, group=group, progress=advance)
            for batch in ([probed] if x2 is None else [probed, probed.at(probe.like(x2, model))])
        ]
        if len(sides[0].basis) != len(sides[-1].basis):
            counts = " and ".join(str(len(side.basis)) for side in sides)
            raise InputError(f"the outputs for x and x2 must be as many per sample; they are {counts}")
        bases = _bases(outputs, sides[0].basis)
        sums = _Sums(blocks, [len(bases[0]) * side.samples for side in sides], probed.probe.device, int(memory_budget))
        routes: dict[Unit, Route] = {}
        # Of several bases a random combination is checked: an error in any of them shows in it.
        _set_basis(sides, bases[0] if len(bases) == 1 else _random_combination(bases))
        reference = AutogradReference(sides[0], sides[-1])
        _require_visible(wanted, reference, sides[0])
        wanted = [unit for unit in wanted if reference.is_used(unit)]
        coupled = batch_mode == "batch" and _couples(model)
        kernels = functools.partial(
            unit_kernels,
            sides,
            coupled=coupled,
            interacting=() if coupled else _interacting(sides, wanted, group),
            may_couple=batch_mode == "batch",
            memory_budget=int(memory_budget) - sums.bytes,
            group=group,
        )
        sums.drop_uncalled(
            [name for name in blocks if not sides[0].recording.calls(model, name)], wanted, named=layers is not None
        )
        if len(bases) == 1:
            for kernel in kernels(wanted, routes, reference):
                sums.add(kernel)
        else:
            for _ in kernels(wanted, routes, reference):
                pass
            for basis in bases:
                _set_basis(sides, basis)
                for kernel in kernels(wanted, routes, None):
                    sums.add(kernel)
        if outputs == "centred":
            sums.centre(len(bases[0]))
        rounding = {}
        if x2 is None and (floors or coupled):
            rounding = measured_floors(sides[0], {name: blocks[name] for name in sums.blocks}, int(memory_budget))
            if outputs in ("sum", "trace"):  # of all outputs together
                probed_outputs = sides[0].recording.logits.shape[1]
                rounding = {name: floor * probed_outputs**0.5 for name, floor in rounding.items()}
    notes = (flags, probed.note, _narrow(sides[0].recording), _frozen(model), sums.note, _flattened(sides[0].recording))
    require_finite(sums.total, "the tangent kernel")  # and so is every block
    return TangentKernel(
        blocks=sums.blocks,
        total=sums.total,
        methods={name: ", ".join(sorted(sums.methods[name])) or "not reached" for name in sums.blocks},
        num_parameters={name: _count(blocks[name]) for name in sums.blocks} | {TOTAL: _count(wanted)},
        outputs=outputs,
        batch_mode=batch_mode,
        num_outputs=len(bases[0]),
        symmetric=x2 is None,
        dtype=str(sides[0].basis.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - start,
        peak_bytes=sums.bytes + max(side.kept_bytes for side in sides) * len(sides),
        note="; ".join(filter(None, notes)),
        witness=reference.difference,
        rounding=rounding,
    )


class _Sums:
    """Kernels of units added up, by block and all together.

    Args:
        units: Those of each block.
        rows: Rows of the kernel on either side.
        device: Where the kernels live.
        memory_budget: Bytes there are.

    Raises:
        MemoryBudgetError: They do not fit.
    """

    def __init__(
        self, units: dict[str, list[Unit]], rows: Sequence[int], device: torch.device, memory_budget: int
    ) -> None:
        # One for each block, the total, and the two of the unit under way.
        self.bytes = 8 * rows[0] * rows[-1] * (len(units) + 3)
        if 2 * self.bytes > memory_budget:
            raise MemoryBudgetError(
                f"a tangent kernel of {rows[0]}×{rows[-1]} for {len(units)} layers needs about "
                f"{readable(2 * self.bytes)}, the memory budget is {readable(memory_budget)}; use fewer samples or "
                'layers, outputs="trace", a larger memory_budget, or TangentKernelOperator, which stores nothing'
            )
        self._units, self._uncalled = units, list[str]()
        self.total = torch.zeros(rows[0], rows[-1], dtype=torch.float64, device=device)
        self.blocks = dict.fromkeys(units, torch.zeros_like(self.total))
        self.methods: dict[str, set[str]] = {name: set() for name in units}

    def drop_uncalled(self, uncalled: Sequence[str], used: Sequence[Unit], *, named: bool) -> None:
        """Leave out the blocks that are no part of the forward pass, or refuse if they were named.

        Args:
            uncalled: Those whose modules are never called.
            used: Units that the outputs depend on, maybe without a call of their module.
            named: Whether the caller named them.
        """
        for name in uncalled:
            if not any(unit in used for unit in self._units[name]):
                if named:
                    raise LayerCallError(f"layer {name!r} is never called in the forward pass; leave it out")
                self._uncalled.append(name)
                del self.blocks[name]

    def add(self, kernel: UnitKernel) -> None:
        """Add the kernel of one unit to its blocks and the total."""
        self.total += kernel.matrix
        for name in self.blocks:
            if kernel.unit in self._units[name]:
                # Not in place: the first unit's matrix may be in another block too.
                first = not self.methods[name]
                self.blocks[name] = kernel.matrix if first else self.blocks[name] + kernel.matrix
                self.methods[name].add(kernel.method)

    def centre(self, outputs: int) -> None:
        """Remove from every kernel what the outputs of a sample have in common."""
        self.total = centred(self.total, outputs)
        self.blocks = {name: centred(matrix, outputs) for name, matrix in self.blocks.items()}

    @property
    def note(self) -> str:
        """What was left out."""
        return f"never called: {', '.join(self._uncalled)}" if self._uncalled else ""


def _count(units: Sequence[Unit]) -> int:
    return sum(parameter.numel() for unit in units for parameter in unit.parameters)


def _bases(outputs: str, identity: Tensor) -> list[Tensor]:
    """Combinations of outputs whose kernels are wanted, each ``(R, O)``; those of several are added."""
    if outputs == "centred" and len(identity) == 1:
        raise InputError('centred outputs of a network with a single output are all zero; use outputs="all"')
    if outputs == "sum":
        return [identity.sum(0, keepdim=True)]
    return list(identity.split(1)) if outputs == "trace" else [identity]


def _random_combination(bases: Sequence[Tensor]) -> Tensor:
    """One combination of all the outputs, shape ``(1, O)``."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(1, len(bases), generator=generator, dtype=torch.float64)
    return weights.to(bases[0]) @ torch.cat(list(bases))


def _set_basis(sides: Sequence[Batch], basis: Tensor) -> None:
    for side in sides:
        side.basis = basis


def _interacting(sides: Sequence[Batch], units: Sequence[Unit], group: ProcessGroup | None) -> set[Unit]:
    """Units whose signals for one sample depend on the outputs of others, as the first process of the group sees it."""
    positions = distribute([0], lambda _: _positions(sides, units), group)[0]
    return {units[position] for position in positions}


def _positions(sides: Sequence[Batch], units: Sequence[Unit]) -> list[int]:
    interacting = {unit for side in dict.fromkeys(sides) for unit in side.interacting(units)}
    return [position for position, unit in enumerate(units) if unit in interacting]


def _require_visible(units: Sequence[Unit], reference: AutogradReference, side: Batch) -> None:
    """Raise ``UnsupportedModelError`` where parameters seem unused because a checkpoint hides them from autograd."""
    unused = [unit.name for unit in units if not reference.is_used(unit)]
    if unused and side.recording.hides_parameters():
        raise UnsupportedModelError(
            f"a reentrant gradient checkpoint hides {unused[0]!r} from autograd; turn it off, or pass it "
            "use_reentrant=False"
        )


def _couples(model: nn.Module) -> bool:
    """Whether batch norm, in train mode or without running statistics, makes the samples of a batch interact."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
        for module in model.modules()
    )


def _running_statistics(model: nn.Module, batch_mode: str) -> str:
    """A note where the model's train flags are not followed."""
    if batch_mode == "sample" and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules()
    ):
        return "batch norm uses running statistics, although the model is in train mode"
    return ""


def _narrow(recording: Recording) -> str:
    """A note where the network computes in a narrower precision than it is measured in."""
    own = torch.finfo(recording.logits.dtype).eps
    narrow = sorted(str(kind).removeprefix("torch.") for kind in recording.dtypes if torch.finfo(kind).eps > own)
    return f"the network computes some of it in {', '.join(narrow)}" if narrow else ""


def _frozen(model: nn.Module) -> str:
    """A note of the parameters that are no part of the kernel."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"frozen, so no part of it: {shown}" if names else ""


def _flattened(recording: Recording) -> str:
    """A note where the outputs had other dimensions than ``(N, O)``."""
    shape, taken = tuple(recording.output_shape), tuple(recording.logits.shape)
    return "" if len(shape) == 2 else f"outputs of shape {shape} taken as {taken}"
