"""What is known of the costs' derivatives, against autograd at random outputs."""

import pytest
import torch
from torch.func import grad, hessian

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.loss.costs import Cost, CrossEntropy, MeanSquare, cost_of
from skip_conditioning.diagnostics.networks.output_choice import class_dimension
from skip_conditioning.diagnostics.networks.probe import Probe

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
        assert cost_of(outputs, Probe(outputs, y)) == cost
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


TOKENS, POSITIONS = torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("logits", "y", "x", "dimension"),
    [
        ((2, 4), (2,), POSITIONS, 1),
        ((2, 3, 4), (2, 3), POSITIONS, 2),
        ((2, 3, 4), (2, 4), POSITIONS, 1),
        ((2, 3, 4, 4), (2, 4, 4), POSITIONS, 1),
        ((2, 4, 4), (2, 4), TOKENS, 2),
        ((2, 2), (2,), torch.zeros(2), 1),
    ],
)
def test_shapes_tell_the_dimension_of_the_classes(
    logits: tuple[int, ...], y: tuple[int, ...], x: torch.Tensor, dimension: int
) -> None:
    assert class_dimension(torch.zeros(logits), torch.zeros(y, dtype=torch.long), x) == dimension


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 4, 4, 4)])
def test_classes_in_either_of_two_dimensions_are_not_guessed(shape: tuple[int, ...]) -> None:
    y = torch.zeros(shape[:-1], dtype=torch.long)
    with pytest.raises(InputError, match=r"in two ways .*say which"):
        class_dimension(torch.zeros(shape), y, torch.zeros(2, 3, *shape[2:]))


def test_class_indices_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"do not fit the logits \(class indices \(6,\) for logits \(2, 3, 4\)\)"):
        class_dimension(torch.zeros(2, 3, 4), torch.zeros(6, dtype=torch.long), POSITIONS)
