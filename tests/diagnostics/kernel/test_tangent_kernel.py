"""The tangent kernel of many network structures in every mode: against plain autograd, and its properties."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from skip_conditioning import tangent_kernel
from skip_conditioning.diagnostics.errors import (
    InputError,
    LayerCallError,
    UnsupportedModelError,
)
from tests.diagnostics.kernel.structures import (
    BY_ID,
    CASES,
    F64,
    Linears,
    Net,
    assert_near,
    autograd_jacobian,
    autograd_kernel,
    make,
    mlp,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_structures_against_autograd(case):
    (model, x), (copy, _) = case.make(), case.make()
    within = 1e-6 if case.id == "mixed-precision-of-parameters" else 1e-11
    measured = tangent_kernel(model, x)
    assert_near(measured.total, autograd_kernel(copy, x), within)
    assert_near(sum(measured.blocks.values()), measured.total)
    layers = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    for name, block in tangent_kernel(model, x, layers=layers).blocks.items():
        assert_near(block, autograd_kernel(case.make()[0], x, name), within)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: torch.compile(nn.DataParallel(model))])
def test_wrappers_are_seen_through(wrap):
    model, x = make("called-thrice")
    measured, expected = tangent_kernel(wrap(model), x), tangent_kernel(model, x)
    assert list(measured.blocks) == list(expected.blocks)
    assert torch.equal(measured.total, expected.total)


IN_PLACE_OF_A_SAMPLE = ("merged-frames", "merged-tokens-the-other-way", "routed-samples", "routed-samples-uneven")
ALONE = [
    case for case in CASES if not case.interact and case.id not in (*IN_PLACE_OF_A_SAMPLE, "one-number-each-squeezed")
]


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.id)
def test_modes_agree_where_samples_do_not_interact(case):
    model, x = case.make()
    batch, sample = (tangent_kernel(model.eval(), x, batch_mode=mode) for mode in ("batch", "sample"))
    assert_near(sample.total, batch.total, 1e-6 if case.id == "mixed-precision-of-parameters" else 1e-10)
    assert sample.blocks.keys() == batch.blocks.keys()


def test_sample_mode_uses_running_statistics(nothing_changes):
    model, x = make("batch-norm")
    model(2 * x + 1)
    model[1].weight.grad = torch.ones(4, dtype=F64)
    with nothing_changes(model, x):
        measured = tangent_kernel(model, x, batch_mode="sample")
    assert_near(measured.total, autograd_kernel(model.eval(), x))
    assert measured.batch_mode == "sample"


@pytest.mark.parametrize("id", ["minus-the-mean", "minus-the-mean-bare", "attention-among-samples"])
def test_sample_mode_refuses_samples_that_interact(id):
    model, x = make(id)
    with pytest.raises(UnsupportedModelError, match=r"do samples interact\? Measure batch_mode=.batch"):
        tangent_kernel(model, x, batch_mode="sample")


REDUCED = ["called-thrice", "batch-norm", "minus-the-mean", "tied-head", "reuse-in-last-output", "dropout"]


@pytest.mark.parametrize(
    ("id", "outputs"),
    [
        *((id, "centred") for id in REDUCED),
        ("called-thrice", "trace"),
        ("minus-the-mean", "trace"),
        ("tied-head", "sum"),
    ],
)
def test_outputs_reduce_the_whole_kernel(outputs, id):
    model, x = make(id)
    whole, measured = tangent_kernel(model, x), tangent_kernel(model, x, outputs=outputs)
    size, each = len(x), len(whole.total) // len(x)
    equation = {"trace": "iojo->ij", "sum": "iojp->ij", "centred": "iojp,oq,pr->iqjr"}[outputs]
    centring = [torch.eye(each, dtype=F64) - 1 / each] * 2 if outputs == "centred" else []
    assert measured.blocks.keys() == whole.blocks.keys()
    assert measured.num_outputs == (each if outputs == "centred" else 1)
    for name in [*whole.blocks, "total"]:
        expected = torch.einsum(equation, whole.block(name).view(size, each, size, each), *centring)
        assert_near(measured.block(name), expected.reshape(measured.total.shape), 1e-10)


class Heads(nn.Module):
    """An output from each of two heads, one of which does more than it seems."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.extra = nn.Linear(4, 1), nn.Linear(4, 1), nn.Parameter(torch.randn(4))

    def forward(self, x):
        second = self.two(x) + (x - x.mean(0)) @ self.two.weight.T.tanh()
        return torch.cat([self.one(x), second * self.extra.sum()], dim=1)


