"""The observer changes nothing: parameters, buffers, gradients, random streams, flags, hooks and global switches."""

import contextlib
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from skip_conditioning import SpectrumMonitor, jacobian, spectra, tangent_kernel
from skip_conditioning.diagnostics.errors import InputError, NonFiniteError
from skip_conditioning.diagnostics.networks.isolation import quiet
from tests.diagnostics.theory.chains import seeded, two_names

MAPS = ("layer", "tail", "network", "param", "kernel")


def trained(model, x):
    """Gradients and optimiser state as in the middle of training."""
    logits = model(x)
    logits = logits["logits"] if isinstance(logits, dict) else logits[0] if isinstance(logits, tuple) else logits
    logits.square().mean().backward()


@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
@pytest.mark.parametrize(
    "name",
    ["in-place-residual", "transformer-fast-path", "changes-its-input", "parametrised", "dropout", "python-random"],
)
def test_measuring_changes_nothing(name, batch_mode, make, nothing_changes):
    model, x = make(name)
    trained(model, x.clone())
    with nothing_changes(model, x):
        for name in MAPS:
            spectra(model, x, map=name, batch_mode=batch_mode)
        jacobian(model, x, map="network", batch_mode=batch_mode)


def test_attributes_set_by_a_forward_pass_are_put_back(nothing_changes):
    class Remembers(nn.Linear):
        calls, last = 0, None

        def forward(self, x):
            self.calls += 1
            self.last = super().forward(x)
            self.cache = self.last.detach()
            return self.last

    model = Remembers(3, 2)
    x = torch.randn(2, 3)
    model(x)
    last = model.last
    del model.cache
    spectra(model, x, map="network")
    assert model.calls == 1
    assert model.last is last
    assert not hasattr(model, "cache")


def test_weight_norm_by_hooks_keeps_its_weight():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    x = torch.randn(2, 3)
    weight = model[0].weight
    spectra(model, x, map="kernel")
    assert model[0].weight is weight
    model(x).sum().backward()
    assert model[0].weight_v.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, None])
def test_a_module_under_two_names_keeps_its_parameters(dtype, oracle, nothing_changes):
    model, x = seeded(two_names, (3, 4))
    parameters = list(model[1].parameters())
    with nothing_changes(model, x):
        kernel = tangent_kernel(model, x, layers="total", dtype=dtype).total
        measured = spectra(model, x, map="kernel", layers="total", dtype=dtype)["total"].values
        dense = jacobian(model, x, map="kernel", dtype=dtype)
    for one in (model[1], model[3]):
        assert [one.weight, one.bias] == parameters
        assert one.weight is parameters[0]
        assert all(type(parameter) is nn.Parameter for parameter in one.parameters())
    expected = oracle(model, x, "kernel", "total")
    for matrix in (kernel, dense):
        torch.testing.assert_close(matrix, expected, rtol=1e-12, atol=1e-12 * float(expected.norm()))
    np.testing.assert_allclose(
        measured, np.linalg.eigvalsh(expected.numpy())[::-1], atol=1e-12 * float(expected.norm())
    )


BROKEN_HALF_WAY = {"NaN": NonFiniteError, "interrupt": KeyboardInterrupt}


