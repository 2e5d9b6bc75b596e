"""Singular values against closed forms, and against themselves within smaller memory budgets."""

import numpy as np
import pytest
import torch
from torch import nn

from skip_conditioning import jacobian, spectra
from skip_conditioning.diagnostics.errors import MemoryBudgetError, NonFiniteError
from skip_conditioning.diagnostics.jacobians import exact as engine
from skip_conditioning.diagnostics.jacobians.exact import ExactPlan
from skip_conditioning.diagnostics.networks.measuring import measuring
from tests.diagnostics.sample_networks import CASES

F64 = torch.float64


def linear(weight):
    """The map x ↦ weight·x as a network."""
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype))
    model[0].weight.data.copy_(weight)
    return model


def orthogonal(size, seed=0):
    return torch.linalg.qr(torch.randn(size, size, dtype=F64, generator=torch.Generator().manual_seed(seed))).Q


def values(model, x, **options):
    (measured,) = spectra(model, x, **({"map": "network", "method": "exact"} | options)).values()
    return measured


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (1, 6), (6, 1)])
def test_linear_map_has_its_weights_values_once_per_sample(shape):
    weight = torch.randn(shape, dtype=F64)
    measured = values(linear(weight), torch.randn(4, shape[1], dtype=F64))
    expected = torch.linalg.svdvals(weight).repeat_interleave(4).numpy()
    np.testing.assert_allclose(measured.values, expected, rtol=1e-13)
    assert (measured.rows, measured.cols) == (4 * shape[0], 4 * shape[1])
    assert measured.resolved


def test_orthogonal_map_is_perfectly_conditioned():
    measured = values(linear(orthogonal(20)), torch.randn(2, 20, dtype=F64))
    assert measured.condition_number == pytest.approx(1, abs=1e-13)
    for name in ("sigma_max", "sigma_min", "sigma_mean", "sigma_gmean", "sigma_median", "sigma_rms"):
        assert getattr(measured, name) == pytest.approx(1, abs=1e-13), name
    assert measured.effective_rank == pytest.approx(40)
    assert measured.stable_rank == pytest.approx(40)


def test_average_pooling():
    measured = values(nn.AvgPool2d(2), torch.randn(1, 2, 6, 6, dtype=F64))
    np.testing.assert_allclose(measured.values, np.full(18, 0.5), rtol=1e-14)
    assert measured.resolved


def test_circular_convolution_by_fft():
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False, dtype=F64)
    measured = values(conv, torch.randn(1, 2, 5, 6, dtype=F64))
    padded = torch.zeros(3, 2, 5, 6, dtype=F64)
    padded[..., :3, :3] = conv.weight.detach()
    symbols = torch.fft.fft2(padded).permute(2, 3, 0, 1)
    expected = torch.linalg.svdvals(symbols).flatten().sort(descending=True).values
    np.testing.assert_allclose(measured.values, expected.numpy(), rtol=1e-12)


@pytest.mark.parametrize("exponent", [0, 4, 8, 12])
def test_prescribed_condition_number_is_found_to_rounding(exponent):
    sigma = torch.logspace(0, -exponent, 30, dtype=F64)
    weight = orthogonal(30, 1) @ torch.diag(sigma) @ orthogonal(30, 2)
    measured = values(linear(weight), torch.randn(1, 30, dtype=F64))
    assert measured.resolved
    np.testing.assert_allclose(measured.values, sigma.numpy(), atol=1e-14)
    assert measured.condition_number == pytest.approx(10.0**exponent, rel=1e-14 * 10**exponent)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_condition_number_beyond_the_precision_is_a_lower_bound(dtype):
    sigma = torch.logspace(0, -18, 12, dtype=F64)
    weight = (orthogonal(12, 1) @ torch.diag(sigma) @ orthogonal(12, 2)).to(dtype)
    measured = values(linear(weight), torch.randn(1, 12, dtype=dtype))
    assert not measured.resolved
    assert measured.sigma_min == measured.floor
    assert 1e4 < measured.condition_number < 1e18
    assert "κ ≥" in str(measured)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("map", ["network", "kernel", "param"])
