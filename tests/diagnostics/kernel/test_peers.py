"""The tangent kernel against the libraries that compute it too, in float64.

Each test needs a library of its own; ``make peers`` installs them.
"""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from skip_conditioning import tangent_kernel

Case = tuple[nn.Module, Tensor]


def mlp() -> Case:
    model = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))
    return model, torch.randn(4, 7)


def cnn() -> Case:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    return model, torch.randn(4, 2, 6, 6)


def normalised() -> Case:
    """Batch norm in eval mode, its running statistics not those it starts with."""
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
    for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        nn.init.uniform_(value, 0.5, 1.5)
    return model, torch.randn(4, 2, 6, 6)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Everything in float64, some buffers of nngeometry's included, which follow the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


cases = pytest.mark.parametrize("make", [mlp, cnn, normalised])


def compare(model: nn.Module, x: Tensor, peer: Tensor, batch_mode: str = "sample") -> None:
    measured = tangent_kernel(model, x, batch_mode=batch_mode)
    torch.testing.assert_close(measured.total, peer.detach(), rtol=1e-10, atol=1e-10 * float(peer.abs().max()))
    torch.testing.assert_close(sum(measured.blocks.values()), measured.total)


@cases
def test_the_gram_matrix_of_nngeometry_agrees(make: Callable[[], Case]) -> None:
    gram = pytest.importorskip("nngeometry.gram")
    model, x = make()
    peer = gram.GramMatrix(copy.deepcopy(model), [x.clone()]).to_torch()
    compare(model, x, peer.permute(1, 0, 3, 2).reshape(12, 12))


@cases
def test_the_layers_of_nngeometrys_jacobian_agree(make: Callable[[], Case]) -> None:
    jacobian = pytest.importorskip("nngeometry.jacobian")
    model, x = make()
    measured = tangent_kernel(model, x, batch_mode="sample")
    for name, parts in jacobian.Jacobian(copy.deepcopy(model), [x.clone()]).iter_by_module():
        rows = torch.cat([part.flatten(2) for part in parts], 2).transpose(0, 1).reshape(12, -1)
        torch.testing.assert_close(measured.blocks[name], rows @ rows.T)


@cases
def test_curvlinops_jacobian_products_agree(make: Callable[[], Case]) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, x = make()
    peer, data = copy.deepcopy(model), [(x, torch.zeros(4, 3))]
    jacobian = curvlinops.JacobianLinearOperator(peer, list(peer.parameters()), data)
    compare(model, x, jacobian @ (jacobian.adjoint() @ torch.eye(12)))


def test_curvlinops_agrees_where_batch_norm_couples_the_samples() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, x = normalised()
    model.train()
    pure = copy.deepcopy(model)
    pure[1].track_running_stats = False  # the same map; function transforms refuse the update of running statistics
    data = [(x, torch.zeros(4, 3))]
    jacobian = curvlinops.JacobianLinearOperator(pure, list(pure.parameters()), data, check_deterministic=False)
    compare(model, x, jacobian @ (jacobian.adjoint() @ torch.eye(12)), batch_mode="batch")


@cases
def test_the_gradients_of_backpack_agree(make: Callable[[], Case]) -> None:
    backpack = pytest.importorskip("backpack")
    extensions = pytest.importorskip("backpack.extensions")
    model, x = make()
    extended, rows = backpack.extend(copy.deepcopy(model)), []
    for output in extended(x.clone()).sum(0):
        with backpack.backpack(extensions.BatchGrad(), retain_graph=True):
            output.backward(retain_graph=True)
        rows.append(torch.cat([parameter.grad_batch.flatten(1) for parameter in extended.parameters()], 1))
    jacobian = torch.stack(rows, 1).flatten(0, 1)
    compare(model, x, jacobian @ jacobian.T)
