"""One run in several processes: to rounding, what one process does, and one clear error when one of them dies."""

import threading

import pytest
import torch
from torch import distributed, nn
from torch.nn.utils import weight_norm

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.processes import ranks as ranks_module
from skip_conditioning.experiments.processes.ranks import Ranks, clear_rank_errors
from tests.processes import run_forked

#: How each of several processes begins: rank, count, and the file through which they meet.
BEGIN = """
import datetime, os, sys
import torch
from torch import distributed, nn

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
rank, count, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
limit = datetime.timedelta(seconds=30)
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=limit)
group = distributed.group.WORLD

def near(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
"""
#: All is checked: gloo's threads have been seen to abort while the interpreter ends.
END = "\nprint('all agree', flush=True)\nos._exit(0)\n"


def agree(program, folder, count, codes=None):
    """Run a program, between its beginning and end, in several processes that have to leave with these codes."""
    arguments = [[str(rank), str(count), str(folder / "meeting")] for rank in range(count)]
    imports = ("torch._dynamo", "skip_conditioning.experiments.processes.ranks")
    ends = run_forked(BEGIN + program + END, arguments, folder, imports=imports)
    for (code, output, errors), expected in zip(ends, codes or [0] * count, strict=True):
        assert code == expected, output + errors
        assert code or "all agree" in output.splitlines(), output + errors


TRAINING = """
from torch.nn.functional import cross_entropy
from skip_conditioning import spectra
from skip_conditioning.experiments.processes.ranks import Ranks
from skip_conditioning.models.paper_mnist import build_paper_mnist

ranks, cpu = Ranks(group), torch.device("cpu")
assert (ranks.rank, ranks.count, ranks.is_first) == (rank, count, rank == 0)

def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5),
    )

def chain():
    return build_paper_mnist("chain").double()

def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)

def one_process(model, images, labels, shares):
    # Every share is normalised apart, and the first process's running statistics count.
    loss = torch.tensor(0.0)
    for place, part in enumerate(shares):
        before = [buffer.clone() for buffer in model.buffers()]
        logits = model(images[part])
        if len(logits):
            share = len(logits) / len(labels) * cross_entropy(logits, labels[part])
            share.backward()
            loss += share.detach()
        if place:
            for buffer, value in zip(model.buffers(), before):
                buffer.copy_(value)
    return loss

def same(build, sizes, image, steps=4):
    torch.manual_seed(0)
    alone = build()
    torch.manual_seed(rank)  # the first process's weights and buffers count
    model = build()
    example = torch.randn(3, *image)
    network = ranks.replicate(model, cpu, example, sync_batch_norm=False)
    assert network.find_unused_parameters == (build is chain)
    starts = [sum(sizes[:r]) for r in range(count)]
    shares = [slice(start, start + size) for start, size in zip(starts, sizes)]
    own, whole = shares[rank], sum(sizes)
    optimizers = sgd(alone), sgd(model)
    torch.manual_seed(5)
    for step in range(steps):
        images, labels = torch.randn(whole, *image), torch.randint(5, (whole,))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        expected = one_process(alone, images, labels, shares)
        loss = cross_entropy(network(images[own]), labels[own])
        (loss * ranks.loss_scale(sizes[rank], whole)).backward()
        found = ranks.weighted_mean(torch.stack([loss.detach(), loss.detach()]), sizes[rank])
        near(found, torch.stack([expected, expected]))
        for (name, one), other in zip(alone.named_parameters(), model.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            assert build is not chain or (one.grad is None) == name.startswith("block2.shortcut.conv"), name
            if one.grad is not None:
                near(other.grad, one.grad)
        for optimizer in optimizers:
            optimizer.step()
        ranks.share_buffers(model)
        for (name, one), other in zip(alone.state_dict().items(), model.state_dict().values(), strict=True):
            near(other, one)
        if step == 1 and ranks.is_first:  # measuring and evaluating by one process alone disturbs nothing
            spectra(model, images[:3], map="kernel", method="exact")
            state = [buffer.clone() for buffer in model.buffers()]
            model.eval()(images)
            model.train()
            assert all(torch.equal(*pair) for pair in zip(model.buffers(), state))
    return model, network

UNEQUAL, EMPTY = {2: ((3, 6), (0, 8)), 3: ((2, 4, 3), (5, 3, 0))}[count]
same(convolutions, UNEQUAL, (1, 8, 8))
same(convolutions, EMPTY, (1, 8, 8), steps=2)
larger = [4 * size for size in UNEQUAL]  # batch norm over two or three values amplifies rounding
model, network = same(chain, larger, (1, 28, 28), steps=3)

assert network is not model and isinstance(network, nn.parallel.DistributedDataParallel)
for pair in zip([*model.parameters(), *model.buffers()], [*network.parameters(), *network.buffers()], strict=True):
    assert pair[0] is pair[1]

values = torch.tensor([[rank, torch.nan if rank else 2.0]], dtype=torch.float32)
found = ranks.weighted_mean(values, 0 if rank else 3)
assert found.dtype == torch.float32 and torch.equal(found, torch.tensor([[0, 2]], dtype=torch.float32))
near(ranks.weighted_mean(torch.tensor(float(rank)), rank + 1), torch.tensor({2: 2 / 3, 3: 8 / 6}[count]))
assert ranks.weighted_mean(torch.tensor(torch.nan if rank else 1.0), 1).isnan()
own = torch.arange(6).view(2, 3).T + rank
assert torch.equal(ranks.sum(own), count * torch.arange(6).view(2, 3).T + sum(range(count)))
assert torch.equal(own, torch.arange(6).view(2, 3).T + rank)
assert ranks.agree({"first": rank == 0, "step": 7 + rank}) == {"first": True, "step": 7}
kept = nn.BatchNorm1d(2)
kept.register_buffer("strided", torch.full((2, 3), float(rank)).T)
kept.running_mean.fill_(rank), kept.num_batches_tracked.fill_(4 + rank)
mean = kept.running_mean
ranks.share_buffers(kept)
assert kept.running_mean is mean and not mean.any() and not kept.strided.any() and kept.num_batches_tracked == 4
states = ranks.gathered({"cpu": torch.tensor([rank]), "cuda:0": torch.tensor([9])})
assert list(states) == ["cpu", "cuda:0"] + [f"rank{r}/{name}" for r in range(1, count) for name in ("cpu", "cuda:0")]
assert ranks.own(states) == {"cpu": torch.tensor([rank]), "cuda:0": torch.tensor([9])}
assert (ranks.own({"cpu": torch.tensor([0])}) == {}) == (rank > 0)
ranks.wait()
"""

