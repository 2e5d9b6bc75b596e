"""Samples that interact, be it ever so weakly: the kernel is that of autograd to rounding, or refused."""

import pytest
import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.kernel.interaction import interactions
from skip_conditioning.diagnostics.kernel.tangent_kernel import tangent_kernel
from tests.diagnostics.kernel.structures import autograd_kernel

COUPLINGS = {
    "mean": lambda h: h.mean(0),
    "next": lambda h: h.roll(1, 0),
    "one-pair": lambda h: torch.cat([h[3:4], torch.zeros_like(h[1:])]),
    "sums-so-far": lambda h: h.cumsum(0),
}


class Coupled(nn.Module):
    """Samples that interact by ``strength``, after a layer with a rule or parameters without one."""

    def __init__(self, coupling: str, strength: float, *, scaled: bool = False) -> None:
        super().__init__()
        self.coupling, self.strength, self.scaled = coupling, strength, scaled
        self.a, self.b, self.gain = nn.Linear(5, 8), nn.Linear(8, 3), nn.Parameter(torch.ones(8), requires_grad=scaled)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gain * x.repeat(1, 2)[:, :8] if self.scaled else self.a(x).tanh()
        h = h + self.strength * COUPLINGS[self.coupling](h)
        return h.tanh() if self.scaled else self.b(h.tanh())


@pytest.mark.parametrize("strength", [1e-1, 1e-3, 1e-4, 1e-5, 1e-7])
@pytest.mark.parametrize("scaled", [False, True], ids=["layer", "bare parameter"])
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weak_interactions_are_in_the_kernel(dtype: torch.dtype, coupling: str, scaled: bool, strength: float) -> None:
    torch.manual_seed(0)
    model, x = Coupled(coupling, strength, scaled=scaled), torch.randn(6, 5)
    kernel = tangent_kernel(model, x, dtype=dtype).total
    expected = autograd_kernel(model.double(), x.double())
    assert (kernel - expected).abs().max() <= 16 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("strength", [1e-3, 1e-5])
def test_sample_by_sample_it_is_that_of_each_sample_alone(strength: float) -> None:
    torch.manual_seed(0)
    model, x = Coupled("mean", strength), torch.randn(4, 5)
    kernel = tangent_kernel(model, x, batch_mode="sample").total
    alone = [tangent_kernel(model.double(), sample[None].double()).total for sample in x]
    for index, expected in enumerate(alone):
        block = kernel[3 * index : 3 * index + 3, 3 * index : 3 * index + 3]
        assert (block - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("samples", [1, 2, 63, 65, 130])
def test_every_pair_shows(samples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(samples, 3, generator=generator)
    assert interactions(lambda v: [2 * v, v.cumsum(1)], v) == [False, False]
    for first, second in ((0, samples - 1), (samples - 1, 0), (samples // 2, samples // 3)):
        matrix = torch.eye(samples)
        matrix[first, second] += 1e-4 * (first != second)
        assert interactions(lambda v, matrix=matrix: [matrix @ v, v], v) == [first != second, False]
