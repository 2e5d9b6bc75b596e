"""Gradient descent on contractive networks with steps of 1/β, every step held against what the theory guarantees.

All initialisations of an arm are trained in one pass, with stacked weights. At each step a rigorous bound β of the
Hessian on the whole step and a lower bound λ of ``λ(DF)`` are computed from the layers; the next loss is then compared
with ``ℓ − η/2·λ|∇c|²``, and with the cumulative guarantee.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange

from skip_conditioning.diagnostics.loss.costs import Cost, cost_of
from skip_conditioning.diagnostics.loss.descent import guaranteed_decrease, next_guarantee
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.diagnostics.theory.curvature_bounds import jacobian_bound, lipschitz_bound
from skip_conditioning.experiments.theory.contractive_constants import (
    ContractiveClass,
    Spectra,
    layer_constants,
    regularities,
    regularity_floor,
    singular_value_range,
    spectra_of,
    widened,
)

#: How far weights may move before bounds are computed anew, as a share of one plus their size.
_REACH = 1e-2
#: Rounding of a loss, in units of ``eps`` times the size of the outputs.
_ROUNDING_UNITS = 64

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """A network and the data that it is trained to fit.

    Attributes:
        network: A ``contractive-mlp``, for the shape of its computation; its own weights are not used.
        family: The class of its weights.
        inputs: ``H_0``, shape ``(N, d)``, float64.
        targets: Class indices or real outputs, as for ``costs.cost_of``.
    """

    network: nn.Sequential
    family: ContractiveClass
    inputs: Tensor
    targets: Tensor

    @property
    def is_classification(self) -> bool:
        """Whether the cost is cross-entropy."""
        return not self.targets.is_floating_point()


@dataclass
class Trajectory:
    """R runs of gradient descent. Tensors have shape ``(R,)``.

    Attributes:
        prior: λ₀, the lower bound of λ(DF) at all weights of the class; 0 where it says nothing.
        rows: One for each logged step: ``step`` and the quantities logged, by name.
        weights: By step, stacked; kept at a few steps.
        violations: Steps that gained less than guaranteed, by more than rounding.
        worst_step: The greatest ``ℓ_{t+1} − ℓ_t + η/2·λ|∇c|²`` less rounding.
        worst_total: The greatest ``ℓ_t − G_t`` less rounding.
        least_regularity: The smallest λ at any step.
    """

    prior: float
    rows: list[dict[str, Tensor | int]] = field(default_factory=list)
    weights: dict[int, Weights] = field(default_factory=dict)
    violations: Tensor = field(default_factory=lambda: torch.tensor(0))
    worst_step: Tensor = field(default_factory=lambda: torch.tensor(-torch.inf))
    worst_total: Tensor = field(default_factory=lambda: torch.tensor(-torch.inf))
    least_regularity: Tensor = field(default_factory=lambda: torch.tensor(torch.inf))


def train(problem: Problem, start: Weights, steps: int, *, title: str, per_decade: int = 20) -> Trajectory:
    """Train R networks side by side.

    The cumulative guarantee uses λ₀ where the class has one, known before training, and λ at each step elsewhere.

    Args:
        problem: Network, data and cost.
        start: Initial weights, each of shape ``(R, …)``; they are left alone.
        steps: Of gradient descent.
        title: Of the progress bar.
        per_decade: How many steps of each decade are logged; weights are kept at its ends.
    """
    depth = len(start) - 1
    trajectory = Trajectory(prior=regularity_floor(problem.family, problem.inputs, depth))
    logged, kept = set(log_spaced(steps, per_decade)), set(log_spaced(steps, 1))
    descent = _Descent(problem, start)
    before, guarantee = None, torch.empty(0)
    for step in trange(steps + 1, desc=title, leave=False, dynamic_ncols=True):
        state = descent.state()
        if before is None:
            guarantee = state.loss
        else:
            decrease = guaranteed_decrease(before.lr, before.regularity, before.cost_gradient_squared)
            gained_less = state.loss - before.loss + decrease - state.rounding
            trajectory.violations = trajectory.violations + (gained_less > 0)
            trajectory.worst_step = torch.maximum(trajectory.worst_step, gained_less)
            floor = before.regularity.clamp(max=trajectory.prior) if trajectory.prior else before.regularity
            guarantee = next_guarantee(guarantee, before.lr, floor, descent.cost)
            trajectory.worst_total = torch.maximum(trajectory.worst_total, state.loss - guarantee - state.rounding)
        trajectory.least_regularity = torch.minimum(trajectory.least_regularity, state.regularity)
        if step in logged:
            trajectory.rows.append(
                {"step": step, **descent.row(state), "guarantee": guarantee, "violations": trajectory.violations}
            )
        if step in kept:
            trajectory.weights[step] = {name: weight.detach().clone() for name, weight in descent.weights.items()}
        if step < steps:
            descent.move(state.lr)
            before = state
    return trajectory


def log_spaced(steps: int, per_decade: int) -> list[int]:
    """0, then about so many whole numbers per decade, powers of ten among them, and the last step."""
    places: Iterator[int] = (round(10 ** (place / per_decade)) for place in range(10 * per_decade))
    return sorted({0, steps, *(place for place in places if place <= steps)})


@dataclass(frozen=True)
class _State:
    """Where R runs are, and the step they are about to take; shape ``(R,)`` each."""

    loss: Tensor
    rounding: Tensor
    cost_gradient_squared: Tensor
    regularity: Tensor
    beta: Tensor

    @property
    def lr(self) -> Tensor:
        """η, the longest step for which a decrease is guaranteed."""
        return 1 / self.beta


class _Region:
    """All weights within reach of where R networks are, and what holds there; bounds of shape ``(R,)``.

    Attributes:
        reach: How far each layer's weights may move, shape ``(B + 1, R)``.
        jacobian: Upper bound of ``‖DF‖``.
        lipschitz: Upper bound of ``‖D²F‖``.
        blocks_regularity: Lower bound of the share of the blocks in λ(DF).
    """

    def __init__(self, family: ContractiveClass, spectra: Spectra, reach: Tensor) -> None:
        nearby = widened(family, spectra, reach)
        layers = layer_constants(family, nearby)
        self.reach = reach
        self.jacobian, self.lipschitz = jacobian_bound(layers), lipschitz_bound(layers)
        self.blocks_regularity = regularities(family, nearby)[:-1].sum(dim=0)

    def beta(self, steepest: Tensor, cost: Cost) -> Tensor:
        """Upper bound of ``‖∇²ℓ‖`` where ``|∇c|`` is at most ``steepest`` (docs/paper.md §2.5)."""
        return self.lipschitz * steepest + cost.curvature * self.jacobian.square()


class _Descent:
    """R networks, the bounds that hold where they are, and the step between."""

    def __init__(self, problem: Problem, start: Weights) -> None:
        self.family, self.inputs, self.targets = problem.family, problem.inputs, problem.targets
        self.network = _with_weights(problem.network, start)
        self.weights = dict(self.network.named_parameters())
        self.runs = len(next(iter(start.values())))
        with torch.no_grad():
            self.cost = cost_of(self._features()[-1][0], Probe(self.inputs, self.targets))
        self._labels = self.targets.repeat(self.runs) if problem.is_classification else None
        self._start = start
        self._region: _Region | None = None
        self._path = torch.zeros(len(start), self.runs, dtype=torch.float64)

    def _features(self) -> list[Tensor]:
        """Inputs of the blocks and the head, and the outputs."""
        features = [self.inputs]
        for layer in (*self.network.blocks, self.network.head):  # type: ignore[misc]
            features.append(layer(features[-1]))
        return features

    def state(self) -> _State:
        """Losses, gradients (kept for `move`) and bounds at the current weights."""
        *features, outputs = self._features()
        losses, rounding = self._losses(outputs)
        slope, *self._gradients = torch.autograd.grad(losses.sum(), [outputs, *self.weights.values()])
        with torch.no_grad():
            squared = slope.square().sum(dim=(-2, -1))
            lengths = torch.stack([torch.linalg.vector_norm(g, dim=(-2, -1)) for g in self._gradients])
            # No step raises the loss, and on a step of at most 1/(‖∇²c‖‖DF‖²) the gradient of the cost at most doubles.
            steepest = (2 * squared.sqrt()).clamp(max=self.cost.gradient_ceiling(losses.detach()))
            region, beta = self._ahead(features, steepest, lengths)
            head = singular_value_range(features[-1])[0].square()
            return _State(losses.detach(), rounding, squared, region.blocks_regularity + head, beta)

    def _ahead(self, features: list[Tensor], steepest: Tensor, lengths: Tensor) -> tuple[_Region, Tensor]:
        """A region that a step of 1/β stays in, and this β.

        The region at hand is kept until the path leaves it. A new one reaches at least as far as a step of 1/β would
        go with the β of a point, which is no larger than that of the region.

        Args:
            features: Inputs of the blocks and the head.
            steepest: Upper bound of ``|∇c|`` on the step, shape ``(R,)``.
            lengths: ``|∇_lℓ|``, shape ``(B + 1, R)``.
        """
        if self._region is not None:
            beta = self._region.beta(steepest, self.cost)
            self._path = self._path + lengths / beta
            if bool((self._path <= self._region.reach).all()):
                return self._region, beta
        *blocks, head = self.weights.values()
        spectra = spectra_of(blocks, head, features)
        point = _Region(self.family, spectra, torch.zeros_like(lengths))
        sizes = 1 + torch.cat([spectra.lengths[0], spectra.head[1][None]])
        reach = torch.maximum(_REACH * sizes, lengths / point.beta(steepest, self.cost))
        self._region = _Region(self.family, spectra, reach)
        beta = self._region.beta(steepest, self.cost)
        self._path = lengths / beta
        return self._region, beta

    def _losses(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and what rounding may have done to them."""
        size = 1 + outputs.detach().abs().amax(dim=(-2, -1))
        unit = _ROUNDING_UNITS * torch.finfo(outputs.dtype).eps
        if self._labels is not None:
            each = functional.cross_entropy(outputs.flatten(0, 1), self._labels, reduction="none")
            return each.view(self.runs, -1).mean(dim=1), unit * size
        return (outputs - self.targets).square().mean(dim=(-2, -1)), unit * size.square()

    @torch.no_grad()
    def move(self, lr: Tensor) -> None:
        """One step of gradient descent, in place."""
        for weight, gradient in zip(self.weights.values(), self._gradients, strict=True):
            weight.sub_(lr[:, None, None] * gradient)

    @torch.no_grad()
    def row(self, state: _State) -> dict[str, Tensor]:
        """What is logged of a state."""
        return {
            "loss": state.loss,
            "parameter_norm": _length(self.weights),
            "distance": _length({name: weight - self._start[name] for name, weight in self.weights.items()}),
            "lambda_layers": state.regularity,
            "beta": state.beta,
            "lr": state.lr,
            "cost_grad_squared": state.cost_gradient_squared,
        }


def _length(weights: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm over all parameters, shape ``(R,)``."""
    return torch.stack([weight.square().sum(dim=(-2, -1)) for weight in weights.values()]).sum(dim=0).sqrt()


def _with_weights(network: nn.Sequential, weights: Weights) -> nn.Sequential:
    """A copy whose parameters are copies of the given ones, which may be stacked."""
    network = copy.deepcopy(network)
    for name, weight in weights.items():
        owner, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(owner), attribute, nn.Parameter(weight.detach().clone()))
    return network
