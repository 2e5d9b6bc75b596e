"""Closed forms of plain layers' ``param`` spectra against dense Jacobians, and layers that only look plain."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from skip_conditioning import jacobian
from skip_conditioning.diagnostics.jacobians import plain_layers as engine
from skip_conditioning.diagnostics.jacobians.param_spectrum import METHOD, param_spectrum
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.models.shortcuts import ConvolutionShortcut

F32, F64 = torch.float32, torch.float64


def closed(model, x, layer="0", map="param", batch_mode="batch", memory_budget=2**30):
    """The closed form of one layer's map, or None."""
    with measuring(model, x, batch_mode=batch_mode) as probed:
        (item,) = probed.maps(map, layer)
        return param_spectrum(item, memory_budget=memory_budget)


def assert_dense(measured, model, x, layer="0"):
    """Those of the dense Jacobian, up to rounding."""
    matrix = jacobian(model, x, map="param", layer=layer)
    expected = torch.linalg.svdvals(matrix.double()).numpy()
    assert (measured.rows, measured.cols) == matrix.shape
    atol = 1e-13 * expected[0] if matrix.dtype == F64 else max(measured.floor, 1e-300)
    np.testing.assert_allclose(measured.values, expected, atol=atol, rtol=0)
    assert measured.rank == int((expected > measured.floor).sum())


def frozen(module, name):
    module.get_parameter(name).requires_grad_(False)
    return module


def seen(module, x):
    """Running statistics that are not those of a fresh batch norm."""
    module.double()(3 + 2 * x.double())
    return module.eval()


PLAIN = {
    "linear": (lambda: nn.Linear(3, 4), (6, 3)),
    "linear-wide": (lambda: nn.Linear(9, 4), (3, 9)),
    "linear-square": (lambda: nn.Linear(4, 2), (5, 4)),
    "linear-no-bias": (lambda: nn.Linear(3, 4, bias=False), (6, 3)),
    "linear-one": (lambda: nn.Linear(1, 1), (1, 1)),
    "linear-tokens": (lambda: nn.Linear(3, 4), (2, 3, 3)),
    "linear-frozen-bias": (lambda: frozen(nn.Linear(3, 4), "bias"), (6, 3)),
    "linear-frozen-weight": (lambda: frozen(nn.Linear(3, 4), "weight"), (6, 3)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (3, 4, 7)),
    "conv1d-few-samples": (lambda: nn.Conv1d(2, 3, 3), (1, 2, 3)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 2, 4, 4)),
    "conv2d-wide": (lambda: nn.Conv2d(4, 2, 3), (2, 4, 3, 4)),
    "conv2d-mixed": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 2, 5, 5)),
    "conv2d-depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3, padding="same", bias=False), (2, 3, 4, 4)),
    "conv2d-circular": (lambda: nn.Conv2d(2, 3, 2, padding=1, padding_mode="circular"), (2, 2, 3, 3)),
    "conv2d-frozen-bias": (lambda: frozen(nn.Conv2d(2, 3, 2, groups=1), "bias"), (2, 2, 3, 3)),
    "conv2d-frozen-weight": (lambda: frozen(nn.Conv2d(2, 4, 2, groups=2), "weight"), (2, 2, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, groups=2, stride=(1, 2, 1), padding=1), (1, 2, 2, 3, 3)),
    "batch-norm": (lambda: nn.BatchNorm1d(3), (5, 3)),
    "batch-norm-sequence": (lambda: nn.BatchNorm1d(3), (3, 3, 4)),
    "batch-norm-images": (lambda: nn.BatchNorm2d(3), (2, 3, 3, 3)),
    "batch-norm-eval": (lambda: seen(nn.BatchNorm2d(3), torch.randn(4, 3, 2, 2)), (2, 3, 3, 3)),
    "batch-norm-eval-no-statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False).eval(), (2, 3, 3, 3)),
    "batch-norm-frozen-weight": (lambda: frozen(nn.BatchNorm2d(3), "weight"), (2, 3, 3, 3)),
    "batch-norm-frozen-bias": (lambda: frozen(nn.BatchNorm2d(3), "bias"), (2, 3, 3, 3)),
    "group-norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3)),
    "layer-norm": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer-norm-no-bias": (lambda: nn.LayerNorm(4, bias=False), (3, 4)),
    "layer-norm-images": (lambda: nn.LayerNorm((2, 3)), (3, 4, 2, 3)),
    "rms-norm": (lambda: nn.RMSNorm(4), (2, 3, 4)),
    "convolution-shortcut": (lambda: ConvolutionShortcut(2, 3, 2, bias=True), (2, 2, 4, 4)),
    "subclass-changing-its-input": (lambda: Squares(3, 4), (6, 3)),
    "hook-changing-its-input": (lambda: hooked(nn.Linear(3, 4), before=lambda _, args: (args[0].exp(),)), (6, 3)),
    "hook-that-looks": (lambda: hooked(nn.Linear(3, 4), after=lambda _, args, y: None), (6, 3)),
}


