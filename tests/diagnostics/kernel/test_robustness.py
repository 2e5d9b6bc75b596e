"""The tangent kernel within memory budgets, beside other work, with wrong rules, and of what cannot be measured."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from skip_conditioning import tangent_kernel
from skip_conditioning.diagnostics.errors import (
    InputError,
    LayerCallError,
    MemoryBudgetError,
    NonFiniteError,
    UnknownLayerError,
    UnsupportedModelError,
)
from skip_conditioning.diagnostics.kernel.batch import Batch
from skip_conditioning.diagnostics.networks import parameter_rules as kernel_rules
from tests.diagnostics.kernel.structures import F64, Net, assert_near, autograd_kernel, make, mlp

BUDGETS = {
    "conv": (lambda: nn.Sequential(nn.Conv1d(2, 16, 3), nn.ReLU(), nn.Conv1d(16, 2, 3)), (2, 2, 100)),
    "depthwise": (lambda: nn.Sequential(nn.Conv1d(12, 12, 3, groups=12), nn.GroupNorm(3, 12)), (2, 12, 60)),
    "grouped": (lambda: nn.Sequential(nn.Conv1d(8, 8, 9, groups=2), nn.Tanh()), (2, 8, 30)),
    "tokens": (lambda: nn.Sequential(nn.Embedding(20, 30), nn.Linear(30, 40), nn.LayerNorm(40)), (2, 20)),
    "bare": (lambda: nn.Sequential(nn.Linear(4, 200), nn.PReLU(200), nn.Linear(200, 3)), (3, 4)),
    "recurrent": (lambda: Net(lambda m, x: m.cells(x)[0], cells=nn.GRU(4, 8, batch_first=True)), (2, 5, 4)),
    "coupled": (
        lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.PReLU(8), nn.Conv1d(8, 2, 5)),
        (3, 2, 40),
    ),
}


def least_budget(measure):
    """The smallest memory budget that is not refused, by bisection."""
    low, high = 0, 2**24
    while high - low > 1 + low // 10:
        middle = (low + high) // 2
        try:
            measure(middle)
            high = middle
        except MemoryBudgetError:
            low = middle
    return high


@pytest.mark.parametrize("id", BUDGETS)
def test_memory_budget_changes_the_number_of_sweeps_and_nothing_else(id, monkeypatch):
    torch.manual_seed(0)
    build, shape = BUDGETS[id]
    model = Net(
        lambda m, x: torch.stack([part.sin().sum((1, 2)) for part in m.body(x).chunk(2, dim=1)], dim=1), body=build()
    )
    model = (build() if id == "bare" else model).double()
    x = torch.randint(20, shape) if id == "tokens" else torch.randn(shape, dtype=F64)
    sweeps, sweep = [], Batch.sweep
    monkeypatch.setattr(Batch, "sweep", lambda side, parts, coupled: sweeps.append(1) or sweep(side, parts, coupled))

    def measure(budget):
        sweeps.clear()
        measured = tangent_kernel(model, x, layers=["body", "total"] if id != "bare" else None, memory_budget=budget)
        return measured, len(sweeps)

    whole, few = measure(2**30)
    assert_near(whole.total, autograd_kernel(model, x), 1e-10)
    least = least_budget(lambda budget: measure(budget))
    counts = []
    for factor in (1, 1.7, 6):
        measured, count = measure(least * factor)
        counts.append(count)
        assert_near(measured.total, whole.total, 1e-10)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > few
    with pytest.raises(MemoryBudgetError, match=r"use fewer .*samples.* larger memory_budget"):
        measure(least // 4)


@pytest.mark.parametrize("outputs", ["trace", "sum", "centred"])
def test_memory_budget_of_other_outputs_and_two_batches(outputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 16, 3), nn.PReLU(16), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(32, 3))
    x, other = torch.randn(2, 2, 50, dtype=F64), torch.randn(2, 2, 50, dtype=F64)

    def measure(budget):
        return tangent_kernel(model.double(), x, other, outputs=outputs, memory_budget=budget).total

    whole = measure(2**30)
    assert_near(measure(least_budget(measure)), whole, 1e-10)


SIDE_EFFECTS = {
    "train-mode": lambda: make("batch-norm"),
    "dropout": lambda: make("dropout"),
    "hooks": lambda: make("user-hooks"),
    "tied": lambda: make("tied-head"),
    "recurrent": lambda: make("tokens-first-recurrent"),
    "changes-its-input": lambda: (
        Net(lambda m, x: m.a(x.mul_(2)), a=nn.Linear(4, 4)).double(),
        torch.randn(3, 4, dtype=F64),
    ),
    "max-norm": lambda: (nn.Sequential(nn.Embedding(5, 4, max_norm=0.1), nn.Linear(4, 2)), torch.arange(4)),
    "max-norm-frozen": lambda: (
        nn.Sequential(nn.Embedding.from_pretrained(torch.randn(5, 4), max_norm=0.1), nn.Linear(4, 2)),
        torch.arange(4),
    ),
    "spectral-norm": lambda: (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), torch.randn(3, 4)),
    "streams": lambda: (
        Net(lambda m, x: m.a(x) * random.random() * np.random.rand() * torch.rand(()), a=mlp()),
        torch.randn(3, 4),
    ),
    "checkpointed": lambda: (
        Net(lambda m, x: checkpoint(m.a, x, use_reentrant=False), a=nn.Sequential(mlp(), nn.BatchNorm1d(3))).double(),
        torch.randn(3, 4, dtype=F64),
    ),
}


@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
@pytest.mark.parametrize("id", SIDE_EFFECTS)
def test_measuring_changes_nothing(id, batch_mode, nothing_changes):
    model, x = SIDE_EFFECTS[id]()
    parameter = next(part for part in model.parameters() if part.requires_grad)
    parameter.grad = torch.ones_like(parameter)
    with nothing_changes(model, x):
        tangent_kernel(model, x, batch_mode=batch_mode, outputs="trace")
        tangent_kernel(model, x, x.flip(0), batch_mode=batch_mode)


class Broken(torch.autograd.Function):
    """Fails on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise KeyboardInterrupt


