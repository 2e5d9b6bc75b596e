"""What gradient descent is guaranteed, against what it does on a problem whose constants are known exactly."""

import pytest
import torch
from torch import Tensor

from skip_conditioning.diagnostics.loss.costs import Cost, CrossEntropy, MeanSquare
from skip_conditioning.diagnostics.theory.descent_guarantee import guaranteed_decrease, next_guarantee


def losses_and_guarantees(
    cost: Cost, A: Tensor, targets: Tensor, lr: float, regularity: float, steps: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradient descent on ``c(Aθ)``: losses, what each step lacks of its guaranteed decrease, and the cumulative G."""
    theta = torch.zeros(A.shape[1], targets.numel() // len(A) if targets.is_floating_point() else 3).double()
    losses, lacks, guarantees = [], [], []
    eta, lam, decrease = torch.tensor(lr), torch.tensor(regularity), torch.tensor(0.0)
    for _ in range(steps):
        theta.requires_grad_()
        outputs = A @ theta
        if isinstance(cost, CrossEntropy):
            loss = torch.nn.functional.cross_entropy(outputs, targets)
        else:
            loss = (outputs - targets).square().mean()
        slope, gradient = torch.autograd.grad(loss, [outputs, theta])
        loss = loss.detach()
        if losses:
            lacks.append(loss - losses[-1] + decrease)
            guarantees.append(next_guarantee(guarantees[-1], eta, lam, cost))
        else:
            guarantees.append(loss)
        decrease = guaranteed_decrease(eta, lam, slope.square().sum())
        losses.append(loss)
        theta = theta.detach() - lr * gradient
    return losses, lacks, guarantees


@pytest.fixture(params=["cross-entropy", "mean square"])
def problem(request: pytest.FixtureRequest) -> tuple[Cost, Tensor, Tensor, float, float]:
    """Cost, a well conditioned A, targets, 1/β and λ(DF)."""
    random = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(4, 4, generator=random, dtype=torch.float64))[0]
    A = Q * torch.tensor([1.0, 1.1, 1.2, 1.3], dtype=torch.float64)
    if request.param == "cross-entropy":
        cost: Cost = CrossEntropy(4, 3)
        targets = torch.tensor([0, 1, 2, 1])
    else:
        cost, targets = MeanSquare(4, 3), torch.randn(4, 3, generator=random, dtype=torch.float64)
    return cost, A, targets, 1 / (cost.curvature * 1.3**2), 1.0


def test_steps_of_one_over_beta_keep_the_guarantees(problem: tuple[Cost, Tensor, Tensor, float, float]) -> None:
    losses, lacks, guarantees = losses_and_guarantees(*problem, steps=60)
    assert max(lacks) <= 1e-15
    assert all(loss <= bound + 1e-15 for loss, bound in zip(losses, guarantees, strict=True))
    assert guarantees[-1] < guarantees[0] / 2  # it says something


def test_too_large_a_lambda_breaks_them(problem: tuple[Cost, Tensor, Tensor, float, float]) -> None:
    cost, A, targets, lr, regularity = problem
    _, lacks, _ = losses_and_guarantees(cost, A, targets, lr, 30 * regularity, steps=5)
    assert max(lacks) > 0


def test_too_long_a_step_breaks_them(problem: tuple[Cost, Tensor, Tensor, float, float]) -> None:
    cost, A, targets, lr, regularity = problem
    _, lacks, _ = losses_and_guarantees(cost, A, targets, 6 * lr, regularity, steps=60)
    assert max(lacks) > 0


def test_the_guarantee_of_the_mean_square_is_linear() -> None:
    cost = MeanSquare(4, 3)
    after = next_guarantee(torch.tensor(2.0), torch.tensor(0.1), torch.tensor(3.0), cost)
    assert float(after) == pytest.approx(2.0 * (1 - 0.1 * 3.0 / 2 * 4 / 12))


@pytest.mark.parametrize("cost", [CrossEntropy(3, 4), CrossEntropy(1, 2), MeanSquare(3, 2)])
@pytest.mark.parametrize("lr", [0.1, 1e6])
def test_a_larger_loss_never_has_a_smaller_guarantee(cost: Cost, lr: float) -> None:
    """What makes the guarantee cumulative, and is why a step beyond ``1 / max g'`` is capped."""
    losses = torch.logspace(-6, 2, 2000, dtype=torch.float64)
    after = next_guarantee(losses, torch.tensor(lr), torch.tensor(1.0), cost)
    assert torch.all(after.diff() >= -1e-13)
    assert torch.all(after >= -1e-13)
