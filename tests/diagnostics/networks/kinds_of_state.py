"""A network for each kind of state that a forward pass may change; their tests are in ``test_python_state``."""

import collections
import functools
import itertools
import random
import types
from typing import ClassVar

import numpy as np
import torch
from torch import nn

calls, history, stream = 0, [], np.random.default_rng(4)


def draw(size, generator=torch.Generator().manual_seed(8)):  # noqa: B008
    return torch.randn(size, generator=generator)


@functools.lru_cache
def times_asked(counter):
    return [0]


class Slotted:
    __slots__ = ("left", "right")

    def __init__(self):
        self.left = 0


class Point:
    def __init__(self):
        self.total, self.parts = torch.zeros(()), {"sum": [0.0]}


class Net(nn.Module):
    """A network whose forward pass scales by a number that depends on the state, which it changes."""

    shared: ClassVar = collections.Counter()
    serial = 0

    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(4, 4), nn.Linear(4, 2), kind
        if hasattr(self, f"make_{kind}"):
            getattr(self, f"make_{kind}")()

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.b(h * (1 + 0.1 * torch.as_tensor(getattr(self, self.kind)(h.detach()), dtype=h.dtype)))

    def make_torch_generator(self):
        self.g = torch.Generator().manual_seed(3)

    def torch_generator(self, h):
        return torch.randn(h.shape, generator=self.g)

    def make_numpy_generator(self):
        self.g = [np.random.default_rng(3)]
        self.same = (self.g[0], self.g[0].bit_generator)

    def numpy_generator(self, h):
        return self.g[0].random() + self.same[0].random()

    def make_random_state(self):
        self.draw = np.random.RandomState(2).normal

    def random_state(self, h):
        return self.draw()

    def make_python_random(self):
        self.g = {"own": random.Random(5)}

    def python_random(self, h):
        return self.g["own"].gauss(0, 1)

    def make_partial(self):
        self.draw = functools.partial(torch.randn, (), generator=torch.Generator().manual_seed(1))

    def partial(self, h):
        return self.draw()

    def make_list(self):
        self.seen = []

    def list(self, h):
        self.seen.append(h)
        return len(self.seen)

    def make_dict(self):
        self.seen = collections.OrderedDict(first={"n": 0})

    def dict(self, h):
        self.seen["first"]["n"] += 1
        self.seen[len(self.seen)] = h
        self.seen.move_to_end("first")
        return len(self.seen) + self.seen["first"]["n"]

    def make_deque(self):
        self.seen = collections.deque([1.0, 2.0], maxlen=2)

    def deque(self, h):
        self.seen.append(self.seen[0] + 1)
        return self.seen[0]

    def make_set(self):
        self.seen = {0}

    def set(self, h):
        self.seen.add(len(self.seen))
        return len(self.seen)

    def make_attribute(self):
        self.n = 0

    def attribute(self, h):
        self.n, self.last = self.n + 1, h
        return self.n

    def make_tensor(self):
        self.running = torch.zeros(6)
        self.view = self.running[2:4]

    def tensor(self, h):
        self.running.add_(1)
        return self.view.mul_(2).sum()

    def make_array(self):
        self.running = np.zeros(3)

    def array(self, h):
        self.running += 1
        return self.running.sum()

    def make_tuple(self):
        self.both = collections.namedtuple("Both", "g items")(torch.Generator().manual_seed(1), [])

    def tuple(self, h):
        self.both.items.append(1)
        return torch.rand((), generator=self.both.g) + len(self.both.items)

    def make_object(self):
        self.point = Point()

    def object(self, h):
        self.point.total.add_(1)
        self.point.parts["sum"][0] += 1
        self.point.new = h
        return self.point.total + self.point.parts["sum"][0]

    def make_slots(self):
        self.point = Slotted()

    def slots(self, h):
        self.point.left += 1
        self.point.right = h
        return self.point.left

    def make_count(self):
        self.numbers = itertools.count(1)

    def count(self, h):
        return next(self.numbers)

    def make_iterator(self):
        self.numbers = zip(itertools.cycle([1.0, 2.0, 3.0]), itertools.count(), strict=False)

    def iterator(self, h):
        return sum(next(self.numbers))

    def class_attribute(self, h):
        type(self).serial += 1
        self.shared["calls"] += 1
        return self.serial + self.shared["calls"]

    def global_variable(self, h):
        global calls
        calls += 1
        history.append(calls)
        return len(history) + stream.random()

    def default_argument(self, h):
        return draw(h.shape)

    def cached_function(self, h):
        times_asked(1)[0] += 1
        return times_asked(1)[0]

    def make_closure(self):
        n, seen = 0, []

        def hook(module, args, output):
            nonlocal n
            n += 1
            seen.append(n)
            return output * n

        self.a.register_forward_hook(hook)

    def closure(self, h):
        return 0.0

    def make_bound_method(self):
        point = Point()

        def hook(self, module, args):
            self.total += 1
            return args[0] + self.total

        self.a.register_forward_pre_hook(types.MethodType(hook, point))

    def bound_method(self, h):
        return 0.0

    def make_patched_forward(self):
        plain, counter = self.a.forward, [0]

        def forward(x):
            counter[0] += 1
            return plain(x) * counter[0]

        self.a.forward = forward

    def patched_forward(self, h):
        return 0.0

    def make_hidden_module(self):
        self.hidden = [nn.BatchNorm1d(4)]

    def hidden_module(self, h):
        return self.hidden[0](h.float()) + self.hidden[0].running_mean

    def weight_data(self, h):
        self.a.weight.data.mul_(0.99)
        with torch.no_grad():
            self.b.bias.add_(0.1)
        return 0.0

    def weight_array(self, h):
        array = self.a.weight.detach().numpy()
        array *= 0.99
        return 0.0

    def weight_exchanged(self, h):
        self.a.weight.data = self.a.weight.data * 0.99
        return 0.0


KINDS = [
    name.removeprefix("make_") for name in vars(Net) if not name.startswith("_") and name not in ("shared", "serial")
]
KINDS = [name for name in dict.fromkeys(KINDS) if name != "forward"]


def begin_anew():
    """Put all state outside the networks back to its beginning."""
    global calls
    calls, Net.serial = 0, 0
    history.clear(), Net.shared.clear(), times_asked.cache_clear()
    stream.bit_generator.state = np.random.default_rng(4).bit_generator.state
    draw.__defaults__[0].manual_seed(8)