@pytest.mark.parametrize("outputs", ["all", "trace"])
def test_what_only_the_last_output_depends_on(outputs):
    torch.manual_seed(0)
    model, x = Heads().double(), torch.randn(3, 4, dtype=F64)
    measured = tangent_kernel(model, x, outputs=outputs)
    for name in ("one", "two", "extra", "total"):
        expected = autograd_kernel(model, x, name)
        if outputs == "trace":
            expected = torch.einsum("iojo->ij", expected.view(3, 2, 3, 2))
        assert_near(measured.block(name), expected)


CORNERS = [
    ("called-with-other-sizes", "all", (2, 4)),
    ("called-with-other-sizes", "all", (3, 3)),
    ("called-thrice", "trace", (5, 1)),
    ("user-hooks", "centred", (2, 4)),
    ("tied-head", "sum", (3, 3)),
    ("tokens-first-recurrent", "all", (5, 1)),
]


@pytest.mark.parametrize(("id", "outputs", "sizes"), CORNERS)
def test_two_batches_are_a_corner_of_the_kernel_of_both(id, outputs, sizes):
    model, _ = make(id)
    case = BY_ID[id]
    shape = (sum(sizes), *case.shape[1:])
    x = torch.randint(case.tokens, shape) if case.tokens else torch.randn(shape, dtype=F64)
    whole = tangent_kernel(model, x, outputs=outputs)
    measured = tangent_kernel(model, *x.split(sizes), outputs=outputs)
    rows = sizes[0] * whole.num_outputs
    assert not measured.symmetric
    for name in [*whole.blocks, "total"]:
        assert_near(measured.block(name), whole.block(name)[:rows, rows:])


@pytest.mark.parametrize(
    ("id", "size"), [("batch-norm", 5), ("minus-the-mean", 3), ("minus-the-mean", 5), ("minus-the-mean-bare", 5)]
)
def test_two_batches_of_samples_that_interact(id, size):
    model, x = make(id)
    other = torch.randn(size, *x.shape[1:], dtype=F64)
    expected = autograd_jacobian(make(id)[0], x) @ autograd_jacobian(make(id)[0], other).T
    assert_near(tangent_kernel(model, x, other).total, expected)


@pytest.mark.parametrize("size", [2, 5])
def test_two_batches_of_other_shapes(size):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv1d(2, 3, 3), nn.GroupNorm(3, 3), nn.ReLU(), nn.Conv1d(3, 3, 2, groups=3))
    model = nn.Sequential(body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.PReLU(3)).double()
    x, other = torch.randn(2, 2, 9, dtype=F64), torch.randn(size, 2, 6, dtype=F64)
    expected = autograd_jacobian(model, x) @ autograd_jacobian(model, other).T
    assert_near(tangent_kernel(model, x, other).total, expected)
    assert_near(tangent_kernel(model, other, x, batch_mode="sample").total, expected.T)


def test_a_layer_that_only_one_of_two_batches_uses():
    torch.manual_seed(0)
    model = Linears(lambda m, x: m.c(m.a(x) if x.sum() > 0 else m.b(x.tanh()))).double()
    x = torch.rand(3, 4, dtype=F64)
    expected = autograd_jacobian(model, x) @ autograd_jacobian(model, -x).T
    assert_near(tangent_kernel(model, x, -x).total, expected)


