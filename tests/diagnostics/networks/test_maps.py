"""Every map, in float64, against plain autograd on a deep copy."""

import pytest
import torch
from torch import nn

from skip_conditioning import jacobian, spectra, tangent_kernel
from skip_conditioning.diagnostics.errors import UnsupportedModelError
from skip_conditioning.diagnostics.theory.chain_rule import chain_rule
from tests.diagnostics.theory.chains import Forward, seeded, transformer


def assert_close(actual, expected, about):
    """Equal to about rounding, relative to the size of the whole matrix."""
    assert actual.shape == expected.shape, about
    error = (actual - expected).abs().max()
    assert error <= 1e-12 * expected.abs().max(), f"{about}: off by {error:.1e}"


def test_batch_jacobian_is_autograds(case, oracle):
    model, x = case.make()
    for name, layers in case.maps.items():
        for layer in {layers[0], layers[-1]} if layers else [None]:
            measured = jacobian(model, x, map=name, layer=layer)
            assert_close(measured, oracle(model, x, name, layer), f"{name} of {layer}")


@pytest.mark.parametrize(
    ("name", "map", "layer"),
    [
        ("mlp", "layer", "2"),
        ("mlp", "network", None),
        ("conv-batch-norm", "layer", "1"),
        ("conv-batch-norm", "tail", "0"),
        ("residual-mlp-batch", "kernel", "total"),
        ("residual-mlp-batch", "param", "blocks.1"),
        ("dropout", "network", None),
        ("transformer", "layer", "0"),
        ("embedding", "tail", "0"),
    ],
)
def test_sample_jacobian_is_that_of_each_sample_in_eval_mode(name, map, layer, make, oracle):
    model, x = make(name)
    measured = jacobian(model, x, map=map, layer=layer, batch_mode="sample")
    assert_close(measured, oracle(model, x, map, layer, "sample"), f"{map} of {layer}")


def test_kernel_blocks_sum_to_the_whole(make):
    model, x = make("residual-mlp-weight")
    blocks = [name for name, _ in model.named_children()]
    parts = [jacobian(model, x, map="kernel", layer=layer) for layer in blocks]
    whole = jacobian(model, x, map="kernel")
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(whole, whole.T)
    assert torch.linalg.eigvalsh(whole).min() > -1e-12 * torch.linalg.eigvalsh(whole).max()


@pytest.mark.parametrize("name", ["in-place-residual", "dropout"])
def test_chain_rule_holds_with_batch_norm_and_with_dropout(name, make):
    model, x = make(name)
    last = [layer for layer, _ in model.named_children()][-1]
    product = jacobian(model, x, map="layer", layer=last)
    for layer in reversed([layer for layer, _ in model.named_children()][:-1]):
        product = product @ jacobian(model, x, map="layer", layer=layer)
    assert_close(product, jacobian(model, x, map="network"), "product of the layers")


def test_dropout_in_attention_has_one_mask_for_autograd_and_for_torch_func():
    model, x = seeded(lambda: transformer(0.1), (2, 3, 8))
    assert model.training
    assert_close(tangent_kernel(model, x, layers="total").total, jacobian(model, x, map="kernel"), "kernel")
    measured = chain_rule(model, x)
    assert [one.layer for one in measured] == ["0", "1", "2", ""]
    assert {one.verdict for one in measured} == {"holds"}, [str(one) for one in measured]
    assert all(float(one.note.split()[-1]) > 1e6 * one.error for one in measured)


@pytest.mark.parametrize("drop", [nn.Dropout, nn.AlphaDropout, nn.Dropout1d])
def test_dropout_behind_a_transpose_has_the_mask_of_a_row_major_tensor(drop, oracle):
    parts = {"first": nn.Linear(6, 6), "drop": drop(0.5), "last": nn.Linear(4, 3)}
    plain = lambda m, x: m.last(m.drop(m.first(x).transpose(1, 2)))  # noqa: E731
    copied = lambda m, x: m.last(m.drop(m.first(x).transpose(1, 2).contiguous()))  # noqa: E731
    (model, x), (same, _) = (seeded(lambda f=f: Forward(f, **parts), (2, 4, 6)) for f in (plain, copied))
    for name, layer in [("tail", "first"), ("network", None), ("kernel", "total")]:
        assert_close(jacobian(model, x, map=name, layer=layer), oracle(same, x, name, layer), name)
    assert_close(tangent_kernel(model, x, layers="total").total, oracle(same, x, "kernel", "total"), "kernel")