def test_rank_deficient_maps_are_marked_and_finite(dtype, map):
    weight = torch.zeros(6, 5)
    weight[:2, :3] = torch.tensor([[1.0, 2, 3], [-1, 1, 0]])
    x = torch.ones(4, 5, dtype=dtype)
    layers = {"network": None, "kernel": "total", "param": "0"}[map]
    measured = values(linear(weight.to(dtype)), x, map=map, layers=layers)
    # All samples are the same: each of six outputs has one direction of five equal weights.
    assert measured.rank == {"network": 8, "kernel": 6, "param": 6}[map]
    assert not measured.resolved
    assert all(np.isfinite(value) for value in measured.as_row().values() if isinstance(value, float))
    assert np.isfinite(measured.values).all()
    assert 0 < measured.sigma_min <= measured.floor


def test_a_dead_network_is_all_zero_and_unresolved():
    model = nn.Sequential(linear(torch.ones(3, 3)), nn.ReLU())
    measured = values(model, -torch.ones(2, 3))
    assert (measured.rank, measured.resolved, measured.sigma_max) == (0, False, 0.0)
    assert measured.condition_number == 1.0  # a lower bound that says nothing
    assert measured.effective_rank == measured.stable_rank == 0.0
    assert 0 < measured.sigma_min <= measured.sigma_gmean < 1e-300


def test_skip_keeps_a_random_matrix_away_from_zero():
    torch.manual_seed(0)
    weight = (2 * torch.rand(200, 200, dtype=F64) - 1) / np.sqrt(200)
    x = torch.randn(1, 200, dtype=F64)
    chain, skip = values(linear(weight), x), values(linear(weight + torch.eye(200)), x)
    # Uniform entries of variance 1/(3n): the largest of A is near 2/√3, quarter-circle law.
    assert chain.sigma_max == pytest.approx(2 / np.sqrt(3), rel=0.05)
    assert chain.sigma_rms == pytest.approx(1 / np.sqrt(3), rel=0.02)
    assert chain.sigma_min < 0.01 < 0.2 < skip.sigma_min


@pytest.mark.parametrize("scale", [1e-30, 1e-5, 3.0, 1e30])
def test_scaling_the_map_scales_the_spectrum(scale):
    weight = torch.randn(6, 6, dtype=F64)
    weight[5] = weight[4]
    one, other = (values(linear(w), torch.randn(2, 6, dtype=F64)) for w in (weight, scale * weight))
    np.testing.assert_allclose(other.values[:10], scale * one.values[:10], rtol=1e-12)
    for name in ("rank", "effective_rank", "stable_rank", "resolved"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-2), name
    # A bound, from the floor: that is measured, with random vectors.
    assert 0.2 < other.condition_number / one.condition_number < 5


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_extreme_scales_do_no_harm(scale):
    weight = torch.randn(4, 4, dtype=F64)
    weight[3] = weight[2]
    measured = values(linear(scale * weight), torch.randn(1, 4, dtype=F64))
    assert measured.rank == 3
    assert 0 < measured.floor < 1e-12 * measured.sigma_max


NAMES = (
    *("conv-batch-norm", "in-place-residual", "residual-mlp-batch", "transformer", "called-thrice"),
    *("tied", "frozen", "keywords", "dropout", "lstm"),
)


@pytest.mark.parametrize("case", [case for case in CASES if case.id in NAMES], ids=lambda case: case.id)
def test_spectra_are_the_singular_values_of_jacobian(case):
    model, x = case.make()
    for name, layers in case.maps.items():
        if name == "network" or layers == ["total"]:
            continue
        matrix = jacobian(model, x, map=name, layer=layers[0])
        measured = spectra(model, x, map=name, layers=layers[0])[layers[0]]
        expected = torch.linalg.svdvals(matrix).numpy()
        np.testing.assert_allclose(measured.values, expected, atol=1e-13 * expected[0], err_msg=name)
        assert matrix.shape == (measured.rows, measured.cols)


def test_sample_mode_has_a_spectrum_per_sample(make):
    model, x = make("mlp")
    measured = spectra(model, x, layers="0", batch_mode="sample")
    assert list(measured) == ["0[0]", "0[1]", "0[2]"]
    for index, matrix in enumerate(jacobian(model, x, map="layer", layer="0", batch_mode="sample")):
        spectrum = measured[f"0[{index}]"]
        assert (spectrum.sample, spectrum.rows, spectrum.cols) == (index, 5, 4)
        np.testing.assert_allclose(spectrum.values, torch.linalg.svdvals(matrix).numpy(), rtol=1e-12)


