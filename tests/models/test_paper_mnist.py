"""The MNIST network against docs/paper.md §3, written out by hand with torch.nn.functional."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.func import functional_call, vjp, vmap

from skip_conditioning.models import build_model

ARMS = ["chain", "residual", "modified"]


def norm_relu(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, p[f"{name}.weight"], p[f"{name}.bias"], training=True))


def convolve(x: Tensor, p: dict[str, Tensor], name: str, **options: int) -> Tensor:
    return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **options)


def reference(arm: str, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network's logits in train mode, from its parameters."""
    x = F.avg_pool2d(convolve(x, p, "stem.0"), 2)

    o = norm_relu(x, p, "block1.preactivation.0")
    branch = convolve(o, p, "block1.branch.0", padding=2)
    branch = convolve(norm_relu(branch, p, "block1.branch.1"), p, "block1.branch.3", padding=2)
    x = branch if arm == "chain" else x + branch

    o = norm_relu(x, p, "block2.preactivation.0")
    branch = convolve(o, p, "block2.branch.0", stride=2, padding=1)
    x = convolve(norm_relu(branch, p, "block2.branch.1"), p, "block2.branch.3")
    if arm != "chain":
        x = x + convolve(o, p, "block2.shortcut.conv", stride=3)
    if arm == "modified":
        n = o.shape[0]
        x = x + torch.cat([o.new_zeros(n, 7, 4, 4), 3 * F.avg_pool2d(o, 3), o.new_zeros(n, 8, 4, 4)], dim=1)

    return F.linear(norm_relu(x.flatten(1), p, "head.1"), p["head.3.weight"], p["head.3.bias"])


@pytest.mark.parametrize("arm", ARMS)
def test_logits_and_gradients_are_those_of_the_paper(arm: str) -> None:
    torch.manual_seed(0)
    model = build_model("paper-mnist", arm=arm).double()
    x = torch.rand(8, 1, 28, 28, dtype=torch.float64)
    logits = model(x)
    expected = reference(arm, dict(model.named_parameters()), x)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    weights = torch.randn_like(logits)
    gradients = torch.autograd.grad((logits * weights).sum(), parameters, materialize_grads=True)
    by_hand = torch.autograd.grad((expected * weights).sum(), parameters, materialize_grads=True)
    torch.testing.assert_close(gradients, by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("arm", ARMS)
def test_it_is_a_chain_of_four_modules_with_the_papers_shapes(arm: str) -> None:
    model = build_model("paper-mnist", arm=arm)
    x, shapes = torch.rand(32, 1, 28, 28), {}
    for name, module in model.named_children():
        x = module(x)
        shapes[name] = tuple(x.shape[1:])
    assert shapes == {"stem": (5, 12, 12), "block1": (5, 12, 12), "block2": (20, 4, 4), "head": (10,)}


def test_the_shortcut_convolution_of_the_chain_gets_no_gradient() -> None:
    x = torch.rand(4, 1, 28, 28)
    for arm in ARMS:
        model = build_model("paper-mnist", arm=arm)
        model(x).square().sum().backward()
        unused = {name for name, p in model.named_parameters() if p.grad is None}
        assert unused == ({"block2.shortcut.conv.weight", "block2.shortcut.conv.bias"} if arm == "chain" else set())


def test_the_papers_jacobian_has_its_shape_under_functional_transforms() -> None:
    model = build_model("paper-mnist", arm="modified")
    with torch.no_grad():
        z = model.stem(torch.rand(32, 1, 28, 28))
    tail = model[1:].train()
    parameters = {name: p.detach() for name, p in tail.named_parameters()}

    def logits_from(z: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in tail.named_buffers()}
        return functional_call(tail, {**parameters, **buffers}, (z,)).flatten()

    logits, pull = vjp(logits_from, z)
    rows = vmap(lambda v: pull(v)[0])(torch.eye(320)[:3])
    assert (logits.shape[0], *rows.flatten(1).shape) == (320, 3, 23040)
    z.requires_grad_()
    first = torch.autograd.grad(tail(z).flatten()[1], z)[0]
    torch.testing.assert_close(rows[1], first)
