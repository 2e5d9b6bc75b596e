"""Bounds of the network's Jacobian and Hessian from the layers': never below the truth, and exact where they can be."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import hessian, jacrev

from skip_conditioning.diagnostics.theory.curvature_bounds import (
    LayerConstants,
    hessian_bound,
    jacobian_bound,
    lipschitz_bound,
)

#: ``max |φ'|``, ``max |φ''|`` of the smooth layers below.
SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "tanh": (torch.tanh, 1.0, 0.7699),
    "sine": (torch.sin, 1.0, 1.0),
    "softplus": (torch.nn.functional.softplus, 1.0, 0.25),
}


def smooth_layer(W: Tensor, x: Tensor, name: str) -> tuple[Tensor, LayerConstants]:
    """``φ(xWᵀ)`` and its constants at W and x."""
    phi, slope, bend = SMOOTH[name]
    weight, size = float(torch.linalg.matrix_norm(W, 2)), float(torch.linalg.matrix_norm(x, 2))
    constants = LayerConstants(
        jacobian=slope * weight,
        parameter=slope * size,
        parameter_parameter=bend * size**2,
        mixed=slope + bend * size * weight,
        input_input=bend * weight**2,
    )
    return phi(x @ W.T), constants


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 3), name=st.sampled_from(sorted(SMOOTH)))
def test_bounds_are_never_below_the_truth(seed: int, depth: int, name: str) -> None:
    random = torch.Generator().manual_seed(seed)
    width, samples = 2, 3
    x = torch.randn(samples, width, generator=random, dtype=torch.float64)
    target = torch.randn(samples, width, generator=random, dtype=torch.float64)
    theta = torch.randn(depth * width**2, generator=random, dtype=torch.float64)

    def outputs(theta: Tensor) -> Tensor:
        h = x
        for W in theta.view(depth, width, width):
            h = SMOOTH[name][0](h @ W.T)
        return h

    layers, h = [], x
    for W in theta.view(depth, width, width):
        h, constants = smooth_layer(W, h, name)
        layers.append(constants)
    slope = float((h - target).norm())
    measured = hessian(lambda theta: (outputs(theta) - target).square().sum() / 2)(theta)
    jacobian = jacrev(outputs)(theta).flatten(0, 1)
    curvature = hessian(outputs)(theta).flatten(0, 1)
    along_slope = torch.einsum("o,oij->ij", (h - target).flatten() / slope, curvature)
    room = 1 + 1e-12
    assert torch.linalg.eigvalsh(measured).abs().max() <= hessian_bound(layers, slope, 1.0) * room
    assert torch.linalg.svdvals(jacobian)[0] <= jacobian_bound(layers) * room
    assert torch.linalg.eigvalsh(along_slope).abs().max() <= lipschitz_bound(layers) * room
    separately = lipschitz_bound(layers) * slope + jacobian_bound(layers) ** 2
    assert hessian_bound(layers, slope, 1.0) <= separately * room


def two_scalars(w: float, v: float, x: float) -> list[LayerConstants]:
    """Of ``F = v·(w·x)``."""
    return [LayerConstants(abs(w), abs(x), 0, 1, 0), LayerConstants(abs(v), abs(w * x), 0, 1, 0)]


def exact(w: float, v: float, x: float, y: float) -> Tensor:
    def loss(theta: Tensor) -> Tensor:
        return (theta[1] * theta[0] * x - y).square() / 2

    return torch.linalg.eigvalsh(hessian(loss)(torch.tensor([w, v], dtype=torch.float64)))[-1]


W, V, X, Y = 0.7, 1.3, 2.0, 0.5  # the residual is positive, so that both terms add up
RESIDUAL = W * V * X - Y


def test_the_bound_is_attained_by_a_linear_network_of_two_scalars() -> None:
    torch.testing.assert_close(hessian_bound(two_scalars(W, V, X), RESIDUAL, 1.0), exact(W, V, X, Y))
    torch.testing.assert_close(lipschitz_bound(two_scalars(W, V, X)), torch.tensor(X, dtype=torch.float64))


@pytest.mark.parametrize(
    ("layer", "changes"),
    [(0, {"parameter": X / 2}), (1, {"jacobian": V / 2}), (1, {"parameter": W * X / 2}), (1, {"mixed": 0.5})],
)
def test_it_fails_with_half_a_constant(layer: int, changes: dict[str, float]) -> None:
    layers = two_scalars(W, V, X)
    layers[layer] = replace(layers[layer], **changes)
    assert hessian_bound(layers, RESIDUAL, 1.0) < exact(W, V, X, Y)


@pytest.mark.parametrize("left_out", [0, 1])
def test_it_fails_without_a_layer(left_out: int) -> None:
    layers = two_scalars(W, V, X)
    del layers[left_out]
    assert hessian_bound(layers, RESIDUAL, 1.0) < exact(W, V, X, Y)


def test_second_derivatives_of_each_kind_count() -> None:
    """By hand: those in the parameters of one layer, and those in the input of a second one."""
    assert hessian_bound([LayerConstants(9, 2, 5, 9, 9)], 3.0, 0.5) == pytest.approx(3 * 5 + 0.5 * 4)
    first = LayerConstants(9, 2, 0, 9, 9)
    assert lipschitz_bound([first, LayerConstants(9, 0, 0, 0, 7)]) == pytest.approx(7 * 4)


def test_runs_side_by_side_are_runs_by_themselves() -> None:
    values = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = [LayerConstants(*layer) for layer in values]
    together[1] = replace(together[1], mixed=0.25)
    slope = torch.tensor([0.1, 1.0, 2.0, 3.0])
    for run in range(4):
        alone = [LayerConstants(*(float(value) for value in layer[:, run])) for layer in values]
        alone[1] = replace(alone[1], mixed=0.25)
        assert hessian_bound(together, slope, 0.3)[run] == pytest.approx(float(hessian_bound(alone, slope[run], 0.3)))
        assert jacobian_bound(together)[run] == pytest.approx(float(jacobian_bound(alone)))
        assert lipschitz_bound(together)[run] == pytest.approx(float(lipschitz_bound(alone)))


@pytest.mark.parametrize("bound", [jacobian_bound, lipschitz_bound, lambda layers: hessian_bound(layers, 1.0, 1.0)])
def test_no_layers_are_an_error(bound: Callable[[list[LayerConstants]], Tensor]) -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        bound([])
