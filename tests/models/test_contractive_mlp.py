"""The class for which convergence is proved: its formula, its bounds, and many networks in one pass."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from skip_conditioning.diagnostics.kernel.tangent_kernel import tangent_kernel
from skip_conditioning.models import Arm, ModelOptionError, NoShortcut, build_model

OPTIONS = {"width": 6, "depth": 3, "num_classes": 4, "gain": 0.7, "eps": 0.3}
ARMS = ["chain", "residual", "unnormalised"]


def network(arm: str | Arm, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = build_model("contractive-mlp", arm=arm, **OPTIONS).double()
    assert isinstance(model, nn.Sequential)
    return model


def images(samples: int = 5) -> Tensor:
    return torch.randn(samples, 1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("arm", ARMS)
def test_logits_are_those_of_the_formula(arm: str) -> None:
    model, h = network(arm), images().flatten(1)
    for block in model.blocks:
        W = block.branch.weight
        if arm != "unnormalised":
            W = W / (0.3 + (W**2).sum()).sqrt()
        h = (0 if arm == "chain" else h) + 0.7 * torch.tanh(h) @ W.T
    torch.testing.assert_close(model(images()), h @ model.head.weight.T)
    assert [name for name, _ in model.named_parameters()] == [
        *(f"blocks.{l}.branch.weight" for l in range(3)),
        "head.weight",
    ]


@pytest.mark.parametrize("arm", ARMS)
def test_stacked_weights_give_what_each_network_gives_by_itself(arm: str) -> None:
    models = [network(arm, seed) for seed in range(4)]
    stacked = {name: torch.stack([m.get_parameter(name) for m in models]) for name, _ in models[0].named_parameters()}
    together = functional_call(models[0], stacked, (images(),))
    assert together.shape == (4, 5, 4)
    torch.testing.assert_close(together, torch.stack([model(images()) for model in models]))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_blocks_contract_whatever_the_weights_are(scale: float) -> None:
    block = network("residual").blocks[0]
    block.branch.weight.data.mul_(scale)
    for x in images().flatten(1):
        values = torch.linalg.svdvals(jacrev(block)(x[None]).reshape(6, 6))
        assert values.min() > 1 - 0.7
        assert values.max() < 1 + 0.7


def test_plain_weights_do_not() -> None:
    block = network("unnormalised").blocks[0]
    block.branch.weight.data.mul_(1e4)
    assert torch.linalg.svdvals(jacrev(block)(images(1).flatten(1)).reshape(6, 6)).max() > 2


def test_the_tangent_kernel_is_that_of_autograd() -> None:
    model, x = network("residual"), images()
    rows = jacrev(lambda weights: functional_call(model, weights, (x,)))(dict(model.named_parameters()))
    J = torch.cat([row.flatten(2).flatten(0, 1) for row in rows.values()], dim=1)
    torch.testing.assert_close(tangent_kernel(model, x).total, J @ J.T)


def test_an_arm_of_ones_own_is_normalised() -> None:
    torch.testing.assert_close(network(Arm(NoShortcut))(images()), network("chain")(images()))


@pytest.mark.parametrize("option", ["gain", "eps", "width", "depth", "num_classes"])
def test_options_out_of_range_are_named(option: str) -> None:
    with pytest.raises(ModelOptionError, match=option):
        build_model("contractive-mlp", **{option: 0})
