"""What rounding does, from a second precision: against the error itself in float32, and reordered sums in float64."""

import math

import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError, UnsupportedModelError
from skip_conditioning.diagnostics.jacobians.rows import dense_jacobian
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.spectrum import jacobian_floor
from skip_conditioning.diagnostics.support.memory import GIB
from skip_conditioning.diagnostics.theory.rounding import Precisions, random_vectors
from tests.diagnostics.theory.chains import D

S = torch.float32


@pytest.mark.parametrize(("dtype", "other"), [(D, S), (S, D)])
def test_each_precision_is_compared_with_the_other(dtype, other):
    result = Precisions.of(dtype)
    assert (result.dtype, result.other) == (dtype, other)
    # float64 rounds 2²⁹ times less than float32, and that is what the difference shows.
    assert (result.share == 4) if dtype is S else (1 < result.share * 2**29 < 100)


@pytest.mark.parametrize("dtype", [None, torch.int64, torch.bfloat16, torch.float16, torch.complex128, "float64"])
def test_other_precisions_are_refused(dtype):
    with pytest.raises(InputError, match=f"checked in torch.float64 or torch.float32; dtype is {dtype!r}"):
        Precisions.of(dtype)


@pytest.mark.parametrize("dtype", [D, S])
def test_error_is_a_share_of_the_difference(dtype):
    precisions, result = Precisions.of(dtype), torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=dtype)
    again = (result + torch.tensor([[0.0, 3.0], [4.0, 0.0]])).to(precisions.other)
    assert precisions.error(result, again) == pytest.approx(5 * precisions.share, rel=1e-6)
    assert precisions.error(result, result.to(precisions.other)) == 0


@pytest.mark.parametrize("dtype", [D, S])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_without_a_second_measurement_it_is_that_share_of_the_norm(dtype, value):
    precisions, result = Precisions.of(dtype), torch.tensor([3.0, 4.0], dtype=dtype)
    again = None if value is None else torch.tensor([3.0, value], dtype=precisions.other)
    assert precisions.error(result, again) == pytest.approx(5 * precisions.share, rel=1e-12)


def test_what_the_other_precision_cannot_do_is_missing_and_other_errors_are_not_hidden():
    def fails(error):
        def measure(dtype):
            raise error(f"in {dtype}")

        return measure

    assert Precisions.of(D).again(lambda dtype: dtype) is S
    assert Precisions.of(S).again(lambda dtype: dtype) is D
    for error in (NonFiniteError, UnsupportedModelError):
        assert Precisions.of(D).again(fails(error)) is None
    for error in (InputError, ZeroDivisionError):
        with pytest.raises(error, match=r"in torch\.float32"):
            Precisions.of(D).again(fails(error))


def test_vectors_are_the_same_at_each_call_and_leave_the_random_stream(nothing_changes):
    with nothing_changes():
        first, second = random_vectors(7), random_vectors(7)
    assert torch.equal(first, second)
    assert first.dtype is D


def measured(model, x, dtype):
    """The network's Jacobian in a precision, and the bound of its rounding."""
    with measuring(model, x) as probed:
        maps = {precision: probed.in_dtype(precision).maps("network")[0] for precision in (S, D)}
        precisions = Precisions.of(dtype)
        bound = precisions.of_map(maps[dtype], maps[precisions.other], GIB)
        return dense_jacobian(maps[dtype], GIB), bound


def drawn(seed, normalised, inputs=4, samples=None):
    torch.manual_seed(seed)
    width, some = (int(torch.randint(1, 6, ())), int(torch.randint(2, 5, ())))
    inner = nn.BatchNorm1d(width) if normalised else nn.Tanh()
    model = nn.Sequential(nn.Linear(inputs, width), inner, nn.Linear(width, 3)).double()
    return model, torch.randn(samples or some, inputs, dtype=D)


def floor(jacobian):
    """What is taken for rounding where it is judged by dimension and norm alone."""
    return jacobian_floor(float(jacobian.norm()), torch.finfo(jacobian.dtype).eps)


@pytest.mark.parametrize("normalised", [False, True])
def test_in_float32_it_is_the_error_itself_up_to_a_factor(normalised):
    shares = []
    for seed in range(15):
        # Both precisions start from the same numbers.
        model, x = drawn(seed, normalised)
        model, x = model.float(), x.float()
        low, bound = measured(model, x, S)
        high, _ = measured(model, x, D)
        error = float((low.double() - high).norm())
        shares.append(bound / error if error else math.inf)
    # From four random vectors: it is to be twice the error, and now and then falls below it.
    assert min(shares) > 0.5
    assert sum(share < 1 for share in shares) <= 3
    assert max(share for share in shares if share < math.inf) < 10


@pytest.mark.parametrize("normalised", [False, True])
def test_in_float64_sums_in_another_order_differ_by_less(normalised):
    shares = []
    for seed in range(20):
        model, x = drawn(seed, normalised, inputs=16, samples=2)
        order = torch.randperm(16)
        plain, bound = measured(model, x, D)
        model[0].weight.data = model[0].weight.data[:, order]
        moved, _ = measured(model, x[:, order], D)
        difference = float((moved.view(6, 2, 16) - plain.view(6, 2, 16)[:, :, order]).norm())
        assert bound < 1e-8 * float(plain.norm()) or normalised
        shares.append(bound / difference if difference else math.inf)
    # As in float32: to be twice the error, and now and then below it. How often the order is seen is the processor's.
    assert min(shares) > 0.5
    assert sum(share < 1 for share in shares) <= 3
    assert sum(share < math.inf for share in shares) >= 10, "the order is seen"


def test_batch_norm_over_two_samples_cancels_digits_that_the_norm_does_not_tell():
    beyond = {S: 0, D: 0}
    for seed in range(20):
        model, x = drawn(seed, True, samples=2)
        model, x = model.float(), x.float()
        low, bound = measured(model, x, S)
        high, bound_of_high = measured(model, x, D)
        error = float((low.double() - high).norm())
        beyond[S] += error > 10 * floor(low)
        beyond[D] += bound_of_high > 10 * floor(high)
        if error > 10 * floor(low):
            assert bound > 5 * floor(low), "it is seen"
    assert min(beyond.values()) > 10, "in most draws"