class Squares(nn.Linear):
    """What it does before the function is in the activations."""

    def forward(self, x):
        return super().forward(x**2)


def hooked(module, before=None, after=None):
    if before:
        module.register_forward_pre_hook(before)
    if after:
        module.register_forward_hook(after)
    return module


def made(build, shape, dtype):
    torch.manual_seed(0)
    return nn.Sequential(build()).to(dtype), torch.randn(shape, dtype=dtype)


IN_SINGLE = ("linear", "linear-wide", "conv2d-mixed", "batch-norm", "layer-norm")


@pytest.mark.parametrize(("name", "dtype"), [*((name, F64) for name in PLAIN), *((name, F32) for name in IN_SINGLE)])
def test_plain_layers_have_the_values_of_their_dense_jacobian(name, dtype):
    model, x = made(*PLAIN[name], dtype)
    measured = closed(model, x)
    assert measured is not None
    assert_dense(measured, model, x)
    assert (measured.method, measured.dtype) == (METHOD, str(dtype).removeprefix("torch."))


@pytest.mark.parametrize(
    ("table", "shape", "dtype"),
    [
        (nn.Embedding(9, 4), (2, 5), F64),
        (nn.Embedding(9, 4), (4,), F32),
        (nn.Embedding(9, 4, padding_idx=2), (3, 2, 4), F64),
        (nn.Embedding(3, 2), (3, 2, 4), F64),
    ],
)
def test_embeddings_count_their_indices(table, shape, dtype):
    torch.manual_seed(0)
    model, x = nn.Sequential(table).to(dtype), torch.randint(table.num_embeddings, shape)
    assert_dense(closed(model, x), model, x)


def test_embedding_by_hand():
    measured = closed(
        nn.Sequential(nn.Embedding(4, 2, padding_idx=0, dtype=F64)), torch.tensor([[0, 0, 0, 3], [3, 1, 3, 3]])
    )
    assert measured.values.tolist() == [2, 2, 1, 1, 0, 0, 0, 0]
    assert (measured.rank, measured.resolved) == (4, False)


def test_linear_by_hand():
    x = torch.tensor([[3.0, 0], [0, 4]], dtype=F64)
    measured = closed(nn.Sequential(nn.Linear(2, 3, bias=False, dtype=F64)), x)
    np.testing.assert_allclose(measured.values, [4, 4, 4, 3, 3, 3], rtol=1e-15)
    assert measured.resolved


@pytest.mark.parametrize(("cheap", "chunk", "dtype"), [(0, 2**21, F64), (0, 1, F32), (np.inf, 1, F64)])
@pytest.mark.parametrize("name", ["linear", "linear-wide", "conv2d", "conv2d-wide", "conv2d-depthwise", "layer-norm"])
def test_chunks_and_gram_matrices_change_nothing(name, cheap, chunk, dtype, monkeypatch):
    model, x = made(*PLAIN[name], dtype)
    monkeypatch.setattr(engine, "_CHEAP", cheap)
    monkeypatch.setattr(engine, "_CHUNK_ENTRIES", chunk)
    assert_dense(closed(model, x), model, x)


def test_small_values_survive_in_float64():
    x = torch.diag(torch.logspace(0, -12, 6, dtype=F64))
    measured = closed(nn.Sequential(nn.Linear(6, 2, bias=False, dtype=F64)), x)
    np.testing.assert_allclose(measured.values[::2], np.logspace(0, -12, 6), rtol=1e-3)
    assert measured.resolved


@pytest.mark.parametrize("scale", [0, 1e-250, 1e250])
def test_extreme_inputs_do_no_harm(scale):
    model, x = made(lambda: nn.Linear(3, 2, bias=False), (4, 3), F64)
    assert_dense(closed(model, scale * x), model, scale * x)


def test_rank_deficient_and_bfloat16():
    model, x = made(lambda: nn.Linear(5, 6, bias=False), (4, 5), torch.bfloat16)
    measured = closed(model, torch.ones_like(x))
    assert (measured.rank, measured.resolved, measured.dtype) == (6, False, "float32")
    np.testing.assert_allclose(measured.values[:6], 20**0.5, rtol=1e-6)