def fails(m, x):
    """After batch norm, dropout and every stream were used."""
    random.random(), np.random.rand()
    raise RuntimeError("half way")


BREAKS = {
    "forward": (fails, InputError),
    "backward": (lambda m, x: Broken.apply(x), KeyboardInterrupt),
    "infinite": (lambda m, x: x / 0, NonFiniteError),
    "scalar": (lambda m, x: x.sum(), UnsupportedModelError),
    "detached": (lambda m, x: x.detach(), UnsupportedModelError),
}


@pytest.mark.parametrize("id", BREAKS)
@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
def test_an_error_changes_nothing_either(id, batch_mode, nothing_changes):
    broken, error = BREAKS[id]
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Net(broken)).double()
    model[0].eval()
    x = torch.randn(3, 4, dtype=F64)
    with nothing_changes(model, x), pytest.raises(error):
        tangent_kernel(model, x, batch_mode=batch_mode)


def test_precision_switches_are_put_back(nothing_changes):
    model, x = make("batch-norm")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with nothing_changes(model, x):
            tangent_kernel(model, x)
    finally:
        torch.set_float32_matmul_precision(before)


RULES = {
    "linear": (kernel_rules.LinearRule, "activations", lambda: mlp(), (3, 4)),
    "conv": (
        kernel_rules.ConvolutionRule,
        "cotangents",
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten()),
        (3, 2, 4),
    ),
    "embedding": (
        kernel_rules.EmbeddingRule,
        "similarities",
        lambda: nn.Sequential(nn.Embedding(5, 3), nn.Tanh()),
        (3, 2),
    ),
    "gain": (kernel_rules.GainRule, "activations", lambda: nn.Sequential(nn.LayerNorm(4), nn.Tanh()), (3, 4)),
}


@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
@pytest.mark.parametrize("id", RULES)
def test_a_wrong_rule_is_detected_and_not_used(id, batch_mode, monkeypatch):
    torch.manual_seed(0)
    rule, method, build, shape = RULES[id]
    model = build().double()
    x = torch.randint(5, shape) if id == "embedding" else torch.randn(shape, dtype=F64)
    right = tangent_kernel(model, x, batch_mode=batch_mode)
    assert "autograd" not in right.methods["0"]
    original = getattr(rule, method)
    monkeypatch.setattr(rule, method, lambda *args: 1.01 * original(*args))
    measured = tangent_kernel(model, x, batch_mode=batch_mode)
    assert set(measured.methods.values()) == {"autograd"}
    assert_near(measured.total, right.total)


class Noisy(nn.Module):
    """Draws from a generator of its own, which nobody can put back."""

    def __init__(self):
        super().__init__()
        self.linear, self.gain = nn.Linear(4, 4), nn.Parameter(torch.randn(4))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.linear(x * torch.rand(x.shape, generator=self.generator)) * self.gain


def test_a_forward_pass_that_differs_from_call_to_call_is_refused():
    with pytest.raises(UnsupportedModelError, match="at each call"):
        tangent_kernel(Noisy(), torch.randn(3, 4), batch_mode="sample")


def test_a_forward_pass_that_differs_from_call_to_call_is_measured_as_it_was_the_first_time():
    torch.manual_seed(0)
    model, x = Noisy().double(), torch.randn(3, 4, dtype=F64)
    measured = tangent_kernel(model, x)
    model.generator.manual_seed(0)
    assert_near(measured.total, autograd_kernel(model, x))


class Complex(nn.Module):
    """A complex parameter with a real output."""

    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(self.phase.dtype) @ self.phase).abs()