DEATH = """
from skip_conditioning.experiments.processes.ranks import clear_rank_errors
from skip_conditioning.diagnostics.errors import InputError

model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
network = ranks.replicate(model, torch.device("cpu"), torch.randn(3, 4), sync_batch_norm=False)
loss = network(torch.randn(3, 4)).sum()
ranks.wait()
if rank:
    os._exit(3)  # as a kill would end it
collectives = (
    lambda: network(torch.randn(3, 4)),
    loss.backward,
    lambda: ranks.sum(torch.ones(1)),
    lambda: ranks.weighted_mean(torch.ones(1), 1),
    lambda: ranks.agree(1),
    lambda: ranks.gathered({}),
    lambda: ranks.share_buffers(model),
    ranks.wait,
)
for collective in collectives:
    try:
        with clear_rank_errors():
            collective()
    except InputError as error:
        assert "a process of this run died" in str(error) and "--resume" in str(error)
    else:
        raise AssertionError("no error")
distributed.destroy_process_group()
"""


def test_two_processes_train_as_one_does_and_one_that_dies_is_a_clear_error_in_the_other(tmp_path):
    agree(TRAINING + DEATH, tmp_path, 2, codes=[0, 3])


@pytest.mark.slow
def test_three_processes_train_as_one_does(tmp_path):
    agree(TRAINING, tmp_path, 3)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Connection reset by peer"),  # not gloo's
        RuntimeError("gloo: tensors on different devices"),
        distributed.DistBackendError("NCCL error: ncclInvalidUsage, duplicate GPU detected"),
        ConnectionResetError("Connection reset by peer"),
        InputError("no such file"),
    ],
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, clear_rank_errors():
        raise error
    assert caught.value is error


def test_what_nccl_says_of_a_dead_process_is_recognised():
    error = distributed.DistBackendError("ncclRemoteError: remote process exited or there was a network error")
    with pytest.raises(InputError, match="died") as caught, clear_rank_errors():
        raise error
    assert caught.value.__cause__ is error


def test_a_process_alone_has_everything():
    ranks, values, model = Ranks(), torch.randn(3), nn.BatchNorm1d(2)
    assert (ranks.rank, ranks.count, ranks.is_first, ranks.loss_scale(7, 7)) == (0, 1, True, 1)
    assert ranks.replicate(model, torch.device("cpu"), values, sync_batch_norm=True) is model
    assert ranks.weighted_mean(values, 0.5) is values
    assert ranks.sum(values) is values
    assert ranks.agree(values) is values
    assert ranks.gathered({"cpu": values}) == ranks.own({"cpu": values, "rank1/cpu": model}) == {"cpu": values}
    ranks.share_buffers(model)
    ranks.wait()


