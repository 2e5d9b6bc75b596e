"""Networks stacked into one: what it computes, what stays of each, and which ones may be stacked."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from experiments.stacked import StackedNetwork, apply_with, same_structure


def network(seed, *inner):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), *inner, nn.Linear(4, 3)).double()


def tied(seed):
    torch.manual_seed(seed)
    made = network(seed, nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    made[3].weight = made[1].weight
    return made


def used_twice(seed):
    torch.manual_seed(seed)
    layer, norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
    return network(seed, layer, norm, nn.Tanh(), layer, norm)


NETS = {
    "plain": network,
    "batch-norm": lambda seed: network(seed, nn.BatchNorm1d(4)),
    "tied": tied,
    "used-twice": used_twice,
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("groups", [[0, 0, 0], [7, 7, 3], [2, 1, 0]], ids=str)
def test_outputs_gradients_and_buffers_are_those_of_each_network(net, groups):
    twins = [NETS[net](seed) for seed in range(3)]
    networks = [NETS[net](seed) for seed in range(3)]
    stacked = StackedNetwork(networks, groups)
    inputs = torch.rand(3, 6, 5, dtype=torch.float64)
    for _ in range(2):
        found = stacked(inputs)
        expected = torch.stack([twin(batch) for twin, batch in zip(twins, inputs, strict=True)])
        torch.testing.assert_close(found, expected)
    (found**2).sum().backward()
    (expected**2).sum().backward()
    norms = []
    for row, twin in enumerate(twins):
        places = stacked.places(row)
        pairs = list(zip(networks[row].named_parameters(), twin.named_parameters(), strict=True))
        assert [parameter for (_, parameter), _ in pairs] == [*places]
        for (name, parameter), (_, other) in pairs:
            stack, place = places[parameter]
            torch.testing.assert_close(stack.grad[place], other.grad, msg=name)
        norms.append(torch.nn.utils.get_total_norm([parameter.grad for parameter in twin.parameters()]))
        buffers = dict(twin.named_buffers())
        assert all(torch.allclose(buffer, buffers[name]) for name, buffer in networks[row].named_buffers())
    torch.testing.assert_close(stacked.norms(), torch.stack(norms))


@pytest.mark.parametrize("groups", [[0, 0, 0], [7, 7, 3]], ids=str)
def test_gradients_are_divided_network_by_network(groups):
    networks = [network(seed, nn.BatchNorm1d(4)) for seed in range(3)]
    stacked = StackedNetwork(networks, groups)
    (stacked(torch.rand(3, 6, 5, dtype=torch.float64)) ** 2).sum().backward()
    norms, divisors = stacked.norms(), torch.tensor([2.0, 1.0, 0.25], dtype=torch.float64)
    stacked.divide_gradients(divisors)
    torch.testing.assert_close(stacked.norms(), norms / divisors)


def test_each_network_shows_what_becomes_of_the_stack():
    networks = [used_twice(seed) for seed in range(2)]
    before = [{name: tensor.clone() for name, tensor in one.state_dict().items()} for one in networks]
    stacked = StackedNetwork(networks, [0, 1])
    for one, old in zip(networks, before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in one.state_dict().items())
    with torch.no_grad():
        for part in stacked.parameters:
            for stack in part.values():
                stack.fill_(3)
        for buffer in stacked.buffers.values():
            buffer.fill_(2)
    for one in networks:
        assert all((parameter == 3).all() for parameter in one.parameters())
        assert all((buffer == 2).all() for buffer in one.buffers())


class Replacing(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean = 0.5 * self.mean + x.detach().mean(0)
        return x - self.mean


def test_buffers_that_are_replaced_are_updated():
    networks, twins = ([network(seed, Replacing()) for seed in range(2)] for _ in range(2))
    stacked = StackedNetwork(networks, [0, 0])
    inputs = torch.rand(2, 6, 5, dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(
            stacked(inputs), torch.stack([twin(x) for twin, x in zip(twins, inputs, strict=True)])
        )
    for one, twin in zip(networks, twins, strict=True):
        torch.testing.assert_close(one[1].mean, twin[1].mean)


@pytest.mark.parametrize("net", NETS)
def test_a_network_applied_with_other_tensors_stays_as_it_was(net):
    one, other = NETS[net](0), NETS[net](1)
    copies = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    pointers = [tensor.data_ptr() for tensor in one.state_dict().values()]
    tensors = {**dict(other.named_parameters()), **{name: buffer.clone() for name, buffer in other.named_buffers()}}
    inputs = torch.rand(6, 5, dtype=torch.float64)
    assert torch.equal(apply_with(one, tensors, inputs), other(inputs))
    assert pointers == [tensor.data_ptr() for tensor in one.state_dict().values()]
    assert all(torch.equal(tensor, copies[name]) for name, tensor in one.state_dict().items())
    assert all(torch.equal(buffer, tensors[name]) for name, buffer in other.named_buffers())


@pytest.mark.parametrize("net", NETS)
def test_networks_that_differ_in_their_weights_have_the_same_structure(net):
    assert same_structure(NETS[net](0), NETS[net](1))


def ordered(*names):
    parts = {"relu": nn.ReLU(), "norm": nn.BatchNorm1d(5)}
    return nn.Sequential(OrderedDict((name, parts[name]) for name in names))


def frozen(seed):
    made = network(seed)
    made[0].weight.requires_grad_(False)
    return made


def with_attribute(value):
    made = network(0)
    made[0].extra = value
    return made


def with_shared_buffer(*, shared):
    buffers = [torch.zeros(2), torch.zeros(2)]
    made = network(0)
    for layer in (0, 1):
        made[layer].register_buffer("extra", buffers[0 if shared else layer])
    return made


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (network(0), network(0, nn.Tanh())),
        (network(0, nn.ReLU()), network(0, nn.Tanh())),
        (network(0), network(0).float()),
        (network(0), frozen(0)),
        (network(0, nn.Linear(4, 4)), network(0, nn.Linear(4, 4, bias=False))),
        (network(0, nn.BatchNorm1d(4)), network(0, nn.BatchNorm1d(4, eps=1e-3))),
        (network(0), network(0).eval()),
        (ordered("relu", "norm"), ordered("norm", "relu")),
        (tied(0), network(0, nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))),
        (with_shared_buffer(shared=True), with_shared_buffer(shared=False)),
        (with_attribute(0.5), with_attribute(0.25)),
        (with_attribute(torch.rand(3)), with_attribute(torch.rand(3))),
        (with_attribute(lambda x: x), with_attribute(lambda x: 2 * x)),
    ],
    ids=(
        *("depth", "activation", "dtype", "frozen", "bias", "epsilon", "mode", "order", "tied", "shared-buffer"),
        *("number", "tensor", "function"),
    ),
)
def test_networks_of_other_structure(first, second):
    assert not same_structure(first, second)
    assert not same_structure(second, first)
    assert same_structure(first, first)
