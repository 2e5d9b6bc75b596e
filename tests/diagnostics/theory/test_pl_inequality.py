"""The PŁ chain against dense Jacobians by plain autograd, closed forms, and false chains that are to be found out."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from skip_conditioning import diagnostics, tangent_kernel
from skip_conditioning.diagnostics.errors import InputError, MemoryBudgetError, NonFiniteError
from skip_conditioning.diagnostics.kernel.result import contrasts
from skip_conditioning.diagnostics.loss.costs import CrossEntropy, MeanSquare
from skip_conditioning.diagnostics.theory.pl_inequality import pl_chain

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 2, 1])
REAL = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
NAMES = ["gradient identity", "PŁ floor", "PŁ floor, centred", "PŁ ceiling", "cost gradient"]


def network(*last, width=8, inner=nn.Tanh, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), inner(), nn.Linear(width, 3), *last).double()


def loss_of(logits, y):
    return mse_loss(logits, y.view_as(logits)) if y.is_floating_point() else cross_entropy(logits, y)


def dense(model, x, y):
    """Loss, ∇ℓ, ∇c and DF of a copy, by plain autograd."""
    model = copy.deepcopy(model).double()
    weights = [one for one in model.parameters() if one.requires_grad]
    logits = model(x.double() if x.is_floating_point() else x)
    loss = loss_of(logits, y)
    slope, *gradient = torch.autograd.grad(loss, [logits, *weights], retain_graph=True)
    rows = [torch.autograd.grad(entry, weights, retain_graph=True) for entry in logits.flatten()]
    flat = [torch.cat([part.flatten() for part in row]) for row in rows]
    return loss.detach(), torch.cat([part.flatten() for part in gradient]), slope.flatten(), torch.stack(flat)


def verdicts(chain):
    return {one.name: one.verdict for one in chain.statements}


@pytest.mark.parametrize("y", [Y, REAL], ids=["cross-entropy", "mean square"])
@pytest.mark.parametrize("last", [(), (nn.BatchNorm1d(3),)], ids=["plain", "batch norm"])
def test_every_number_is_that_of_the_dense_jacobian(y, last):
    model = network(*last)
    model[0].bias.requires_grad_(False)
    loss, gradient, slope, J = dense(model, X, y)
    measured = pl_chain(model, X, y)
    K = J @ J.T
    assert measured.loss == pytest.approx(loss.item(), rel=1e-12)
    assert measured.grad_squared == pytest.approx(float(gradient @ gradient), rel=1e-10)
    assert measured.kernel_squared == pytest.approx(float(slope @ K @ slope), rel=1e-10)
    assert measured.cost_grad_squared == pytest.approx(float(slope @ slope), rel=1e-10)
    assert measured.rayleigh == pytest.approx(float(gradient @ gradient / (slope @ slope)), rel=1e-10)
    values = torch.linalg.svdvals(J) ** 2
    assert measured.lambda_max == pytest.approx(values[0].item(), rel=1e-10)
    assert measured.lambda_min == pytest.approx(values[-1].item(), rel=1e-6, abs=measured.floor)
    assert measured.pl_floor == measured.lambda_min * measured.cost_grad_squared
    assert measured.pl_ceiling == measured.lambda_max * measured.cost_grad_squared
    if y is REAL:
        assert (measured.lambda_min_centred, measured.pl_floor_centred) == (None, None)
        assert measured.cost == MeanSquare(3, 3)
        assert [one.name for one in measured.statements] == [name for name in NAMES if name != "PŁ floor, centred"]
    else:
        basis = torch.block_diag(*[contrasts(3)] * 3)
        smallest = torch.linalg.svdvals(basis.T @ J)[-1].item() ** 2
        assert measured.lambda_min_centred == pytest.approx(smallest, rel=1e-6, abs=measured.floor)
        assert measured.cost == CrossEntropy(3, 3)
        assert [one.name for one in measured.statements] == NAMES
    assert measured.verdict == "holds"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 12), st.integers(2, 4), st.booleans(), st.booleans(), st.floats(-3, 1),
    st.sampled_from([nn.Tanh, nn.ReLU, nn.Identity]),
)  # fmt: skip
def test_no_link_breaks_whatever_the_network_and_the_data(seed, width, samples, real, normalised, size, inner):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), *[nn.BatchNorm1d(width)] * normalised, inner(), nn.Linear(width, 3))
    for parameter in model.parameters():
        parameter.data *= 10 ** (2 * size * torch.rand(()).item())
    x = torch.randn(samples, 4, dtype=torch.float64) * 10**size
    y = torch.randn(samples, 3) if real else torch.randint(3, (samples,))
    measured = pl_chain(model, x.float(), y)
    assert "violated" not in verdicts(measured).values(), [str(one) for one in measured.statements]
    by_name = verdicts(measured)
    if measured.cost_grad_squared > 1e-20:
        assert by_name["gradient identity"] == by_name["PŁ ceiling"] == by_name["cost gradient"] == "holds"
        assert (by_name["PŁ floor"] == "holds") == (measured.lambda_min > measured.floor)
        if not real:
            assert (by_name["PŁ floor, centred"] == "holds") == (measured.lambda_min_centred > measured.floor)


def test_batch_norm_of_nearly_equal_samples_makes_gram_matrices_cancel(monkeypatch):
    def violated(samples, gap):
        measured = []
        for seed in range(10):
            torch.manual_seed(seed)
            blocks = [(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(3)]
            model = nn.Sequential(*[layer for block in blocks for layer in block], nn.Linear(4, 3)).double()
            x = X[:1] + gap * torch.randn(samples, 4, dtype=torch.float64)
            measured.append(pl_chain(model, x, Y[:samples]).verdict.startswith("violated"))
        return sum(measured)

    assert [violated(samples, gap) for samples in (2, 3) for gap in (1e-2, 1e-4, 1e-6)] == [0] * 6
    monkeypatch.setattr(diagnostics.theory.rounding, "_GRAM_UNITS", 0.0)
    assert violated(3, 1e-4) > 0


@pytest.mark.parametrize("y", [Y, REAL], ids=["cross-entropy", "mean square"])
def test_a_reversed_chain_is_a_violation(y):
    measured = pl_chain(network(), X, y)
    low, high = measured.rayleigh * (1 - 1e-9), measured.rayleigh * (1 + 1e-9)
    falsified = {
        "PŁ floor": {"lambda_min": high},
        "PŁ ceiling": {"lambda_max": low},
        "gradient identity": {"kernel_squared": measured.kernel_squared * (1 + 1e-9)},
    }
    if y is Y:
        falsified["PŁ floor, centred"] = {"lambda_min_centred": high}
    else:
        falsified["cost gradient"] = {"loss": measured.loss * (1 + 1e-9)}
    for name, changed in falsified.items():
        broken = replace(measured, **changed)
        assert broken.verdict == f"violated: {name}"
    assert replace(measured, lambda_min=low, lambda_max=high).verdict == "holds", "a bound that is reached holds"
    assert replace(measured, grad_squared=measured.pl_ceiling * (1 + 1e-9)).verdict.startswith(
        "violated: gradient identity"
    )


def test_of_one_sample_and_two_classes_the_loss_gives_the_gradient():
    """``|∇CE|² = 2 (1 − e^{−CE})²``, the case of equality."""
    measured = pl_chain(network(nn.Linear(3, 2)), X[:1], Y[:1])
    assert measured.cost_grad_squared == pytest.approx(2 * math.expm1(-measured.loss) ** 2, rel=1e-13)
    assert measured.verdict == "holds"
    assert replace(measured, loss=measured.loss * (1 + 1e-9)).verdict == "violated: cost gradient"


@pytest.mark.parametrize("left_out", ["0", "2"])
def test_a_kernel_without_one_of_the_layers_is_a_violation(monkeypatch, left_out):
    def incomplete(model, x, *, layers, **options):
        kept = [layer for layer in ("0", "2") if layer != left_out]
        return tangent_kernel(model, x, layers=kept, **options)

    monkeypatch.setattr(diagnostics.theory.pl_inequality, "tangent_kernel", incomplete)
    assert "gradient identity" in pl_chain(network(), X, Y).verdict.removeprefix("violated: ").split(", ")


def test_an_orthogonal_linear_network_reaches_floor_and_ceiling():
    """``F = W X`` with ``X`` orthonormal: ``K = I``, and with it scaled by a, ``K = a²``."""
    for scale in (1.0, 3.0):
        model = nn.Linear(4, 3, bias=False).double()
        x = scale * torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q[:3]
        for y in (Y, REAL):
            measured = pl_chain(model, x, y)
            for bound in (measured.pl_floor, measured.pl_ceiling, measured.pl_floor_centred or measured.pl_floor):
                assert bound == pytest.approx(measured.grad_squared, rel=1e-12)
            assert measured.rayleigh == pytest.approx(scale**2, rel=1e-12)
            assert measured.verdict == "holds"


def test_two_orthogonal_layers_reach_both_too():
    """``F = W₂ W₁ X``, all orthogonal: ``K = XᵀX ⊗ W₂W₂ᵀ + (W₁X)ᵀW₁X ⊗ I = 2 I``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    for layer in model:
        nn.init.orthogonal_(layer.weight)
    measured = pl_chain(model, torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q, REAL)
    assert (measured.lambda_min, measured.lambda_max) == pytest.approx((2.0, 2.0), rel=1e-12)
    assert measured.pl_floor == pytest.approx(measured.grad_squared, rel=1e-12)