EVALUATED = ["called-thrice", "batch-norm", "dropout", "tied-head", "tokens-first", "in-place-activations"]


@pytest.mark.parametrize("id", EVALUATED)
def test_symmetric_and_positive_semidefinite(id):
    model, x = make(id)
    measured = tangent_kernel(model, x)
    for name in [*measured.blocks, "total"]:
        block = measured.block(name)
        assert block.dtype == F64
        assert_near(block, block.T, 1e-14)
        assert torch.linalg.eigvalsh(block)[0] > -1e-13 * block.trace()


@settings(max_examples=10, deadline=None)
@given(
    id=st.sampled_from(["called-thrice", "batch-norm", "tied-head", "tokens-first"]), order=st.permutations(range(4))
)
def test_permuted_samples_permute_rows(id, order):
    case = BY_ID[id]
    model, _ = case.make()
    shape = (4, *case.shape[1:])
    x = torch.randint(case.tokens, shape) if case.tokens else torch.randn(shape, dtype=F64)
    whole, measured = tangent_kernel(model, x).total, tangent_kernel(model, x[order]).total
    each = len(whole) // 4
    expected = whole.view(4, each, 4, each)[order][:, :, order].reshape(whole.shape)
    assert_near(measured, expected)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["batch-norm", "tied-head", "minus-the-mean-bare"]), st.floats(1e-3, 1e3), st.booleans())
def test_scaled_outputs_scale_the_kernel_by_the_square(id, scale, negative):
    scale = -scale if negative else scale
    model, x = make(id)
    measured = tangent_kernel(Net(lambda m, x: scale * m.model(x), model=model), x)
    assert_near(measured.total, scale**2 * tangent_kernel(model, x).total)