@pytest.fixture
def group(tmp_path):
    """A group of this process alone, which is replicated for as several are."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


class Odd(nn.Module):
    """A module under two names and in a list, tied weights, a tensor with a history, a plain tensor, and hooks."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.first = nn.Sequential(nn.Linear(3, 3), self.norm)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first[0].weight
        self.third = nn.Linear(3, 3)
        self.scales = {"third": [self.third.weight.norm()]}
        self.order = [self.first, self.second, self.norm]
        self.plain = torch.ones(3)
        self.calls = 0
        self.third.register_forward_hook(self.count)
        self.norm.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))

    def count(self, *_):
        self.calls += 1
        self.plain += 1

    def forward(self, x):
        for module in self.order:
            x = module(x)
        return self.third(x) * self.plain / self.scales["third"][0].detach()


def test_the_twin_is_another_tree_of_the_same_tensors(group):
    torch.manual_seed(0)
    model, reference, x = Odd(), Odd(), torch.randn(5, 3)
    reference.load_state_dict(model.state_dict())
    reference.scales = model.scales
    network = Ranks(group).replicate(model, torch.device("cpu"), x, sync_batch_norm=False)
    model.plain.fill_(1)  # which the hook has changed
    twin = network.module
    assert not set(twin.modules()) & set(model.modules())
    assert twin.order[2] is twin.first[1] is twin.norm
    assert twin.second.weight is twin.first[0].weight is model.second.weight
    assert twin.plain is model.plain
    assert type(model.norm) is nn.BatchNorm1d
    y, expected = network(x), reference(x)
    torch.testing.assert_close(y, expected)
    assert (twin.calls, model.calls) == (1, 0)
    y.sum().backward()
    expected.sum().backward()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
    for one, other in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    model.eval()
    assert twin.training
    assert twin.norm.training


def test_synchronised_batch_norm_is_torchs_own_with_the_same_tensors(group, monkeypatch):
    monkeypatch.setattr(ranks_module, "DistributedDataParallel", lambda twin, **_: twin)  # refuses it on a CPU
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    twin = Ranks(group).replicate(model, torch.device("cpu"), torch.randn(4, 3), sync_batch_norm=True)
    assert (type(model[1]), type(twin[1])) == (nn.BatchNorm1d, nn.SyncBatchNorm)
    assert twin[1].process_group is group
    pairs = zip([*model.parameters(), *model.buffers()], [*twin.parameters(), *twin.buffers()], strict=True)
    assert all(one is other for one, other in pairs)


def test_synchronised_batch_norm_is_refused_without_gpus(monkeypatch):
    Ranks().check_sync_batch_norm(torch.device("cpu"))
    monkeypatch.setattr(Ranks, "count", 2)
    Ranks().check_sync_batch_norm(torch.device("cuda"))
    with pytest.raises(InputError, match=r"--sync-batch-norm needs GPUs: .* leave it out"):
        Ranks().check_sync_batch_norm(torch.device("cpu"))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # weight_norm is an old function, with a newer namesake
def test_weights_that_are_computed_from_others_are_trained(group):
    model = nn.Sequential(weight_norm(nn.Linear(3, 2)), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    x = torch.randn(4, 3)
    network = Ranks(group).replicate(model, torch.device("cpu"), x, sync_batch_norm=False)
    network(x).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= parameter.grad
    torch.testing.assert_close(network(x), model(x))


def test_a_model_that_cannot_be_copied_is_a_clear_error(group):
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(InputError, match=r"cannot be copied, .*lock.*; train in one process"):
        Ranks(group).replicate(model, torch.device("cpu"), torch.zeros(1, 2), sync_batch_norm=False)


class Spare(nn.Module):
    """Has a layer that is used, or not."""

    def __init__(self, *, used, frozen=False, random=False):
        super().__init__()
        self.norm = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.spare = nn.Linear(3, 3).requires_grad_(not frozen)
        self.used, self.random = used, random

    def forward(self, x):
        x = self.norm(x)
        used = bool(torch.rand(()) < 0.5) if self.random else self.used
        return self.spare(x) if used else x


@pytest.mark.parametrize(
    ("options", "finds"),
    [
        ({"used": True}, False),
        ({"used": False}, True),
        ({"used": False, "frozen": True}, False),
        ({"used": True, "random": True}, True),
    ],
)
def test_unused_parameters_are_looked_for_where_there_are_some(group, options, finds):
    model = Spare(**options)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(1, 3)
    stream = torch.get_rng_state()
    network = Ranks(group).replicate(model, torch.device("cpu"), x, sync_batch_norm=False)
    assert torch.equal(torch.get_rng_state(), stream)
    assert network.find_unused_parameters is finds
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())
    assert all(module.training for module in [*model.modules(), *network.modules()])


def test_a_network_that_begins_to_use_fewer_parameters_is_a_clear_error(group):
    model = Spare(used=True)
    network = Ranks(group).replicate(model, torch.device("cpu"), torch.randn(2, 3), sync_batch_norm=False)
    network.module.used = False
    network(torch.randn(4, 3)).sum().backward()
    with pytest.raises(InputError, match="do not depend on some parameter in one batch"), clear_rank_errors():
        network(torch.randn(4, 3))
