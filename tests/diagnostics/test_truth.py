"""Networks on which a measurement could be wrong without a word: right against plain autograd, or refused by name.

The oracle takes one row at a time by ``torch.autograd.grad`` and nothing else.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from skip_conditioning import (
    HessianOperator,
    JacobianOperator,
    TangentKernelOperator,
    UnsupportedModelError,
    jacobian,
    smallest_singular_value,
    spectra,
    spectrum_of,
    tangent_kernel,
)

REAL = torch.float64


def rows_of(output, point):
    zeros = torch.zeros_like(point)
    rows = [torch.autograd.grad(y, point, retain_graph=True, allow_unused=True)[0] for y in output.flatten()]
    return torch.stack([(zeros if row is None else row).flatten() for row in rows])


def oracle(model, x):
    point = x.detach().clone().requires_grad_()
    return rows_of(model(point), point)


class Does(nn.Module):
    """A function of the input, and of a parameter where it takes two arguments."""

    def __init__(self, function, *shape):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(*shape)) if shape else None

    def forward(self, x):
        return self.function(x) if self.weight is None else self.function(x, self.weight)


def scaled_without_gradient(x):
    with torch.no_grad():
        scale = x.pow(2).mean(1, keepdim=True).rsqrt()
    return x * scale


def hooked(x):
    if x.requires_grad:
        x.register_hook(lambda gradient: 3 * gradient)
    return x.tanh()


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient  # not the derivative, but what training uses


def by_numpy(x):
    return x * torch.from_numpy(np.sign(x.detach().numpy()))


def sparse_product(x):
    return torch.sparse.mm(torch.eye(5, dtype=x.dtype).to_sparse(), x)


MIDDLES = {
    "no gradient inside": lambda: Does(scaled_without_gradient),
    "hook on a tensor": lambda: Does(hooked),
    "old-style function": lambda: Does(OldStyle.apply),
    "NumPy inside": lambda: Does(by_numpy),
    "sparse product": lambda: Does(sparse_product),
    "distances": lambda: Does(lambda x, w: -torch.cdist(x, w), 6, 4),
    "PReLU at zero": lambda: nn.Sequential(nn.ReLU(), nn.PReLU()),
    "sum with a factor": lambda: Does(lambda x, w: torch.add(x, w, alpha=0.5).tanh(), 4),
    "detached": lambda: Does(lambda x: x * x.detach()),
    "checkpoint": lambda: Does(lambda x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
}


@pytest.fixture(params=MIDDLES)
def model(request):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), MIDDLES[request.param](), nn.Tanh()).double()


X = torch.randn(5, 4, dtype=REAL, generator=torch.Generator().manual_seed(1))


def test_exact_jacobians_whatever_the_budget(model):
    expected = oracle(model, X)
    for budget in (2**30, 2**12):
        torch.testing.assert_close(
            jacobian(model, X, map="network", memory_budget=budget), expected, rtol=1e-9, atol=1e-12
        )


def test_products_by_operators_and_densities(model):
    expected = oracle(model, X)
    v, u = torch.randn(20, dtype=REAL), torch.randn(len(expected), dtype=REAL)
    operator = JacobianOperator(model, X, map="network")
    torch.testing.assert_close(operator.matvec(v), expected @ v, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(operator.rmatvec(u), expected.T @ u, rtol=1e-9, atol=1e-12)
    density = spectra(model, X, map="network", method="lanczos")["network"]
    assert density.sigma_max == pytest.approx(float(torch.linalg.svdvals(expected)[0]), rel=1e-6)
    assert density.witness < 1e-12


def test_tangent_kernels_and_their_products(model):
    parameters = list(model.parameters())
    output = model(X).flatten()
    gradients = [torch.autograd.grad(y, parameters, retain_graph=True, allow_unused=True) for y in output]

    def flat(row):
        pairs = zip(row, parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])

    rows = torch.stack([flat(row) for row in gradients])
    torch.testing.assert_close(tangent_kernel(model, X).total, rows @ rows.T, rtol=1e-9, atol=1e-11)
    v = torch.randn(len(rows), dtype=REAL)
    torch.testing.assert_close(TangentKernelOperator(model, X).matvec(v), rows @ (rows.T @ v), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"scale_grad_by_freq": True}])
def test_kernel_products_of_a_tied_embedding(options):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 5, **options), nn.Linear(5, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(torch.tanh(self.embed(ids)).mean(1))

    torch.manual_seed(0)
    model, ids = Tied().double(), torch.randint(7, (4, 6))
    ids[:, 3:] = 0
    rows = rows_of(model(ids), model.embed.weight)
    v = torch.randn(28, dtype=REAL)
    torch.testing.assert_close(TangentKernelOperator(model, ids).matvec(v), rows @ (rows.T @ v), rtol=1e-9, atol=1e-11)


def test_a_gradient_that_is_not_linear_is_refused_by_name():
    def clipped(x):
        h = x * 3
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
        return h.sin()

    with pytest.raises(UnsupportedModelError, match=r"the network map of 'network': .* differs from plain autograd's"):
        spectra(Does(clipped), X, map="network")


def test_a_tail_starts_from_the_outputs_that_count():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            h, c = self.rnn(x)[1]
            return self.head(torch.cat([h[-1], c[-1]], dim=1))

    torch.manual_seed(0)
    model, x = Classifier().double(), torch.randn(6, 5, 3, dtype=REAL)
    both = spectra(model, x, map="tail", layers="rnn")["rnn"]
    assert both.note.endswith("of output tensors 1, 2 of 3")
    np.testing.assert_allclose(both.values[0], float(torch.linalg.svdvals(model.head.weight.detach())[0]), rtol=1e-12)
    cell = spectra(model, x, map="tail", layers="rnn:2")["rnn:2"]
    np.testing.assert_allclose(
        cell.values[0], float(torch.linalg.svdvals(model.head.weight[:, 4:].detach())[0]), rtol=1e-12
    )
    with pytest.raises(UnsupportedModelError, match="the tail map of 'rnn:0' is constant"):
        spectra(model, x, map="tail", layers="rnn:0")


def test_default_layers_go_through_wrappers():
    body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    wrapped = nn.Sequential()
    wrapped.net = nn.Sequential()
    wrapped.net.body = body
    x = torch.randn(8, 8)
    plain, through = (spectra(model, x, map="tail") for model in (body, wrapped))
    assert list(plain) == ["0", "2"]  # behind the last layer nothing follows
    assert list(through) == ["net.body.0", "net.body.2"]


def test_a_sample_has_its_own_rows_only():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.other = nn.Linear(4, 3), torch.randn(5, 3)

        def forward(self, x):
            return self.linear(x) + self.other.to(x.dtype)

    with pytest.raises(UnsupportedModelError, match="for one sample, as if it held a whole batch"):
        spectra(Held(), X.float(), map="network", batch_mode="sample")


class Softmax32(nn.Module):
    def forward(self, h):
        return torch.softmax(h, -1, dtype=torch.float32).to(h.dtype)


def test_float32_inside_a_float64_measurement_shows_in_the_floor():
    for seed in range(5):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(6, 6), Softmax32(), nn.Linear(6, 6)), torch.randn(4, 6)
        measured = spectra(model, x, map="network", dtype=REAL)["network"]
        assert not measured.resolved
        assert measured.rank <= 20  # softmax takes one of six directions of each sample


def test_layers_within_autocast_that_the_forward_pass_enters():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x).float()

    torch.manual_seed(0)
    model = Cast()
    for name in ("layer", "param", "tail"):
        measured, exact = (spectra(model, X.to(dtype), map=name, dtype=dtype) for dtype in (torch.float32, REAL))
        for layer, spectrum in measured.items():
            assert spectrum.witness < 0.02  # bfloat16
            above = spectrum.values > spectrum.floor
            assert np.all(np.abs(spectrum.values / exact[layer].values - 1)[above] <= 0.1)


def test_a_mean_far_from_the_deviation_shows_in_the_floor():
    for seed in range(5):
        torch.manual_seed(seed)
        measured = spectra(nn.Sequential(nn.BatchNorm1d(4)), torch.randn(12, 4) + 1e4, layers="0")["0"]
        assert not measured.resolved
        assert measured.rank == 40


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_so_it_does_for_kernels_and_operators(norm):
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = nn.Sequential(norm(6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(8, 6) + 3e3
        for options in ({"map": "kernel", "layers": "total"}, {"map": "layer", "layers": "0"}):
            measured, exact = (next(iter(spectra(model, x, dtype=dtype, **options).values())) for dtype in (None, REAL))
            above = measured.values > measured.floor
            assert np.all(np.abs(measured.values / exact.values - 1)[above] <= 0.1)
        operator = JacobianOperator(model, x, layer="0")
        by_products = spectrum_of(operator)
        assert by_products.rank == measured.rank
        assert not by_products.resolved
        assert smallest_singular_value(operator).bound == "upper"


def test_hooks_of_backward_passes_leave_no_trace_in_the_users_module():
    class Logs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.log = nn.Linear(4, 4), nn.Linear(4, 3), []

        def forward(self, x):
            h = self.a(x)
            if h.requires_grad:
                h.register_hook(lambda gradient: self.log.append(len(self.log)))
            return self.b(h.tanh())

    model = Logs().double()
    model.log.append(0)
    y = torch.tensor([0, 1, 2, 0, 1])
    for operator in (
        JacobianOperator(model, X, map="network"),
        TangentKernelOperator(model, X),
        HessianOperator(model, X, y),
    ):
        operator.matvec(torch.ones(operator.shape[1], dtype=REAL))
        operator.rmatvec(torch.ones(operator.shape[0], dtype=REAL))
        assert model.log == [0]


def test_a_deep_chain_in_float32_is_right_above_its_floor():
    for seed in range(3):
        torch.manual_seed(seed)
        layers = [z for _ in range(60) for z in (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())]
        model, x = nn.Sequential(nn.Linear(8, 16), *layers, nn.Linear(16, 4)), torch.randn(12, 8)
        measured, exact = (spectra(model, x, map="network", dtype=dtype)["network"] for dtype in (None, REAL))
        above = measured.values > measured.floor
        assert np.all(np.abs(measured.values / exact.values - 1)[above] <= 0.1)


@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_tiny_and_huge_jacobians_in_float32(gain):
    torch.manual_seed(0)
    layers = []
    for _ in range(34):
        layer = nn.Linear(32, 32)
        nn.init.normal_(layer.weight, std=gain * 32**-0.5)
        layers += [layer, nn.Sigmoid() if gain == 1 else nn.ReLU()]
    model, x = nn.Sequential(*layers, nn.Linear(32, 10)), torch.randn(4, 32)
    measured = spectra(model, x, map="network", method="lanczos")["network"]
    largest = torch.linalg.svdvals(oracle(model.double(), x.double()))[0]
    assert measured.sigma_max == pytest.approx(float(largest), rel=1e-3)


def test_a_language_models_loss_is_taken_over_its_vocabulary():
    from skip_conditioning.diagnostics.loss.losses import named_loss
    from skip_conditioning.diagnostics.networks.probe import Probe

    ids = torch.randint(16, (4, 16))
    logits = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16))(ids)
    expected = functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    assert float(named_loss(logits, Probe(ids, ids))["loss"]) == pytest.approx(float(expected))