def test_a_vacuous_floor_says_why():
    few = pl_chain(network(width=1), X.repeat(2, 1) + 0.1 * torch.arange(6)[:, None], Y.repeat(2))
    assert "PŁ floor (11 parameters, 18 outputs)" in few.verdict
    assert verdicts(few)["PŁ floor, centred"] == "vacuous"  # 12 contrasts
    assert "PŁ floor, centred (11 parameters, 12 contrasts of outputs)" in few.verdict
    normalised = network(nn.BatchNorm1d(3, affine=False), width=20)
    cause = "the outputs sum to a constant over the samples"
    assert pl_chain(normalised, X, Y).verdict == f"vacuous: PŁ floor ({cause}), PŁ floor, centred ({cause})"
    centred = network(nn.LayerNorm(3, elementwise_affine=False), width=20)
    causes = {one.name: one.cause for one in pl_chain(centred, X, REAL).statements}
    assert causes["PŁ floor"] == "the outputs of each sample sum to a constant"
    twice = pl_chain(network(width=20), X[[0, 0, 1]], Y)
    assert "PŁ floor (λ(DF) is under the rounding of" in twice.verdict
    assert twice.lambda_min <= twice.floor


def test_a_constant_sum_of_outputs_leaves_the_contrasts():
    class Centre(nn.Module):
        def forward(self, x):
            return x - x.mean(1, keepdim=True)

    measured = pl_chain(network(Centre(), width=20), X, Y)
    assert verdicts(measured)["PŁ floor, centred"] == "holds"
    assert measured.verdict == "vacuous: PŁ floor (the outputs of each sample sum to a constant)"


