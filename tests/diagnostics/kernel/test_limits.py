"""The tangent kernel against what knows nothing of autograd: finite differences, and the limit of infinite width."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, relu

from skip_conditioning import tangent_kernel

NETWORKS = {
    "convolutions": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)),
        torch.randn(3, 2, 3, 3),
    ),
    "attention": lambda: (
        nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 5, 0.0, "gelu", batch_first=True), nn.Flatten(), nn.Linear(8, 2)
        ),
        torch.randn(3, 2, 4),
    ),
    "tokens": lambda: (
        nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Softplus(), nn.Flatten(), nn.Linear(6, 2)),
        torch.tensor([[0, 1], [1, 4], [2, 2]]),
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_kernel_from_finite_differences(build, training):
    torch.manual_seed(0)
    model, x = build()
    model, x = model.double().train(training), x.double() if x.is_floating_point() else x
    measured = tangent_kernel(model, x).total
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def outputs() -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.no_grad():
            return functional_call(model, weights | buffers, (x,)).flatten()

    columns, step = [], 1e-5
    for weight in weights.values():
        for entry in weight.view(-1):
            entry += step
            ahead = outputs()
            entry -= 2 * step
            columns.append((ahead - outputs()) / (2 * step))
            entry += step
    jacobian = torch.stack(columns, dim=1)
    torch.testing.assert_close(measured, jacobian @ jacobian.T, rtol=0, atol=1e-7 * float(measured.abs().max()))


class Wide(nn.Module):
    """An MLP with standard normal weights, each layer divided by the square root of its inputs (Jacot et al. 2018)."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(out, into) for into, out in itertools.pairwise(sizes)])

    def forward(self, x: Tensor) -> Tensor:
        for number, weight in enumerate(self.weights):
            x = linear(x if number == 0 else math.sqrt(2) * relu(x), weight) / math.sqrt(weight.shape[1])
        return x


def infinite_width_kernel(x: np.ndarray, hidden: int) -> np.ndarray:
    """The limit for ReLU by arc-cosine kernels (Cho & Saul 2009; Jacot, Gabriel & Hongler 2018, section 4)."""
    covariance = x @ x.T / x.shape[1]
    kernel = covariance
    for _ in range(hidden):
        scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        cosine = np.clip(covariance / scale, -1, 1)
        angle = np.arccos(cosine)
        slopes = (np.pi - angle) / np.pi
        covariance = scale * (np.sqrt(1 - cosine**2) + cosine * (np.pi - angle)) / np.pi
        kernel = kernel * slopes + covariance
    return kernel


def test_wide_networks_approach_the_kernel_of_infinite_width():
    torch.manual_seed(0)
    x = torch.randn(6, 10, dtype=torch.float64)
    limit = torch.from_numpy(infinite_width_kernel(x.numpy(), hidden=2))
    widths, seeds, errors = (64, 256, 1024), 12, []
    for width in widths:
        measured = [tangent_kernel(Wide([10, width, width, 1]).double(), x).total for _ in range(seeds)]
        single = [float((kernel - limit).norm() / limit.norm()) for kernel in measured]
        errors.append(np.mean(single))
        # Fluctuations average out over seeds; what is left of the mean is of the order 1 / width.
        mean = float((torch.stack(measured).mean(0) - limit).norm() / limit.norm())
        assert mean <= 3 * errors[-1] / math.sqrt(seeds) + 3 / width
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.35, errors
    assert errors[-1] < 3 / math.sqrt(widths[-1])
