"""What a measured tangent kernel says: blocks, spectra, and the speed of training along a gradient."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skip_conditioning import TangentKernel, tangent_kernel
from skip_conditioning.diagnostics.errors import InputError, NonFiniteError

F64 = torch.float64


def kernel(seed=0, samples=3, **options):
    """Of a small network with three outputs."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return tangent_kernel(model, torch.randn(samples, 4, dtype=F64), **options)


def of_matrix(matrix, **options):
    """A kernel that holds a given matrix."""
    return dataclasses.replace(kernel(), blocks={}, total=matrix, **options)


@pytest.mark.parametrize("outputs", ["all", "trace", "sum"])
@pytest.mark.parametrize("name", ["0", "2", "total"])
def test_spectrum_is_that_of_the_block(outputs, name):
    measured = kernel(outputs=outputs)
    spectrum = measured.spectrum(name)
    expected = np.linalg.eigvalsh(measured.block(name).numpy())[::-1]
    np.testing.assert_allclose(spectrum.values, expected, atol=1e-13 * expected[0])
    assert (spectrum.map, spectrum.layer, spectrum.batch_mode, spectrum.dtype) == ("kernel", name, "batch", "float64")
    assert spectrum.rows == spectrum.cols == len(measured.block(name))
    assert measured.methods.get(name, "sum of the blocks") in spectrum.method


def test_condition_number_is_that_of_the_whole():
    measured = kernel()
    values = np.linalg.eigvalsh(measured.total.numpy())
    assert measured.condition_number == measured.spectrum().condition_number
    assert measured.condition_number == pytest.approx(values[-1] / values[0], rel=1e-9)
    assert measured.spectrum().resolved


def orthonormal_contrasts(samples, outputs):
    """Some orthonormal basis of the vectors whose entries sum to zero for every sample, by QR."""
    random = torch.randn(outputs, outputs, dtype=F64, generator=torch.Generator().manual_seed(0))
    random[:, 0] = 1
    return torch.kron(torch.eye(samples, dtype=F64), torch.linalg.qr(random).Q[:, 1:].contiguous())


@pytest.mark.parametrize("name", ["0", "2", "total"])
def test_centred_spectrum_is_that_on_the_contrasts(name):
    whole, measured = kernel(), kernel(outputs="centred")
    basis = orthonormal_contrasts(3, 3)
    expected = np.linalg.eigvalsh((basis.T @ whole.block(name) @ basis).numpy())[::-1]
    spectrum = measured.spectrum(name)
    np.testing.assert_allclose(spectrum.values, expected, atol=1e-13 * expected[0])
    assert spectrum.rows == 6
    by_output = measured.block(name).view(3, 3, 3, 3)
    torch.testing.assert_close(by_output.sum(1), torch.zeros(3, 3, 3, dtype=F64), rtol=0, atol=1e-13)
    torch.testing.assert_close(by_output.sum(3), torch.zeros(3, 3, 3, dtype=F64), rtol=0, atol=1e-13)


def test_centred_spectrum_of_a_softmax_classifier_has_no_spurious_zeros():
    assert kernel(outputs="centred").spectrum().resolved
    model = nn.Linear(9, 4, bias=False).double()
    x = torch.linalg.qr(torch.randn(9, 9, dtype=F64)).Q[:3]
    spectrum = tangent_kernel(model, x, outputs="centred").spectrum()
    np.testing.assert_allclose(spectrum.values, np.ones(9), rtol=1e-13)
    assert spectrum.condition_number == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("outputs", ["all", "trace", "sum", "centred"])
def test_parameters_bound_the_rank(outputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4).requires_grad_(False), nn.Tanh(), nn.PReLU(1)).double()
    measured = tangent_kernel(model, -torch.rand(5, 2, dtype=F64), outputs=outputs)
    basis = orthonormal_contrasts(5, 4) if outputs == "centred" else torch.eye(len(measured.total), dtype=F64)
    expected = np.linalg.eigvalsh((basis.T @ measured.total @ basis).numpy())[::-1]
    np.testing.assert_allclose(measured.spectrum().values, expected, atol=1e-13 * expected[0])


def test_a_rank_deficient_kernel_is_unresolved_and_its_condition_number_a_bound():
    model = nn.Linear(2, 3).double()
    measured = tangent_kernel(model, torch.randn(5, 2, dtype=F64))
    spectrum = measured.spectrum()
    assert spectrum.rank == 9
    assert not spectrum.resolved
    assert np.isfinite(measured.condition_number)
    assert measured.condition_number > 1e10


def test_single_precision_raises_the_floor():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(3, 4)
    single, double = (tangent_kernel(model, x, dtype=dtype).spectrum() for dtype in (None, F64))
    assert single.floor > 1e3 * double.floor
    np.testing.assert_allclose(single.values, double.values, atol=single.floor + 1e-6 * double.values[0])


def test_a_kernel_of_zeros():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).double()
    model[0].bias.data.fill_(-9)
    measured = tangent_kernel(model, torch.rand(3, 2, dtype=F64))
    spectrum = measured.spectrum()
    assert (spectrum.rank, spectrum.resolved, spectrum.sigma_max) == (0, False, 0.0)
    assert measured.rayleigh(torch.ones(3, 3)) == 0.0