def test_at_a_minimum_all_is_vacuous_but_the_cost():
    model = network()
    measured = pl_chain(model, X, model(X).detach())
    assert math.isnan(measured.rayleigh)
    assert set(verdicts(measured).values()) == {"vacuous", "holds"}
    assert [name for name, verdict in verdicts(measured).items() if verdict == "holds"] == ["cost gradient"]


class Near(nn.Module):
    """Outputs that miss a target of zero by next to nothing: ``F = δ + 3θ`` at ``θ = 0``, so that ``K = 9``."""

    def __init__(self, delta):
        super().__init__()
        self.theta, self.delta = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64)), delta

    def forward(self, x):
        return self.delta + 3 * self.theta + 0 * x


@pytest.mark.parametrize("delta", [1e-100, 1e-200, 1e-300])
def test_gradients_of_late_training_keep_their_quotient(delta):
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    measured = pl_chain(Near(delta), zeros, zeros)
    assert measured.rayleigh == pytest.approx(9, rel=1e-12)
    assert measured.verdict.startswith(
        "holds" if delta == 1e-100 else "vacuous: gradient identity (|∇c|² is 0 in float64)"
    )


@pytest.mark.parametrize("margin", [5.0, 20.0, 36.0, 60.0, 500.0])
def test_confident_classifiers_break_no_link(margin):
    """Toward the optimum at infinity the gradient of softmax is centred to the rounding of 1/N only."""
    model = network(width=20)
    with torch.no_grad():
        model[2].weight *= 1e-3
        model[2].bias.copy_(torch.tensor([margin, 0.0, 0.3]))
    measured = pl_chain(model, X, torch.zeros(3, dtype=torch.long))
    assert "violated" not in verdicts(measured).values(), [str(one) for one in measured.statements]
    if margin < 30:
        assert measured.verdict == "holds"
    if margin > 50:
        assert verdicts(measured)["PŁ floor, centred"] == verdicts(measured)["cost gradient"] == "vacuous"


