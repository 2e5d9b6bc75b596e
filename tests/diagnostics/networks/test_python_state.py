"""What a forward pass changes in Python begins anew at every call of a measurement, and is the user's own after it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from skip_conditioning import SpectrumMonitor, jacobian, read_experiment, spectra
from skip_conditioning.diagnostics.errors import UnsupportedModelError
from skip_conditioning.diagnostics.networks import python_state
from skip_conditioning.diagnostics.networks.isolation import quiet
from tests.diagnostics.networks.kinds_of_state import KINDS, Net, Point, begin_anew

MAPS = ("kernel",)


def train(kind, out=None):
    """Losses and final weights of three steps, measured in between (between forward and backward pass) or not."""
    begin_anew()
    torch.manual_seed(0)
    net, x, y = Net(kind), torch.randn(8, 4), torch.arange(8) % 2
    optimiser, losses = torch.optim.SGD(net.parameters(), lr=0.1), []
    monitor = out and SpectrumMonitor(net, (x[:3], y[:3]), out, maps=MAPS, schedule=1, max_overhead=None)
    for step in range(3):
        loss = nn.functional.cross_entropy(net(x), y)
        if monitor:
            monitor.step(step, loss=loss)
            jacobian(net, x[:3], map="network", dtype=torch.float64)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    if monitor:
        monitor.close()
        assert read_experiment(out).skipped.empty
    return losses, [parameter.tolist() for parameter in net.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_bit_for_bit_with_and_without_a_monitor(kind, tmp_path):
    assert train(kind, tmp_path / "run") == train(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_begins_with_the_same_state(kind):
    torch.manual_seed(0)
    net, x = Net(kind).double(), torch.randn(3, 4).double()
    with quiet(net, batch_mode="batch"):
        state = python_state.state_of(net)
        outputs = []
        for _ in range(3):
            state.put_in_place()
            if not kind.startswith("weight"):
                outputs.append(net(x).tolist())
    assert all(output == outputs[0] for output in outputs)
    right = torch.autograd.functional.jacobian(lambda x: Net.forward(net, x), x).reshape(6, 12)
    if kind not in ("closure", "bound_method", "patched_forward") and not kind.startswith("weight"):
        return
    torch.manual_seed(0)
    net = Net(kind).double()
    torch.testing.assert_close(jacobian(net, x, map="network"), right)


def test_objects_keep_their_identity_and_contents():
    torch.manual_seed(0)
    net = Net("dict")
    net.things = [object(), {"a": (1, net.a)}, Point(), torch.Generator(), np.zeros(2), torch.ones(3), iter([1])]
    net(torch.randn(3, 4))
    before, things = dict(vars(net)), list(net.things)
    point, items = dict(vars(net.things[2])), list(net.seen.items())
    spectra(net, torch.randn(3, 4), map="network")
    assert list(vars(net)) == list(before)
    assert all(vars(net)[name] is value for name, value in before.items())
    assert all(now is then for now, then in zip(net.things, things, strict=True))
    assert all(vars(net.things[2])[name] is value for name, value in point.items())
    assert [(key, id(value)) for key, value in net.seen.items()] == [(key, id(value)) for key, value in items]


class Yields(nn.Module):
    def __init__(self, used=True):
        super().__init__()
        self.a, self.numbers, self.used, self.seen = nn.Linear(4, 2), (n for n in range(9)), used, []

    def forward(self, x):
        self.seen.append(1)
        return self.a(x) * (1 + next(self.numbers) if self.used else 1)


def test_what_cannot_be_copied_is_refused_when_a_pass_would_advance_it():
    net, x = Yields(), torch.randn(3, 4)
    for call in (lambda: spectra(net, x), lambda: jacobian(net, x, map="network")):
        with pytest.raises(UnsupportedModelError, match=r"Yields\.numbers is a generator, which cannot be copied"):
            call()
    assert next(net.numbers) == 0
    assert net.seen == []
    assert list(spectra(Yields(used=False), x)) == ["a"]


class Fails(nn.Module):
    """A network whose forward pass raises an error from a certain call of a measurement on."""

    def __init__(self, error):
        super().__init__()
        self.a, self.b, self.error, self.armed = nn.Linear(4, 4), nn.Linear(4, 2), error, False
        self.seen, self.g = [], torch.Generator().manual_seed(3)

    def forward(self, x):
        self.seen.append(1)
        h = self.a(x) + torch.rand((), generator=self.g)
        self.extra = h
        if self.armed:
            raise self.error
        return self.b(h)


ERRORS = [KeyError("k"), ZeroDivisionError(), StopIteration(), MemoryError("m"), AssertionError(), RuntimeError("r\ns")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_training_goes_on_after_any_error(error, tmp_path):
    net, x, y = Fails(error), torch.randn(8, 4), torch.arange(8) % 2
    with SpectrumMonitor(net, (x, y), tmp_path / "run", schedule=1, max_overhead=None) as monitor:
        monitor.step(0)
        net.armed, state = True, net.g.get_state()
        if type(error) in (RuntimeError,):
            assert monitor.step(1) == {}  # the probe does not fit: an InputError of one line
        else:
            with pytest.warns(UserWarning, match=f"goes on: {type(error).__name__}"):
                assert monitor.step(1) == {}
        net.armed = False
        assert monitor.step(2)
    assert list(read_experiment(tmp_path / "run").skipped.step) == [1]
    assert torch.equal(net.g.get_state(), state)
    assert net.seen == []
    assert not hasattr(net, "extra")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2)], ids=["interrupt", "exit"])
def test_interrupts_pass_through_and_leave_nothing(error, tmp_path):
    net, x = Fails(error), torch.randn(8, 4)
    monitor = SpectrumMonitor(net, x, tmp_path / "run", schedule=1, max_overhead=None)
    net.armed, state = True, net.g.get_state()
    with pytest.raises(type(error)):
        monitor.step(0)
    assert torch.equal(net.g.get_state(), state)
    assert net.seen == []
    assert not hasattr(net, "extra")
    assert python_state.state_of(net) is None


def test_caches_of_parametrisations_are_off_inside_and_stay():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)), torch.randn(3, 4)
    plain = spectra(net, x, map="network", dtype=torch.float64)["network"].values
    with parametrize.cached():
        weight = net[0].weight
        cached = spectra(net, x, map="network", dtype=torch.float64)["network"].values
        assert net[0].weight is weight
        net(x).sum().backward()
    np.testing.assert_array_equal(cached, plain)
    assert net[0].parametrizations.weight.original1.grad is not None


class Cache:
    """As the key-value caches of decoders: an object that a layer fills."""

    def __init__(self):
        self.keys = []


class Attention(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.depth, self.key, self.g = depth, nn.Linear(4, 4), torch.Generator().manual_seed(depth)

    def forward(self, h, cache):
        if len(cache.keys) <= self.depth:
            cache.keys.append(self.key(h))
        else:
            cache.keys[self.depth] = torch.cat([cache.keys[self.depth], self.key(h)], 1)
        keys = cache.keys[self.depth]
        noise = torch.rand((), generator=self.g, dtype=h.dtype)
        return h + noise * torch.softmax(h @ keys.mT, -1) @ keys + sum(key.mean() for key in cache.keys)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Attention(depth) for depth in range(3)), nn.Linear(4, 2)

    def forward(self, x):
        cache = Cache()
        for layer in self.layers:
            x = layer(x, cache=cache)
        return self.head(x)


def test_objects_passed_to_a_layer_are_what_they_were_at_the_call():
    torch.manual_seed(0)
    net, x = Decoder().double(), torch.randn(2, 3, 4).double()
    for name in ("layers.0", "layers.1", "layers.2"):
        inputs = {}

        def note(module, args, kwargs, inputs=inputs):
            inputs.update(h=args[0], keys=list(kwargs["cache"].keys))

        handle = net.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True)
        for layer in net.layers:
            layer.g.manual_seed(layer.depth)
        net(x)
        handle.remove()

        def function(h, name=name, inputs=inputs):
            layer, cache = net.get_submodule(name), Cache()
            cache.keys = [key.detach() for key in inputs["keys"]]
            layer.g.manual_seed(layer.depth)
            return layer(h, cache)

        right = torch.autograd.functional.jacobian(function, inputs["h"].detach()).reshape(24, 24)
        for layer in net.layers:
            layer.g.manual_seed(layer.depth)
        torch.testing.assert_close(jacobian(net, x, map="layer", layer=name), right)


class Pair(nn.Module):
    """Two layers that draw from one generator and write into one list."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Draws(), Draws()
        self.first.g = self.second.g = torch.Generator().manual_seed(1)
        self.first.seen = self.second.seen = []

    def forward(self, x):
        return self.second(self.first(x))