def test_rayleigh_by_hand():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 5.0]], dtype=F64)
    measured = of_matrix(matrix, num_outputs=1)
    assert measured.rayleigh(torch.tensor([1.0, 0.0])) == 2.0
    assert measured.rayleigh(torch.tensor([[1.0], [-2.0]])) == pytest.approx((2 - 4 + 20) / 5)
    assert measured.rayleigh(torch.tensor([3, 0])) == 2.0
    assert measured.rayleigh(torch.tensor([1e-30, 1e-30])) == pytest.approx(4.5)
    assert measured.rayleigh(torch.tensor([1e200, 0.0], dtype=F64)) == 2.0
    assert np.isnan(measured.rayleigh(torch.zeros(2)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(1e-12, 1e12))
def test_rayleigh_lies_within_the_spectrum_and_has_no_scale(seed, scale):
    measured = kernel()
    gradient = torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
    for name in ("0", "total"):
        value = measured.rayleigh(gradient, name)
        assert measured.rayleigh(scale * gradient, name) == pytest.approx(value, rel=1e-12)
        values = measured.spectrum(name).values
        assert values[-1] * (1 - 1e-12) <= value <= values[0] * (1 + 1e-12)


@pytest.mark.parametrize("batch_mode", ["batch", "sample"])
def test_rayleigh_is_the_rate_of_gradient_descent(batch_mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(5, 4, dtype=F64), torch.tensor([0, 1, 2, 0, 1])
    logits = model(x)
    loss = nn.functional.cross_entropy(logits, y)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    felt = tangent_kernel(model, x, batch_mode=batch_mode).rayleigh(gradient)
    steps = torch.autograd.grad(loss, model.parameters())
    assert felt * float(gradient.square().sum()) == pytest.approx(sum(float(step.square().sum()) for step in steps))


@pytest.mark.parametrize("bad", [torch.ones(8), torch.ones(3, 4), torch.ones(()), [1.0] * 9, None])
def test_gradients_of_another_size_are_refused(bad):
    with pytest.raises(InputError, match="must have 9 entries, one for each row of the kernel; it is"):
        kernel().rayleigh(bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_refused(bad):
    gradient = torch.ones(3, 3)
    gradient[1, 1] = bad
    with pytest.raises(NonFiniteError, match="the gradient holds 1 NaN"):
        kernel().rayleigh(gradient)


def test_blocks_by_name_and_near_matches():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("stem", nn.Linear(4, 4))
    model.add_module("head", nn.Linear(4, 2))
    measured = tangent_kernel(model.double(), torch.randn(3, 4, dtype=F64))
    assert list(measured.blocks) == ["stem", "head"]
    assert measured.block() is measured.block("total") is measured.total
    assert measured.block("stem") is measured.blocks["stem"]
    for method in (measured.block, measured.spectrum, lambda name: measured.rayleigh(torch.ones(6), name)):
        with pytest.raises(InputError, match=r"no block 'haed'; there are stem, head, total\. Did you mean 'head'"):
            method("haed")


@pytest.mark.parametrize("samples", [3, 5])
def test_a_kernel_between_two_batches_has_no_spectrum(samples):
    measured = kernel(x2=torch.randn(samples, 4, dtype=F64))
    assert not measured.symmetric
    assert measured.total.shape == (9, 3 * samples)
    for refused in (measured.spectrum, lambda: measured.condition_number, lambda: measured.rayleigh(torch.ones(3, 3))):
        with pytest.raises(InputError, match="between two batches has no spectrum; leave x2 out"):
            refused()


def test_what_a_result_tells_about_itself():
    measured = kernel(outputs="trace", batch_mode="sample")
    assert isinstance(measured, TangentKernel)
    assert (measured.outputs, measured.batch_mode, measured.num_outputs, measured.dtype) == (
        "trace",
        "sample",
        1,
        "float64",
    )
    assert measured.methods.keys() == measured.blocks.keys() == {"0", "2"}
    assert measured.num_parameters == {"0": 40, "2": 27, "total": 67}
    assert measured.seconds > 0
    assert measured.peak_bytes >= 8 * measured.total.numel()
    assert measured.note == ""
    assert "tensor(" not in repr(measured)


def test_a_note_says_how_outputs_were_flattened():
    model, x = nn.Linear(4, 2).double(), torch.randn(3, 5, 4, dtype=F64)
    measured = tangent_kernel(model, x)
    assert measured.num_outputs == 10
    assert "(3, 5, 2)" in measured.note
    assert "(3, 5, 2)" in measured.spectrum().note


def test_notes_tell_what_a_reader_would_not_guess():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 6), nn.Unflatten(1, (2, 3))).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert tangent_kernel(model, x).note == "outputs of shape (5, 2, 3) taken as (5, 6)"
    assert (
        "running statistics, although the model is in train mode" in tangent_kernel(model, x, batch_mode="sample").note
    )
    model[0].requires_grad_(False)
    measured = tangent_kernel(model.eval(), x, batch_mode="sample")
    assert measured.note == "frozen, so no part of it: 0.weight, 0.bias; outputs of shape (5, 2, 3) taken as (5, 6)"
    assert measured.spectrum().note == f"{measured.note}; floor assumed from the precision"
