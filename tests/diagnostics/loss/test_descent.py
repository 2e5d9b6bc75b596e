"""One step of training: the decrease that the gradient predicts, and that of the loss."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError
from skip_conditioning.diagnostics.loss.descent import Descent
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
        found = descent.until(model)
        assert found.predicted == pytest.approx(rate * squared, rel=1e-10)
        errors.append(found.observed - found.predicted)
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
    found = descent.until(model)
    assert found.predicted == pytest.approx(predicted, rel=1e-10)
    with torch.no_grad():
        observed = cross_entropy(start(x), Y) - cross_entropy(model.double()(x), Y)
    assert found.observed == pytest.approx(observed.item(), rel=1e-10)


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
    found = descent.until(model)
    assert found.predicted == 0
    assert found.observed != 0


def test_nothing_of_the_model_changes(nothing_changes):
    model = network().append(nn.Dropout(0.2))
    with nothing_changes(model, X):
        Descent(model, X, Y).until(model)


def test_trouble():
    model = network()
    with pytest.raises(InputError, match="do not fit the logits"):
        Descent(model, X, Y[:2])
    descent = Descent(model, X, Y)
    model[3].weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"3\.weight holds 1 NaN"):
        descent.until(model)
