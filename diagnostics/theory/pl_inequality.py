"""The Polyak–Łojasiewicz chain at one state: the squared gradient of the loss between its floor and its ceiling.

With ``ℓ = c ∘ F`` and the tangent kernel ``K = DF·DFᵀ``, ``|∇ℓ|² = ∇cᵀ K ∇c``, which lies between ``λ(DF)|∇c|²`` and
``‖DF‖²|∇c|²`` (MacDonald et al. 2023, section 2; docs/paper.md §2.3, §2.4).
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, MemoryBudgetError
from skip_conditioning.diagnostics.kernel.result import TangentKernel
from skip_conditioning.diagnostics.kernel.tangent_kernel import tangent_kernel
from skip_conditioning.diagnostics.loss.costs import Cost, CrossEntropy, cost_of
from skip_conditioning.diagnostics.loss.probe_loss import gradient_rounding, loss_gradient
from skip_conditioning.diagnostics.networks.isolation import unwrap
from skip_conditioning.diagnostics.networks.maps import TOTAL, check_map
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.networks.output_choice import class_dimension
from skip_conditioning.diagnostics.networks.parameter_units import units_of
from skip_conditioning.diagnostics.networks.probe import Probe, Reading
from skip_conditioning.diagnostics.spectrum import jacobian_floor
from skip_conditioning.diagnostics.support.memory import GIB, readable
from skip_conditioning.diagnostics.theory.rounding import gram_rounding
from skip_conditioning.diagnostics.theory.statement import Relation, Statement

#: Matrices of the kernel's size that exist at a time: those of ``tangent_kernel``, or the kernel on contrasts and what
#: its eigensolver copies.
_MATRICES = 6

_TINY = torch.finfo(torch.float64).tiny

#: Squares under this have lost digits to the end of float64's range.
_SMALLEST_SQUARE = _TINY / torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class PLChain:
    """The squared gradient of the loss on a batch, and what bounds it.

    Attributes:
        loss: ``ℓ``, as ``probe_loss.probe_metrics`` takes it.
        cost: Which cost that is, and of how many outputs.
        grad_squared: ``|∇ℓ|²`` over the trainable parameters, by autograd.
        kernel_squared: ``∇cᵀ K ∇c``, by the kernel.
        kernel_error: What rounding may have done to that.
        cost_grad_squared: ``|∇c|²``.
        uncentred_squared: The part of ``|∇c|²`` outside the contrasts: rounding, for cross-entropy.
        rayleigh: ``|∇ℓ|² / |∇c|²``; NaN where ``∇c`` is zero.
        lambda_min: ``λ(DF)``, the smallest eigenvalue of ``K``.
        lambda_min_centred: The same on contrasts (outputs that sum to zero for each prediction), where the gradients of
            softmax live; None for the mean square, or a single class.
        lambda_max: ``‖DF‖²``.
        floor: Size below which an eigenvalue of ``K`` cannot be told from zero.
        rounding: What rounding makes of a singular value of ``DF`` at most.
        eps: Unit roundoff of the derivatives.
        limit: Why ``λ(DF)`` is zero, where the shapes or the outputs tell; else empty.
        limit_centred: The same on contrasts.
    """

    loss: float
    cost: Cost
    grad_squared: float
    kernel_squared: float
    kernel_error: float
    cost_grad_squared: float
    uncentred_squared: float
    rayleigh: float
    lambda_min: float
    lambda_min_centred: float | None
    lambda_max: float
    floor: float
    rounding: float
    eps: float
    limit: str
    limit_centred: str

    @property
    def pl_floor(self) -> float:
        """``λ(DF)|∇c|²``, which bounds ``|∇ℓ|²`` from below."""
        return self.lambda_min * self.cost_grad_squared

    @property
    def pl_floor_centred(self) -> float | None:
        """The same with ``λ`` on contrasts; None where there is none."""
        return None if self.lambda_min_centred is None else self.lambda_min_centred * self.cost_grad_squared

    @property
    def pl_ceiling(self) -> float:
        """``‖DF‖²|∇c|²``, which bounds ``|∇ℓ|²`` from above."""
        return self.lambda_max * self.cost_grad_squared

    @property
    def statements(self) -> list[Statement]:
        """The chain link by link: both sides, what rounding may have done to them, and why a link is vacuous."""
        identity = 2 * self._gradient_error() + self.kernel_error
        links = [
            self._link("gradient identity", "|∇ℓ|² = ∇cᵀ K ∇c", "=", self.kernel_squared, identity),
            self._link("PŁ floor", "|∇ℓ|² ≥ λ(DF)|∇c|²", ">=", self.pl_floor, self._eigen_error(self.lambda_min)),
        ]
        links[1] = replace(links[1], cause=links[1].cause or self._vacuous(links[1], self.lambda_min, self.limit))
        if self.lambda_min_centred is not None and self.pl_floor_centred is not None:
            # What is not centred of ∇c is rounding, and shifts |DFᵀ∇c| by ‖DF‖ times its size at most.
            shift = math.sqrt(self.lambda_max * self.uncentred_squared)
            error = self._eigen_error(self.lambda_min_centred) + 2 * math.sqrt(self.grad_squared) * shift + shift**2
            formula = "|∇ℓ|² ≥ λ(DF on contrasts)|∇c|²"
            link = self._link("PŁ floor, centred", formula, ">=", self.pl_floor_centred, error)
            cause = link.cause or self._vacuous(link, self.lambda_min_centred, self.limit_centred)
            links.append(replace(link, cause=cause))
        ceiling = self._eigen_error(self.lambda_max)
        links.append(self._link("PŁ ceiling", "|∇ℓ|² ≤ ‖DF‖²|∇c|²", "<=", self.pl_ceiling, ceiling))
        return [*links, self._cost_gradient()]

    @property
    def verdict(self) -> str:
        """``holds``, or ``violated:`` or ``vacuous:`` and the statements that are, with the causes of the latter."""
        statements = self.statements
        violated = [item.name for item in statements if item.verdict == "violated"]
        vacuous = [f"{item.name} ({item.cause})" for item in statements if item.verdict == "vacuous"]
        if violated:
            return f"violated: {', '.join(violated)}"
        return f"vacuous: {', '.join(vacuous)}" if vacuous else "holds"

    def _link(self, name: str, formula: str, relation: Relation, right: float, error: float) -> Statement:
        return Statement(name, formula, self.grad_squared, relation, right, error + _TINY, cause=self._beyond())

    def _beyond(self) -> str:
        """Why float64 does not suffice; empty where it does."""
        within = _SMALLEST_SQUARE <= self.cost_grad_squared < math.inf
        return "" if within else f"|∇c|² is {self.cost_grad_squared:.2g} in float64"

    def _vacuous(self, link: Statement, smallest: float, limit: str) -> str:
        """Why a floor is vacuous; empty where it is not."""
        if smallest <= self.floor:
            return limit or f"λ(DF) is under the rounding of {self.floor:.2g}"
        return f"|∇ℓ|² is under the rounding of {link.error:.2g}" if link.left <= link.error else ""

    def _gradient_error(self) -> float:
        """What rounding may have done to ``|∇ℓ|²``: it moves ``∇ℓ = DFᵀ∇c`` by ``rounding · |∇c|`` at most."""
        shift = self.rounding * math.sqrt(self.cost_grad_squared)
        return 2 * math.sqrt(self.grad_squared) * shift + shift**2

    def _eigen_error(self, eigenvalue: float) -> float:
        """The same for the difference of ``|∇ℓ|²`` and an eigenvalue times ``|∇c|²``: its square root moves so too."""
        moved = 2 * math.sqrt(eigenvalue) * self.rounding + self.floor
        return self._gradient_error() + moved * self.cost_grad_squared

    def _cost_gradient(self) -> Statement:
        """``|∇c|²`` against what the loss alone says of it.

        One entry of the gradient of cross-entropy is known to a few units in the last place of ``1/N``, the loss to as
        many of its own; a mean square and its gradient to as many relatively as there are terms in the sum.
        """
        right = self.cost.gradient_floor(self.loss)
        left, name = self.cost_grad_squared, "cost gradient"
        if not isinstance(self.cost, CrossEntropy):
            error = (self.cost.entries + 4) * self.eps * (left + right) + _TINY
            cause = "" if math.isfinite(left + right) else self._beyond() or "the loss is infinite in float64"
            return Statement(name, "|∇c|² = 4c/(N·O)", left, "=", right, error, cause=cause)
        terms = (self.cost.classes + 4) * self.eps
        shift = terms * math.sqrt(self.cost.classes / self.cost.samples)
        loss = self.loss + (terms + self.cost.samples * self.eps) * (1 + self.loss)
        error = 2 * math.sqrt(left) * shift + shift**2 + (self.cost.gradient_floor(loss) - right) + _TINY
        cause = f"the loss is under the rounding of {error:.2g}" if right <= error else ""
        return Statement(
            name, "|∇c|² ≥ K/(K−1) max((1 − e^{−c})²/N², (1 − e^{−Nc})²/N³)", left, ">=", right, error, cause=cause
        )


def pl_chain(
    model: nn.Module,
    probe: Any,
    targets: Any = None,
    *,
    dtype: torch.dtype | None = torch.float64,
    memory_budget: int = GIB,
    **reading: Unpack[Reading],
) -> PLChain:
    """The squared gradient of the loss on a batch, and its floor and ceiling by the tangent kernel.

    Costs the tangent kernel of the batch (with the model's own train/eval flags, batch norm in train mode included), a
    few backward passes more, and the eigenvalues of one or two matrices of ``N·O`` rows. The model comes out as it went
    in.

    Args:
        model: Any module with a row of outputs for each sample.
        probe: Inputs or a ``Probe``, as for ``measure.spectra``.
        targets: As for ``probe_loss.probe_metrics``: class indices of two classes or more, or real numbers.
        dtype: Precision of the derivatives; None keeps the model's.
        memory_budget: Bytes the measurement may take.
        reading: How the probe is read, as for ``Probe``.

    Returns:
        Both sides of each link, with what rounding may have done to them.

    Raises:
        MemoryBudgetError: The kernel does not fit the budget.
        InputError: The targets do not fit the outputs, or stand for a single class; and as for
            ``tangent_kernel``.
    """
    check_map("kernel", "batch", dtype)
    units_of(unwrap(model))  # raises for complex parameters
    probe = Probe.of(probe, unwrap(model), targets, **reading)
    with measuring(model, probe, dtype=dtype) as probed:
        recording = probed.recording()
        gradient = loss_gradient(recording, probed.probe)
        rounding = gradient_rounding(probed, gradient, recording)
        directions = (gradient.outputs, torch.randn(recording.logits.shape, generator=torch.Generator().manual_seed(0)))
        along, throughout = (gram_rounding(recording, direction) for direction in directions)
    logits = recording.logits.detach().view(recording.output_shape)
    cost = checked_cost(logits, probed.probe, memory_budget)
    kernel = tangent_kernel(model, probe, layers=TOTAL, dtype=dtype, memory_budget=int(memory_budget))
    spectrum, vector, scale = kernel.spectrum(), gradient.outputs.flatten(), gradient.scale
    kernel_squared = float(vector @ kernel.total @ vector)
    gradient_squared, size = sum(gradient.squares().values()), float(vector @ vector)
    centred, uncentred = None, 0.0
    if isinstance(cost, CrossEntropy):
        dimension = class_dimension(logits, probed.probe.targets, probed.probe.first)
        uncentred = float((gradient.outputs.view_as(logits).mean(dimension) ** 2).sum()) * cost.classes
        kernel = _on_predictions(kernel, logits.shape, dimension)
        centred = float(kernel.spectrum().values[-1])
    eps = recording.eps
    rounding = max(rounding, jacobian_floor(math.sqrt(float(kernel.total.trace())), eps))
    floor = max(float(spectrum.floor), rounding**2, throughout)
    return PLChain(
        loss=gradient.loss,
        cost=cost,
        grad_squared=gradient_squared * scale * scale,
        kernel_squared=kernel_squared * scale * scale,
        kernel_error=along * scale * scale,
        cost_grad_squared=size * scale * scale,
        uncentred_squared=uncentred * scale * scale,
        rayleigh=gradient_squared / size if size > 0 else math.nan,
        lambda_min=float(spectrum.values[-1]),
        lambda_min_centred=centred,
        lambda_max=spectrum.sigma_max,
        floor=floor,
        rounding=rounding,
        eps=eps,
        limit=_limit(kernel, floor, on_contrasts=False),
        limit_centred="" if centred is None else _limit(kernel, floor, on_contrasts=True),
    )


def checked_cost(logits: Tensor, probe: Probe, memory_budget: int) -> Cost:
    """The cost that the targets stand for, after checking that its chain can be measured.

    Args:
        logits: The network's outputs, samples first.
        probe: With targets that fit them.
        memory_budget: Bytes the measurement may take.

    Raises:
        InputError: A single class.
        MemoryBudgetError: The kernel does not fit the budget.
    """
    cost, rows = cost_of(logits, probe), logits.numel()
    if isinstance(cost, CrossEntropy) and cost.classes < 2:
        raise InputError("the cross-entropy of a single class is always zero; give real targets, or more outputs")
    needed = 8 * _MATRICES * rows**2
    if needed > memory_budget:
        raise MemoryBudgetError(
            f"a PŁ chain needs the tangent kernel, {rows}×{rows}, and about {readable(needed)}; the memory budget is "
            f"{readable(memory_budget)}; use a smaller probe or a larger memory_budget"
        )
    return cost


def _on_predictions(kernel: TangentKernel, shape: torch.Size, dimension: int) -> TangentKernel:
    """The kernel of logits of some shape with rows over (prediction, class), its spectrum that on contrasts."""
    axes = len(shape)
    view = kernel.total.view(*shape, *shape).movedim((dimension, axes + dimension), (axes - 1, 2 * axes - 1))
    total = view.reshape(kernel.total.shape)
    return replace(kernel, total=total, outputs="centred", num_outputs=shape[dimension])


def _limit(kernel: TangentKernel, floor: float, *, on_contrasts: bool) -> str:
    """Why the smallest eigenvalue of a kernel is zero, where the shapes or the outputs tell; else empty.

    Args:
        kernel: With rows over (prediction, output).
        floor: Size below which an eigenvalue cannot be told from zero.
        on_contrasts: Whether only outputs that sum to zero for each prediction count.
    """
    outputs, parameters = kernel.num_outputs, kernel.num_parameters[TOTAL]
    samples = len(kernel.total) // outputs
    rows = samples * (outputs - 1) if on_contrasts else samples * outputs
    if parameters < rows:
        return f"{parameters} parameters, {rows} {'contrasts of outputs' if on_contrasts else 'outputs'}"
    view = kernel.total.view(samples, outputs, samples, outputs)
    if samples > 1 and float(view.diagonal(dim1=1, dim2=3).sum((0, 1)).max()) / samples <= floor:
        return "the outputs sum to a constant over the samples"
    if not on_contrasts and outputs > 1 and float(view.diagonal(dim1=0, dim2=2).sum((0, 1)).max()) / outputs <= floor:
        return "the outputs of each sample sum to a constant"
    return ""