def smallest_budget(model, x, map, layers, dtype):
    """The least memory that a plan can be made for, by bisection."""
    with measuring(model, x, dtype=dtype) as probed:
        (one,) = probed.maps(map, layers)
        low, high = 0, 2**32
        while high - low > 1:
            middle = (low + high) // 2
            try:
                ExactPlan.of(one, middle)
                high = middle
            except MemoryBudgetError:
                low = middle
    return high


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("map", "layers"), [("tail", "0"), ("layer", "0")])
def test_memory_budget_changes_the_method_and_nothing_else(map, layers, dtype):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 200), nn.Tanh(), nn.Linear(200, 9)).to(dtype)
    x = torch.randn(3, 4, dtype=dtype)
    least = smallest_budget(model, x, map, layers, dtype)
    measured = [values(model, x, map=map, layers=layers, memory_budget=size) for size in (2**30, 2 * least, least)]
    assert len({one.method for one in measured}) > 1
    for one in measured:
        tolerance = 4 * max(one.floor, measured[0].floor)
        np.testing.assert_allclose(one.values, measured[0].values, atol=tolerance, err_msg=one.method)
        assert one.rank == measured[0].rank
    assert measured[-1].peak_bytes <= least
    with pytest.raises(MemoryBudgetError, match=r"exact spectrum needs about .* MiB.*use fewer probe samples"):
        values(model, x, map=map, layers=layers, memory_budget=least - 1)


@pytest.mark.parametrize("method", ["exact", "auto"])
def test_a_kernel_too_large_to_store_has_its_spectrum_from_the_jacobian(method):
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double(), torch.randn(200, 2, dtype=F64)
    whole = values(model, x, map="kernel", layers="total", method=method)
    assert whole.method == "exact: sum of the blocks"
    measured = values(model, x, map="kernel", layers="total", method=method, memory_budget=10**6)
    assert measured.method == "exact: svd"
    np.testing.assert_allclose(measured.values, whole.values, atol=1e-10 * whole.sigma_max)


def test_a_streamed_gram_in_float64_owns_up_to_what_squaring_costs():
    sigma = torch.logspace(0, -12, 10, dtype=F64)
    weight = torch.diag(sigma) @ orthogonal(200)[:10]
    model, x = linear(weight), torch.randn(1, 200, dtype=F64)
    whole = values(model, x)
    streamed = values(model, x, memory_budget=smallest_budget(model, x, "network", None, F64))
    assert whole.resolved
    assert streamed.method == "exact: gram of rows, streamed"
    assert not streamed.resolved
    assert np.abs(streamed.values - whole.values).max() <= streamed.floor < 1e-7
    assert streamed.condition_number < whole.condition_number


def test_memory_budget_may_be_a_float():
    model, x = nn.Linear(20, 10), torch.randn(5, 20)
    least = smallest_budget(model, x, "network", None, torch.float32)
    assert values(model, x, memory_budget=float(least)).method.endswith("streamed")


@pytest.mark.parametrize("solver", ["eigvalsh", "svdvals"])
def test_a_solver_that_fails_is_replaced_and_named(solver, monkeypatch):
    def fail(matrix):
        raise torch.linalg.LinAlgError("no convergence\nsecond line")

    dtype = torch.float32 if solver == "eigvalsh" else F64
    model, x = linear(torch.randn(5, 4, dtype=dtype)), torch.randn(2, 4, dtype=dtype)
    before = values(model, x)
    monkeypatch.setattr(torch.linalg, solver, fail)
    after = values(model, x)
    assert solver in after.note
    assert "no convergence" in after.note
    assert "\n" not in after.note
    np.testing.assert_allclose(after.values, before.values, rtol=1e-6)


def test_not_a_number_in_a_jacobian_is_named():
    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    with pytest.raises(NonFiniteError, match="the Jacobian of the network map of 'network' holds NaN or inf"):
        values(Root(), torch.tensor([[0.0, 1.0]]))
    with pytest.raises(NonFiniteError, match="the Jacobian of the network map of 'network' holds 2 NaN or inf"):
        jacobian(Root(), torch.tensor([[0.0, 1.0]]), map="network")


def test_gram_of_a_float32_jacobian_accumulates_in_float64():
    # In float32 the Gram matrix of these columns would lose 1e-4 squared.
    jacobian = torch.diag(torch.tensor([1.0, 1e-4])) @ torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    measured = engine._from_gram(engine._gram(jacobian), [])
    np.testing.assert_allclose(measured, np.sqrt(2) * np.array([1, 1e-4]), rtol=1e-6)