def test_a_failing_solver_is_replaced_and_named(monkeypatch):
    def fail(matrix):
        raise torch.linalg.LinAlgError("no convergence\nsecond line")

    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    for name in ("linear", "linear-wide"):
        model, x = made(*PLAIN[name], F64)
        measured = closed(model, x)
        monkeypatch.undo()
        assert "svdvals failed on cpu (no convergence)" in measured.note
        assert measured.floor > 1e-9
        matrix = jacobian(model, x, map="param", layer="0")
        np.testing.assert_allclose(measured.values, torch.linalg.svdvals(matrix).numpy(), atol=measured.floor)
        monkeypatch.setattr(torch.linalg, "svdvals", fail)


def test_every_known_network_has_the_dense_values_or_none(kernel_case):
    model, x = kernel_case.make()
    for layer in kernel_case.maps.get("param", []):
        measured = closed(model, x, layer)
        if measured is not None:
            assert_dense(measured, model, x, layer)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("mlp", "2"), ("conv-batch-norm", "1"), ("called-thrice", "cell#3"), ("tied", "up"), ("fused-attention", "1.qkv")],
)
def test_plain_layers_within_networks_are_found(name, layer, make):
    model, x = make(name)
    assert_dense(closed(model, x, layer), model, x, layer)


def test_sample_mode_measures_one_sample_in_eval_mode(make):
    model, x = make("conv-batch-norm")
    for layer in ("0", "1"):
        dense = jacobian(model, x, map="param", layer=layer, batch_mode="sample")
        measured = closed(model, x[1:2], layer, batch_mode="sample")
        expected = torch.linalg.svdvals(dense[1]).numpy()
        np.testing.assert_allclose(measured.values, expected, atol=1e-13 * expected[0])


def test_channels_last_input():
    model, x = made(lambda: nn.Conv2d(3, 4, 2), (2, 3, 4, 4), F64)
    x = x.to(memory_format=torch.channels_last)
    assert_dense(closed(model, x), model, x)


class After(nn.Linear):
    """Does something with what the function returns."""

    def __init__(self, change):
        super().__init__(3, 4)
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


class Around(nn.Linear):
    """Uses its parameters in more than one place, or not as they are."""

    def __init__(self, function):
        super().__init__(3, 3)
        self.function = function

    def forward(self, x):
        return self.function(x, self.weight, self.bias)


class Scaled(torch.autograd.Function):
    """The identity, with another derivative."""

    @staticmethod
    def forward(y):
        return y.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 1.001 * g


def hook_on_gradient(y):
    if y.requires_grad:
        y.register_hook(lambda g: 2 * g)
    return y


def straight_through(y):
    return y + (y.square() - y.square().detach())


def permuted_bias(x, weight, bias):
    return functional.linear(x, weight, bias.flip(0))


HOSTILE = {
    "gain": lambda: After(lambda y: 0.5 * y),
    "gain-near-one": lambda: After(lambda y: (1 + 1e-6) * y),
    "in-place": lambda: After(lambda y: y.mul_(2)),
    "in-place-shift": lambda: After(lambda y: y.add_(1)),
    "relu": lambda: After(torch.relu),
    "straight-through": lambda: After(straight_through),
    "own-derivative": lambda: After(Scaled.apply),
    "hook-on-the-output": lambda: After(hook_on_gradient),
    "detached-output": lambda: After(lambda y: y.detach() + 0 * y),
    "output-in-another-shape": lambda: After(lambda y: y.unsqueeze(1)),
    "forward-hook": lambda: hooked(nn.Linear(3, 4), after=lambda _, args, y: y.sin()),
    "forward-hook-that-calls": lambda: hooked(
        nn.Linear(3, 3), after=lambda m, args, y: functional.linear(y, m.weight, m.bias)
    ),
    "pre-hook-that-calls": lambda: hooked(
        nn.Linear(3, 3), before=lambda m, args: (functional.linear(args[0], m.weight, m.bias),)
    ),
    "input-depends": lambda: Around(lambda x, w, b: functional.linear(x * w.mean(), w, b)),
    "weight-in-two-places": lambda: Around(lambda x, w, b: functional.linear(x, w, b) + w.sum() - w.sum().detach()),
    "bias-added-later": lambda: Around(lambda x, w, b: functional.linear(x, w) + b),
    "bias-depends": lambda: Around(lambda x, w, b: functional.linear(x, w, w.sum(1))),
    "transposed": lambda: Around(lambda x, w, b: functional.linear(x, w.T, b)),
    "symmetric": lambda: Around(lambda x, w, b: functional.linear(x, w + w.T, b)),
    "no-known-function": lambda: Around(lambda x, w, b: x @ w + b),
    "weight-for-bias": lambda: Around(lambda x, w, b: functional.linear(x, w, w[0])),
    "one-row": lambda: Around(lambda x, w, b: functional.linear(x, w[:1], b[:1])),
    "bias-input-changed-later": lambda: frozen(
        Around(lambda x, w, b: (functional.linear(x, w, b.sin()), x.mul_(2))[0]), "weight"
    ),
    "flipped-bias": lambda: Around(permuted_bias),
    "weight-norm": lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
    "spectral-norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 4)),
    "two-layers": lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
    "unused-parameters": lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU()),
    "bilinear": lambda: Around(lambda x, w, b: functional.bilinear(x, x, w.unsqueeze(0))),
    "scaled-shortcut": lambda: ConvolutionShortcut(3, 4, gain=0.5),
    "unused-shortcut": lambda: ConvolutionShortcut(3, 4, gain=0.0),
    "transposed-convolution": lambda: nn.ConvTranspose2d(3, 4, 2),
    "layer-norm-of-everything": lambda: nn.LayerNorm((6, 3)),
    "embedding-with-max-norm": lambda: nn.Embedding(9, 4, max_norm=0.1),
    "embedding-by-frequency": lambda: nn.Embedding(9, 4, scale_grad_by_freq=True),
}