class Draws(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x):
        self.seen.append(len(self.seen))
        return super().forward(x) * (torch.rand((), generator=self.g, dtype=x.dtype) + len(self.seen))


def test_a_layer_is_measured_with_what_earlier_layers_left():
    torch.manual_seed(0)
    net, x = Pair().double(), torch.randn(1, 4).double()
    numbers = torch.Generator().manual_seed(1)
    draws = [torch.rand((), generator=numbers, dtype=torch.float64) for _ in range(2)]
    torch.testing.assert_close(jacobian(net, x, layer="first"), net.first.weight.detach() * (draws[0] + 1))
    torch.testing.assert_close(jacobian(net, x, layer="second"), net.second.weight.detach() * (draws[1] + 2))
    assert net.first.seen == []


class Owner:
    """A user's trainer, whose optimiser's state is not looked into."""

    def __init__(self, model):
        self.model, self.optimiser, self.steps, self.log = model, torch.optim.Adam(model.parameters()), 0, []

    def hook(self, module, args, output):
        self.steps += 1


def test_who_owns_the_training_is_not_walked_but_put_back():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    owner = Owner(net)
    net[0].register_forward_hook(owner.hook)
    with quiet(net, batch_mode="batch"):
        net(torch.randn(2, 4))
        state = python_state.state_of(net)
        assert not any(value is owner.log for value, _ in state._leaves.values())
    assert owner.steps == 0
