"""The loss on the probe, against PyTorch's as a user writes it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.loss.descent import Descent
from skip_conditioning.diagnostics.loss.hessian import HessianOperator
from skip_conditioning.diagnostics.loss.probe_loss import probe_metrics, rayleigh_quotients
from skip_conditioning.diagnostics.theory.pl_inequality import pl_chain


def test_a_vocabulary_as_large_as_the_context_is_the_last_dimension() -> None:
    torch.manual_seed(0)
    ids, y = torch.randint(6, (2, 6)), torch.randint(6, (2, 6))
    model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6)).double()
    loss = functional.cross_entropy(model(ids).flatten(0, 1), y.flatten())
    metrics = probe_metrics(model, ids, y)
    assert metrics["loss"].item() == pytest.approx(loss.item(), rel=1e-12)
    assert metrics["accuracy"].item() == (model(ids).argmax(-1) == y).double().mean().item()
    weights = [*model.parameters()]
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, create_graph=True)])
    chain = pl_chain(model, ids, y)
    assert chain.loss == pytest.approx(loss.item(), rel=1e-12)
    assert chain.verdict != "violated"
    assert chain.grad_squared == pytest.approx(float(gradient.detach().square().sum()), rel=1e-9)
    v = torch.randn(gradient.shape, dtype=torch.float64)
    product = torch.cat([part.flatten() for part in torch.autograd.grad(gradient, weights, v)])
    torch.testing.assert_close(HessianOperator(model, ids, y).matvec(v), product)


def test_dense_predictions_are_taken_as_pytorch_takes_them() -> None:
    x, y = torch.randn(2, 3, 5, 7), torch.randint(4, (2, 5, 7))
    model = nn.Conv2d(3, 4, 1)
    assert probe_metrics(model, x, y)["loss"].item() == pytest.approx(functional.cross_entropy(model(x), y).item())


@pytest.mark.parametrize("measure", [probe_metrics, rayleigh_quotients, pl_chain, HessianOperator, Descent])
def test_no_loss_is_guessed_where_two_fit(measure: object) -> None:
    x, y = torch.randn(2, 3, 4), torch.randint(4, (2, 4))
    with pytest.raises(InputError, match="fit the logits in two ways"):
        measure(nn.Conv1d(3, 4, 1), x, y)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("shape", "y", "message"),
    [
        ((2, 3), torch.tensor([0, 3]), "class index 3 is out of bounds for 3 classes"),
        ((2, 3), torch.tensor([-1, 0]), "class index -1 is out of bounds"),
        ((2, 3), torch.tensor([-100, -100]), "every class index is -100"),
        ((2, 3, 4), torch.zeros(2, 4, 3), r"real targets of shape \(2, 4, 3\) for logits of shape \(2, 3, 4\)"),
        ((2, 3), torch.zeros(2), "invalid for input of size 2"),
    ],
)
def test_targets_that_do_not_fit_are_refused(shape: tuple[int, ...], y: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        probe_metrics(nn.Identity(), torch.zeros(shape), y)


@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (2, 3, 4), (2, 12), (24,)])
def test_real_targets_may_be_flattened(shape: tuple[int, ...]) -> None:
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    loss = probe_metrics(nn.Identity(), x, y.reshape(shape))["loss"]
    assert loss.item() == pytest.approx((x - y).square().mean().item())