#: In single precision what is nearly plain is hardest to tell.
HOSTILE_CASES = [*((name, F32) for name in HOSTILE), *((name, F64) for name in ("gain-near-one", "own-derivative"))]


@pytest.mark.parametrize(("name", "dtype"), HOSTILE_CASES)
def test_what_only_looks_plain_is_left_to_the_general_engine(name, dtype):
    module = HOSTILE[name]()
    images = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    model, x = made(lambda: module, (2, 3, 2, 2) if images else (6, 3), dtype)
    if isinstance(module, nn.Embedding):
        x = torch.randint(9, (2, 5))
    assert closed(model, x) is None


@pytest.mark.parametrize(
    "module",
    [
        After(torch.relu),  # every unit is active
        Around(lambda x, w, b: functional.linear(x, w, b) + 0 * w.sum()),
        nn.Sequential(frozen(frozen(nn.Linear(3, 5), "weight"), "bias"), nn.Tanh(), nn.Linear(5, 2)),
    ],
    ids=["positive-relu", "nothing-added", "frozen-layer-before"],
)
def test_what_changes_no_derivative_does_no_harm(module):
    model, x = made(lambda: module, (6, 3), F64)
    (module if isinstance(module, nn.Linear) else module[-1]).bias.data.fill_(100)
    assert_dense(closed(model, x), model, x)


@pytest.mark.parametrize("map", ["layer", "tail", "kernel"])
def test_other_maps_have_no_closed_form(map, make):
    model, x = make("mlp")
    assert closed(model, x, map=map) is None


def test_nothing_is_left_behind(make, nothing_changes):
    model, x = make("conv-batch-norm")
    with nothing_changes(model, x):
        for layer in ("0", "1"):
            assert closed(model, x, layer) is not None


def test_a_layer_beyond_any_dense_jacobian():
    model, x = made(lambda: nn.Linear(2048, 2048), (64, 2048), F32)
    measured = closed(model, x, memory_budget=2**27)
    assert (measured.rows, measured.cols) == (131072, 4196352)
    expected = torch.linalg.svdvals(torch.cat([x, torch.ones(64, 1)], 1).double()).repeat_interleave(2048)
    np.testing.assert_allclose(measured.values, expected.numpy(), rtol=1e-12)
    assert measured.peak_bytes <= 2**27
    assert measured.seconds < 5  # a quarter of a second on one core


def test_a_layer_that_writes_into_its_weights_writes_into_a_copy():
    model, x = nn.Sequential(nn.Embedding(9, 4, max_norm=0.1)), torch.randint(9, (2, 5))
    with measuring(model, x) as probed:
        (item,) = probed.maps("param", "0")
        item.point.fill_(1)
        assert param_spectrum(item, memory_budget=2**30) is None
        assert bool((item.point == 1).all())


def test_an_embedding_that_counts_its_padding_from_the_end():
    class Last(nn.Embedding):
        def forward(self, x):
            return functional.embedding(x, self.weight, padding_idx=-1)

    model, x = nn.Sequential(Last(5, 2, dtype=F64)), torch.tensor([[4, 4, 1], [0, 1, 4]])
    assert_dense(closed(model, x), model, x)


def test_too_small_a_budget_is_left_to_the_general_engine():
    model, x = made(lambda: nn.Linear(64, 64), (8, 64), F32)
    assert closed(model, x, memory_budget=2**10) is None