class Breaks(nn.Module):
    """Runs forwards, but breaks during the Jacobian, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.norm, self.linear, self.way = nn.BatchNorm1d(3), nn.Linear(3, 3), way
        self.eval()  # flags that sample mode has nothing to do with
        self.norm.train()

    def forward(self, x):
        x = self.linear(self.norm(x))
        differentiated = x.requires_grad or torch._C._functorch.peek_interpreter_stack() is not None
        if self.way == "interrupt" and differentiated:
            raise KeyboardInterrupt
        return (x - x.detach()).abs().sqrt() if self.way == "NaN" else x


@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
@pytest.mark.parametrize(("way", "error"), BROKEN_HALF_WAY.items(), ids=list(BROKEN_HALF_WAY))
def test_an_error_half_way_changes_nothing_either(way, error, batch_mode, nothing_changes):
    model, x = Breaks(way), torch.randn(4, 3)
    with nothing_changes(model, x):
        for name in ("network", "kernel", "tail"):
            with pytest.raises(error):
                spectra(model, x, map=name, layers=["linear"], batch_mode=batch_mode)


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled],
    ids=["no-grad", "inference", "autocast", "grad"],
)
def test_the_callers_modes_change_no_value_and_stay(context, make, nothing_changes):
    model, x = make("conv-batch-norm")
    model, x = model.float(), x.float()
    plain = spectra(model, x, map="tail")["0"].values
    with context(True) if context is torch.set_grad_enabled else context(), nothing_changes(model, x):
        float64 = spectra(model, x, map="tail", dtype=torch.float64)["0"].values
        measured = spectra(model, x, map="tail")["0"].values
    np.testing.assert_array_equal(measured, plain)
    np.testing.assert_allclose(float64, plain, rtol=1e-5, atol=1e-6 * plain[0])


def reduce_by_the_new_switches():
    torch.backends.fp32_precision = "tf32"


def reduce_one_operator():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.cudnn.conv.fp32_precision = "ieee"


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has only the old switches")
@pytest.mark.parametrize("reduce", [reduce_by_the_new_switches, reduce_one_operator])
def test_reduced_precision_is_off_inside_and_put_back(reduce, nothing_changes):
    operators = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends.cudnn.conv]
    old = [torch.backends.fp32_precision, *(operator.fp32_precision for operator in operators)]
    model, x = nn.Linear(3, 2), torch.randn(2, 3)
    try:
        reduce()
        with nothing_changes(model, x):
            with quiet(model, batch_mode="batch"):
                assert {operator.fp32_precision for operator in operators} <= {"ieee", "none"}
            spectra(model, x, map="network")
    finally:
        torch.backends.fp32_precision = old[0]
        for operator, precision in zip(operators, old[1:], strict=True):
            operator.fp32_precision = precision


def test_legacy_precision_switch_is_put_back():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        spectra(nn.Linear(3, 2), torch.randn(2, 3), map="network")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_dropout_masks_do_not_depend_on_the_callers_streams(make):
    model, x = make("dropout")
    first = jacobian(model, x, map="network")
    torch.manual_seed(99)
    assert torch.equal(jacobian(model, x, map="network"), first)
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(99))


@pytest.mark.parametrize("name", ["in-place-residual", "dropout"])
def test_training_is_the_same_bit_for_bit_with_and_without_a_monitor(name, make, tmp_path):
    def train(monitored):
        model, x = make(name)
        model = model.float().train()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        y = torch.arange(len(x)) % 2
        losses = []
        with contextlib.ExitStack() as stack:
            if monitored:
                options = {"maps": MAPS, "schedule": 2, "max_overhead": None}
                monitor = stack.enter_context(SpectrumMonitor(model, (x.float(), y), tmp_path, **options))
            for step in range(5):
                batch = x.float() + torch.randn(()) + random.random() + np.random.rand()
                loss = nn.functional.cross_entropy(model(batch), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss)
                if monitored:
                    monitor.step(step, loss=loss)
        return [model.state_dict(), optimiser.state_dict()["state"], [p.grad for p in model.parameters()], losses]

    random.seed(0), np.random.seed(0)
    plain = train(False)
    random.seed(0), np.random.seed(0)
    observed = train(True)
    equal = torch.utils._pytree.tree_map(lambda a, b: torch.equal(a, b), plain, observed)
    assert all(torch.utils._pytree.tree_leaves(equal))


class TestWrappers:
    """Wrapped models are measured as what is inside, with their own layer names."""

    def test_compiled(self, make):
        model, x = make("conv-batch-norm")
        plain = spectra(model, x, map="tail")
        wrapped = torch.compile(model, backend="eager")
        wrapped(x)
        for one in (wrapped, nn.DataParallel(wrapped)):
            measured = spectra(one, x, map="tail")
            assert list(measured) == list(plain)
            np.testing.assert_array_equal(measured["0"].values, plain["0"].values)

    def test_compiled_inside(self):
        ran = []

        def backend(graph, inputs):
            return lambda *args: ran.append(1) or graph(*args)

        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        plain = nn.Sequential(inner, nn.Linear(3, 2))
        mixed = nn.Sequential(torch.compile(inner, backend=backend), plain[1])
        x = torch.randn(2, 3)
        mixed(x)
        assert len(ran) == 1
        torch.testing.assert_close(jacobian(mixed, x, map="kernel"), jacobian(plain, x, map="kernel"))
        assert len(ran) == 1  # what is compiled for training is not run, nor compiled again, to measure
        mixed(x)
        assert len(ran) == 2

    def test_distributed(self, tmp_path):
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
            wrapped = nn.parallel.DistributedDataParallel(model)
            x = torch.randn(4, 3)
            with SpectrumMonitor(wrapped, x, tmp_path / "run", max_overhead=None) as monitor:
                wrapped(x).sum().backward()
                assert list(monitor.step(0)) == ["0", "1"]
                assert list(spectra(wrapped, x)) == ["0", "1"]
        finally:
            torch.distributed.destroy_process_group()


def test_what_is_no_module_is_refused():
    with pytest.raises(InputError, match="the model is a function; it must be a torch"):
        spectra(lambda x: x, torch.randn(2, 3))


def test_models_and_probes_made_in_inference_mode_are_measured():
    with torch.inference_mode():
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(5, 3).double()
        kernel = tangent_kernel(model, x)
    assert kernel.total.shape == (10, 10)
    assert spectra(model, x, map="tail", layers="0")["0"].resolved