def test_chain_rule_links_tail_param_and_kernel(make):
    model, x = make("conv-batch-norm")
    product = jacobian(model, x, map="tail", layer="1") @ jacobian(model, x, map="param", layer="1")
    assert_close(product @ product.T, jacobian(model, x, map="kernel", layer="1"), "kernel share")


def test_permuting_the_probe_permutes_rows_and_leaves_the_spectrum(make):
    model, x = make("conv-batch-norm")
    order = torch.tensor([2, 0, 3, 1])
    rows = jacobian(model, x, map="tail", layer="0").view(4, 3, 4, -1)
    permuted = jacobian(model, x[order], map="tail", layer="0").view(4, 3, 4, -1)
    assert_close(permuted, rows[order][:, :, order], "permuted Jacobian")
    before, after = (spectra(model, probe, map="tail", layers="0")["0"].values for probe in (x, x[order]))
    assert abs(before - after).max() <= 1e-12 * before[0]


def test_a_probe_in_any_layout_gives_the_same(make, oracle):
    model, x = make("conv-batch-norm")
    strided = x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    assert not strided.is_contiguous()
    assert_close(jacobian(model, strided, map="network"), oracle(model, x, "network", None), "network")
    assert_close(
        jacobian(model, strided.requires_grad_(), map="tail", layer="0"), oracle(model, x, "tail", "0"), "tail"
    )


def test_output_may_have_no_or_many_dimensions():
    class Energy(nn.Module):
        def forward(self, x):
            return x.square().sum() / 2

    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(jacobian(Energy(), x, map="network"), x.reshape(1, 6))
    assert jacobian(nn.Conv2d(1, 2, 2).double(), x.view(1, 1, 2, 3), map="network").shape == (4, 6)


def test_what_the_model_cuts_off_is_zero():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            with torch.no_grad():
                x = self.first(x)
            return self.last(x)

    measured = spectra(Cut(), torch.randn(2, 3), map="kernel", layers=["first", "last"])
    assert measured["first"].rank == 0
    assert not measured["first"].resolved
    assert measured["last"].rank == 4


def test_object_with_logits_and_named_tuple():
    class Output:
        def __init__(self, hidden, logits):
            self.hidden, self.logits = hidden, logits

    class Wrapped(nn.Sequential):
        def forward(self, x):
            return Output(x, super().forward(x))

    x = torch.randn(2, 3, dtype=torch.float64)
    model = Wrapped(nn.Linear(3, 2, bias=False).double())
    assert torch.equal(jacobian(model, x, map="network")[:2, :3], model[0].weight)


def test_parameters_of_mixed_precision_keep_their_own():
    model = nn.Sequential(nn.Linear(3, 3).bfloat16(), nn.LayerNorm(3).bfloat16(), nn.Linear(3, 2).bfloat16())
    model[1].float()
    x = torch.randn(2, 3, dtype=torch.bfloat16)
    model[1].register_forward_pre_hook(lambda module, args: (args[0].float(),))
    model[2].register_forward_pre_hook(lambda module, args: (args[0].bfloat16(),))
    measured = jacobian(model, x, map="kernel").double()
    for handle in (*model[1]._forward_pre_hooks, *model[2]._forward_pre_hooks):
        model[1]._forward_pre_hooks.pop(handle, None), model[2]._forward_pre_hooks.pop(handle, None)
    exact = jacobian(model.double(), x.double(), map="kernel")
    assert (measured - exact).norm() < 0.05 * exact.norm()


def test_a_result_without_a_derivative_is_refused():
    class Classes(nn.Linear):
        def forward(self, x):
            return super().forward(x).argmax(-1)

    with pytest.raises(UnsupportedModelError, match="int64; say which"):
        spectra(Classes(3, 2), torch.randn(2, 3), map="network")
    with pytest.raises(UnsupportedModelError, match="complex64"):
        spectra(nn.Identity(), torch.randn(2, 3, dtype=torch.complex64), map="network")


def test_default_layers_name_every_call_of_a_shared_block(make):
    model, x = make("called-thrice")
    assert list(spectra(model, x)) == ["cell#1", "cell#2", "cell#3", "head"]
    assert list(spectra(model, x, map="kernel")) == ["cell", "head", "scale", "total"]