@pytest.mark.parametrize("layout", ["classes second", "classes last"])
def test_contrasts_are_taken_for_every_prediction(layout):
    torch.manual_seed(0)
    y = torch.randint(3, (2, 2))
    if layout == "classes second":
        model, x = nn.Conv1d(4, 3, 1), torch.randn(2, 4, 2)
        J = dense(model, x, y)[3].view(2, 3, 2, -1).movedim(1, 2).flatten(0, 2)
    else:
        model, x = nn.Linear(4, 3), torch.randn(2, 2, 4)
        J = dense(model, x.flatten(0, 1), y.flatten())[3]
    measured = pl_chain(model, x, y)
    basis = torch.block_diag(*[contrasts(3)] * 4)
    assert measured.lambda_min_centred == pytest.approx(torch.linalg.svdvals(basis.T @ J)[-1].item() ** 2, rel=1e-6)
    assert measured.cost == CrossEntropy(4, 3)
    assert measured.verdict == "holds"


@pytest.mark.parametrize("y", [Y, REAL], ids=["cross-entropy", "mean square"])
def test_a_float32_model_is_measured_in_float64_and_left_as_it_is(y, nothing_changes):
    model = network(nn.BatchNorm1d(3), nn.Dropout(0.3)).float()
    x = X.float()
    with nothing_changes(model, x):
        measured = pl_chain(model, x, y)
    assert measured.eps == torch.finfo(torch.float64).eps
    assert abs(measured.grad_squared - measured.kernel_squared) < 1e-12 * measured.grad_squared
    rough = pl_chain(model, x, y, dtype=None)
    assert rough.eps == torch.finfo(torch.float32).eps
    assert rough.floor > 1e3 * measured.floor
    assert rough.grad_squared == pytest.approx(measured.grad_squared, rel=1e-4)
    assert "violated" not in verdicts(rough).values()


def test_the_memory_budget():
    with pytest.raises(MemoryBudgetError, match=r"the tangent kernel, 9×9, .*smaller probe or a larger memory_budget"):
        pl_chain(network(), X, Y, memory_budget=1000)
    assert pl_chain(network(), X, Y, memory_budget=8 * 6 * 81).verdict == "holds"


def test_bad_input():
    with pytest.raises(InputError, match="do not fit"):
        pl_chain(network(), X, Y[:2])
    with pytest.raises(InputError, match="a single class is always zero"):
        pl_chain(network(nn.Linear(3, 1)), X, torch.zeros(3, dtype=torch.long))
    with pytest.raises(NonFiniteError, match="gradient of the loss in the outputs holds"):
        pl_chain(network(), X, REAL * math.nan)


def test_samples_that_cross_entropy_passes_over_do_not_count():
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3).double(), torch.randn(4, 6, dtype=torch.float64)
    measured = pl_chain(model, x, torch.tensor([0, -100, 2, -100]))
    alone = pl_chain(model, x[::2], torch.tensor([0, 2]))
    assert measured.cost == alone.cost
    assert measured.grad_squared == pytest.approx(alone.grad_squared, rel=1e-12)
    assert all(one.verdict != "violated" for one in measured.statements)
    with pytest.raises(InputError, match="passes over"):
        pl_chain(model, x, torch.full((4,), -100))


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_a_loss_beyond_squares_is_vacuous_or_holds(size):
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3).double(), torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    measured = pl_chain(model, x, torch.full((4, 3), size, dtype=torch.float64))
    assert {one.verdict for one in measured.statements} <= {"holds", "vacuous"}


@pytest.mark.parametrize("dtype", ["float64", torch.int32])
def test_a_precision_without_derivatives_is_refused(dtype):
    with pytest.raises(InputError, match="dtype must be a floating"):
        pl_chain(nn.Linear(6, 3), torch.randn(4, 6), torch.tensor([0, 1, 2, 0]), dtype=dtype)
