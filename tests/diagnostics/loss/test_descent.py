"""The decrease of the loss: predicted by the gradient, observed, and guaranteed where constants are known exactly."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError
from skip_conditioning.diagnostics.loss.costs import Cost, CrossEntropy, MeanSquare
from skip_conditioning.diagnostics.loss.descent import Descent, guaranteed_decrease, next_guarantee
from skip_conditioning.diagnostics.theory.pl_inequality import pl_chain

X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1, 1, 0])
REAL = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


def loss_of(model, y):
    return mse_loss(model(X), y) if y.is_floating_point() else cross_entropy(model(X), y)


def descend(model, y, rate):
    """One step of gradient descent on the probe."""
    gradients = torch.autograd.grad(loss_of(model, y), [*model.parameters()])
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= rate * gradient


@pytest.mark.parametrize("y", [Y, REAL], ids=["cross-entropy", "mean square"])
def test_of_gradient_descent_the_prediction_is_the_rate_times_the_squared_gradient(y):
    errors = []
    for rate in (4e-4, 2e-4, 1e-4):
        model = network()
        squared, descent = pl_chain(model, X, y).grad_squared, Descent(model, X, y)
        descend(model, y, rate)
        measured = descent.until(model)
        assert measured.predicted == pytest.approx(rate * squared, rel=1e-10)
        errors.append(measured.observed - measured.predicted)
    # Of second order: it falls to a quarter when the rate is halved.
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([4, 4], rel=0.1)


@pytest.mark.parametrize("optimiser", [torch.optim.Adam, torch.optim.SGD])
def test_any_optimiser_on_any_batch(optimiser):
    model, options = network().float(), {"lr": 0.01}
    start, x = copy.deepcopy(model).double(), X.float().double()
    descent = Descent(model, X.float(), Y)
    made = optimiser(model.parameters(), **options)
    cross_entropy(model(torch.randn(7, 4)), torch.randint(3, (7,))).backward()
    made.step()
    gradients = torch.autograd.grad(cross_entropy(start(x), Y), [*start.parameters()])
    moves = [after.double() - before for before, after in zip(start.parameters(), model.parameters(), strict=True)]
    predicted = -sum(float((g * move).detach().sum()) for g, move in zip(gradients, moves, strict=True))
    measured = descent.until(model)
    assert measured.predicted == pytest.approx(predicted, rel=1e-10)
    with torch.no_grad():
        observed = cross_entropy(start(x), Y) - cross_entropy(model.double()(x), Y)
    assert measured.observed == pytest.approx(observed.item(), rel=1e-10)


def test_what_is_held_is_the_state_of_the_moment():
    model = network()
    descent = Descent(model, X, Y)
    assert descent.until(model).predicted == 0
    for _ in range(3):
        descend(model, Y, 0.01)
    assert descent.until(model).predicted > 0


def test_frozen_parameters_are_no_part_of_the_prediction():
    model = network()
    model[0].requires_grad_(False)
    descent = Descent(model, X, Y)
    with torch.no_grad():
        model[0].weight += 0.1
    measured = descent.until(model)
    assert measured.predicted == 0
    assert measured.observed != 0


def test_nothing_of_the_model_changes(nothing_changes):
    model = network().append(nn.Dropout(0.2))
    with nothing_changes(model, X):
        Descent(model, X, Y).until(model)


def test_trouble():
    model = network()
    with pytest.raises(InputError, match="do not fit"):
        Descent(model, X, Y[:2])
    descent = Descent(model, X, Y)
    model[3].weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"3\.weight holds 1 NaN"):
        descent.until(model)


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
