"""What is known of the costs' derivatives, against autograd at random outputs."""

import pytest
import torch
from torch.func import grad, hessian

from skip_conditioning.diagnostics.loss.costs import Cost, CrossEntropy, MeanSquare, cost_of

COSTS: list[Cost] = [CrossEntropy(3, 4), CrossEntropy(1, 2), MeanSquare(3, 2)]


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_bounds_hold_at_random_outputs(cost: Cost, scale: float) -> None:
    random = torch.Generator().manual_seed(3)
    columns = cost.classes if isinstance(cost, CrossEntropy) else cost.outputs
    for _ in range(20):
        outputs = scale * torch.randn(cost.samples, columns, generator=random, dtype=torch.float64)
        if isinstance(cost, CrossEntropy):
            y = torch.randint(columns, (cost.samples,), generator=random)
            function = lambda z, y=y: torch.nn.functional.cross_entropy(z, y)  # noqa: E731
        else:
            y = torch.randn(cost.samples, columns, generator=random, dtype=torch.float64)
            function = lambda z, y=y: (z - y).square().mean()  # noqa: E731
        assert cost_of(outputs, y) == cost
        loss, slope = float(function(outputs)), float(grad(function)(outputs).norm())
        side = outputs.numel()
        curvature = torch.linalg.eigvalsh(hessian(function)(outputs).reshape(side, side))[-1]
        assert cost.gradient_floor(loss) <= slope**2 * (1 + 1e-9)
        assert slope <= cost.gradient_ceiling(loss) * (1 + 1e-12)
        assert curvature <= cost.curvature * (1 + 1e-12)


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_a_tensor_of_losses_is_taken_entry_by_entry(cost: Cost) -> None:
    losses = torch.tensor([1e-9, 0.1, 3.0], dtype=torch.float64)
    floors = cost.gradient_floor(losses)
    assert floors.tolist() == [cost.gradient_floor(loss) for loss in losses.tolist()]
    assert all(isinstance(cost.gradient_floor(loss), float) for loss in losses.tolist())


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_the_floors_slope_is_nowhere_exceeded_and_almost_attained(cost: Cost) -> None:
    losses = torch.linspace(0, 5, 100_001, dtype=torch.float64)
    slopes = cost.gradient_floor(losses).diff() / losses.diff()
    assert 0.98 * cost.gradient_floor_slope < slopes.max() <= cost.gradient_floor_slope * (1 + 1e-6)