@settings(max_examples=10, deadline=None)
@given(
    samples=st.integers(1, 4),
    tokens=st.integers(1, 4),
    width=st.integers(1, 5),
    outputs=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_network_of_tokens(samples, tokens, width, outputs, bias, seed):
    torch.manual_seed(seed)
    layers = nn.Linear(3, width, bias=bias), nn.LayerNorm(width, bias=bias), nn.GELU(), nn.Linear(width, outputs)
    model = nn.Sequential(*layers, Net(lambda m, x: x.prod(1))).double()
    x = torch.randn(samples, tokens, 3, dtype=F64)
    assert_near(tangent_kernel(model, x).total, autograd_kernel(model, x), 1e-10)


def test_layers_by_name_glob_and_total():
    model, x = nn.Sequential(mlp(), mlp()[::2], nn.Linear(3, 2)).double(), torch.randn(3, 4, dtype=F64)
    model[1][0] = nn.Linear(3, 5, dtype=F64)
    named = tangent_kernel(model, x, layers=["0.[02]", "1", "0.0"])
    assert list(named.blocks) == ["0.0", "0.2", "1"]
    assert_near(named.total, sum(named.blocks.values()))
    with_total = tangent_kernel(model, x, layers=["0.0", "total"])
    assert list(with_total.blocks) == ["0.0"]
    assert_near(with_total.total, autograd_kernel(model, x))
    only = tangent_kernel(model, x, layers="total")
    assert not only.blocks
    assert torch.equal(only.total, with_total.total)


def test_parameters_in_two_blocks_count_once_in_the_total():
    model, x = nn.Sequential(mlp(), nn.Linear(3, 2)).double(), torch.randn(3, 4, dtype=F64)
    measured = tangent_kernel(model, x, layers=["0", "0.2"])
    assert_near(measured.total, autograd_kernel(model, x, "0"))
    assert_near(measured.blocks["0.2"], autograd_kernel(model, x, "0.2"))
    model, x = make("shared-parameter")
    measured = tangent_kernel(model, x, layers=["a", "b"])
    weight, biases = (tangent_kernel(model, x, layers="a").total, tangent_kernel(model, x, layers="b").total)
    assert_near(measured.total, weight + biases - autograd_kernel(model, x, "a.weight"))


def test_layers_that_are_never_called_are_left_out_and_named():
    model = Linears(lambda m, x: m.c(x)).double()
    x = torch.randn(3, 4, dtype=F64)
    measured = tangent_kernel(model, x)
    assert list(measured.blocks) == ["c"]
    assert re.search(r"\ba\b.*\bb\b", measured.note)
    assert_near(measured.total, autograd_kernel(model, x))
    for name in "ab":
        with pytest.raises(LayerCallError, match=f"'{name}'"):
            tangent_kernel(model, x, layers=["c", name])


def test_a_layer_used_by_the_second_batch_only_is_not_left_out():
    torch.manual_seed(0)
    model = Linears(lambda m, x: m.c(m.a(x)) if x.sum() > 0 else m.c(m.a(x) + m.b(x))).double()
    x = torch.rand(3, 4, dtype=F64)
    measured = tangent_kernel(model, x, -x)
    assert_near(measured.total, autograd_jacobian(model, x) @ autograd_jacobian(model, -x).T)
    assert_near(sum(measured.blocks.values()), measured.total)


def test_a_dead_layer_has_a_block_of_zeros():
    model = Linears(lambda m, x: m.c(x) + 0 * m.a(x) + m.b(x).detach()).double()
    measured = tangent_kernel(model, torch.randn(3, 4, dtype=F64))
    assert not measured.blocks["a"].any()
    assert not measured.blocks["b"].any()


def test_precision_of_the_measurement_is_asked_for_or_the_models():
    model, x = make("batch-norm")
    model, x = model.float(), x.float()
    single, double = tangent_kernel(model, x), tangent_kernel(model, x, dtype=F64)
    assert (single.dtype, double.dtype) == ("float32", "float64")
    assert single.total.dtype == F64
    assert_near(double.total, autograd_kernel(model.double(), x.double()))
    assert_near(single.total, double.total, 1e-5)


def test_a_wide_body_in_single_precision_and_a_head_in_double():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(50, 300), nn.LayerNorm(300), nn.ReLU(), nn.Linear(300, 100), nn.PReLU())
    model = Net(lambda m, x: m.head(m.body(x.float()).double()), body=body, head=nn.Linear(100, 3, dtype=F64))
    x = torch.randn(5, 50)
    assert_near(tangent_kernel(model, x).total, autograd_kernel(model, x), 1e-5)


def cast_within(m, x):
    """Mixed precision by the model itself."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = m.body(x)
    return hidden.float()


def test_a_model_that_casts_within_its_forward_pass():
    torch.manual_seed(0)
    model, x = Net(cast_within, body=nn.Sequential(*mlp(), nn.ReLU(), nn.Linear(3, 3))), torch.randn(5, 4)
    assert_near(tangent_kernel(model, x).total, autograd_kernel(model, x), 0.03)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_hides_parameters_is_not_taken_for_zero():
    model = Net(lambda m, x: checkpoint(m.body, x.requires_grad_(), use_reentrant=True), body=mlp()).double()
    x = torch.randn(3, 4, dtype=F64)
    rows = []
    for sample, output in itertools.product(range(3), range(3)):
        model.zero_grad()
        model(x.clone())[sample, output].backward()
        rows.append(torch.cat([part.grad.flatten() for part in model.body.parameters()]))
    rows = torch.stack(rows)
    try:
        measured = tangent_kernel(model, x, layers="body").total
    except InputError:  # torch itself cannot differentiate it in part
        return
    assert_near(measured, rows @ rows.T)


def test_twice_the_same_bit_for_bit_whatever_the_callers_streams():
    model, x = make("dropout")
    first = tangent_kernel(model, x).total
    torch.manual_seed(99)
    assert torch.equal(tangent_kernel(model, x, progress=True).total, first)
    with torch.no_grad():
        assert torch.equal(tangent_kernel(model, x).total, first)