def with_weight(model, value):
    model[0].weight.data[0, 0] = value
    return model


def without_gradients(model, *names):
    for name in names or [""]:
        model.get_submodule(name).requires_grad_(False)
    return model


NAN = float("nan")
REFUSED = {
    "no module": (lambda: torch.sin, {}, InputError, "must be a torch.nn.Module"),
    "unknown layer": (mlp, {"layers": "00"}, UnknownLayerError, "'00' is no module.*Did you mean '0'"),
    "unknown among known": (mlp, {"layers": ["0", "3"]}, UnknownLayerError, "'3' is no module"),
    "no layer": (mlp, {"layers": []}, InputError, "layers is empty"),
    "no parameters": (mlp, {"layers": ["1"]}, LayerCallError, "'1' has no trainable parameters"),
    "frozen": (lambda: without_gradients(mlp(), "0"), {"layers": ["0"]}, LayerCallError, "'0' has no .*unfreeze it"),
    "all frozen": (lambda: without_gradients(mlp()), {}, InputError, "no trainable parameters; unfreeze"),
    "complex": (Complex, {}, UnsupportedModelError, "'phase' is complex.*two parameters"),
    "scalar": (lambda: Net(lambda m, x: m.a(x).sum(), a=mlp()), {}, UnsupportedModelError, r"shape \(\) for 3 samples"),
    "one row": (lambda: Net(lambda m, x: m.a(x).sum(0), a=nn.Linear(4, 5)), {}, UnsupportedModelError, r"\(5,\) for 3"),
    "rows lost": (lambda: Net(lambda m, x: m.a(x)[:2], a=mlp()), {}, UnsupportedModelError, "one row .* each sample"),
    "integers": (lambda: Net(lambda m, x: m.a(x).argmax(1), a=mlp()), {}, UnsupportedModelError, "real tensor"),
    "nothing": (lambda: Net(lambda m, x: None, a=mlp()), {}, UnsupportedModelError, "returns NoneType"),
    "detached": (lambda: Net(lambda m, x: m.a(x).detach(), a=mlp()), {}, UnsupportedModelError, "not depend on any"),
    "no_grad": (lambda: Net(torch.no_grad()(lambda m, x: m.a(x)), a=mlp()), {}, UnsupportedModelError, "not depend on"),
    "NaN weight": (lambda: with_weight(mlp(), NAN), {}, NonFiniteError, "0.weight holds 1 NaN"),
    "infinite weight": (lambda: with_weight(mlp(), float("inf")), {}, NonFiniteError, "0.weight holds 1 NaN"),
    "NaN output": (lambda: Net(lambda m, x: m.a(x) * NAN, a=mlp()), {}, NonFiniteError, "output holds NaN"),
    "NaN derivative": (lambda: Net(lambda m, x: (m.a(x) * 0).sqrt(), a=mlp()), {}, NonFiniteError, "NaN or inf"),
    "unknown outputs": (mlp, {"outputs": "traces"}, InputError, "'traces'; known are .* Did you mean 'trace'"),
    "unknown batch mode": (mlp, {"batch_mode": "samples"}, InputError, "'samples'; known are .* Did you mean 'sample'"),
    "integer dtype": (mlp, {"dtype": torch.int64}, InputError, "must be a floating"),
    "one output": (lambda: nn.Linear(4, 1), {"outputs": "centred"}, InputError, "centred.*single output.*use outputs="),
    "no memory": (mlp, {"memory_budget": 0}, MemoryBudgetError, "use fewer samples.*=.trace.*larger memory_budget"),
    "little memory": (mlp, {"memory_budget": 5_000}, MemoryBudgetError, "budget is 0.00477 MiB; use fewer samples"),
}


@pytest.mark.parametrize("id", REFUSED)
def test_bad_models_and_options_are_refused_with_a_way_out(id):
    build, options, error, message = REFUSED[id]
    with pytest.raises(error, match=message):
        tangent_kernel(build(), torch.rand(3, 4), **options)


@pytest.mark.parametrize("bad", [torch.tensor([[0.0, 1, NAN, 1]]), torch.zeros(0, 4), torch.tensor(1.0), [[1.0] * 4]])
def test_bad_probes_are_refused(bad):
    with pytest.raises(InputError, match=r"the probe (must be|holds 1 NaN)"):
        tangent_kernel(mlp(), bad)
    with pytest.raises(InputError, match=r"the probe (must be|holds 1 NaN)"):
        tangent_kernel(mlp(), torch.ones(2, 4), bad)


def test_two_batches_with_other_outputs_are_refused():
    model = Net(lambda m, x: m.a(x).flatten(1), a=nn.Linear(4, 2))
    with pytest.raises(InputError, match="outputs"):
        tangent_kernel(model, torch.ones(2, 3, 4), torch.ones(2, 5, 4))
