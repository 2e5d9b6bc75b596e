"""Synchronised batch norm between real processes: to rounding, one process's with all their samples."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from diagnostics.errors import InputError
from experiments.synchronised import SynchronisedBatchNorm, synchronise_batch_norms

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
    command = [sys.executable, "-c", BEGIN + program + END]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options |= {"cwd": Path(__file__).parents[2], "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    arguments = [[str(rank), str(count), str(folder / "meeting")] for rank in range(count)]
    processes = [subprocess.Popen([*command, *given], **options) for given in arguments]
    try:
        for process, code in zip(processes, codes or [0] * count, strict=True):
            output = process.communicate(timeout=120)[0]
            assert process.returncode == code, output
            assert code or "all agree" in output.splitlines(), output
    finally:
        for process in processes:
            process.kill()
            process.wait()


LAYERS = """
from experiments.synchronised import SynchronisedBatchNorm, synchronise_batch_norms

SIZES = {2: (3, 5), 3: (4, 0, 1)}[count]
first = sum(SIZES[:rank])
own = slice(first, first + SIZES[rank])

def passes(layer, x, weights):
    # The layer twice, so that one use follows, and is differentiated through, another.
    x = x.clone().requires_grad_()
    y = layer(torch.sin(layer(x)))
    (weights * y).sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    return y.detach(), x.grad, gradients

def total(tensor):
    distributed.all_reduce(tensor)
    return tensor

def compare(build, shape, **options):
    torch.manual_seed(0)
    layer, other = build(4, **options), build(4, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(layer.state_dict())
    synchronise_batch_norms(other, group, torch.device("cpu"))
    assert type(other) is SynchronisedBatchNorm
    for _ in range(3):
        x, weights = 50 + torch.randn(sum(SIZES), *shape), torch.randn(sum(SIZES), *shape)
        layer.zero_grad(), other.zero_grad()
        y, by_x, gradients = passes(layer, x, weights)
        own_y, own_by_x, own_gradients = passes(other, x[own], weights[own])
        near(own_y, y[own])
        near(own_by_x, by_x[own])
        for gradient, expected in zip(own_gradients, gradients, strict=True):
            near(total(gradient), expected)
        for name, buffer in layer.named_buffers():
            near(other.get_buffer(name), buffer)
    if options.get("track_running_stats", True):
        assert layer.num_batches_tracked == 6
        near(other.eval()(x[own]), layer.eval()(x[own]))

for build, shape in (
    (nn.BatchNorm1d, (4,)), (nn.BatchNorm1d, (4, 5)), (nn.BatchNorm2d, (4, 3, 2)), (nn.BatchNorm3d, (4, 2, 1, 3))
):
    compare(build, shape)
for options in (
    {"momentum": None}, {"momentum": 0.7, "eps": 0.1}, {"track_running_stats": False}, {"affine": False},
):
    compare(nn.BatchNorm2d, (4, 3, 2), **options)

# Half precision is computed in float32, and comes out in half precision.
layer = nn.BatchNorm1d(4, dtype=torch.float32)
synchronise_batch_norms(layer, group, torch.device("cpu"))
torch.manual_seed(1)
x = torch.randn(sum(SIZES), 4, dtype=torch.bfloat16)
y = layer(x[own])
assert y.dtype == torch.bfloat16
near(y, nn.BatchNorm1d(4, dtype=torch.float32)(x.float())[own].bfloat16(), 1e-2)
assert layer.running_var.dtype == torch.float32

for x in (torch.randn(1 if rank == count - 1 else 0, 4, dtype=torch.float32), torch.randn(4)):
    try:
        layer(x)
    except ValueError as error:
        assert "more than one value per channel, all processes" in str(error) or "2D" in str(error)
    else:
        raise AssertionError("no error")
"""


@pytest.mark.parametrize("count", [2, 3])
def test_batch_norm_over_unequal_shares_is_that_of_the_whole_batch(count, tmp_path):
    agree(LAYERS, tmp_path, count)


class Odd(nn.Module):
    """Batch norms under two names, in a list, with a hook, and frozen."""

    def __init__(self):
        super().__init__()
        self.one = nn.BatchNorm1d(3)
        self.inner = nn.Sequential(nn.Linear(3, 3), self.one, nn.BatchNorm1d(3, affine=False).eval())
        self.order = [self.one]
        self.calls = []
        self.one.register_forward_hook(lambda *_: self.calls.append(1))


@pytest.mark.parametrize(("device", "kind"), [("cpu", SynchronisedBatchNorm), ("cuda", nn.SyncBatchNorm)])
def test_modules_stay_what_they_are_but_for_their_class(device, kind):
    model, group = Odd(), object()
    before = {name: (id(module), dict(vars(module))) for name, module in model.named_modules()}
    synchronise_batch_norms(model, group, torch.device(device))
    after = {name: (id(module), dict(vars(module))) for name, module in model.named_modules()}
    for norm in ("one", "inner.2"):
        assert after[norm][1].pop("group" if device == "cpu" else "process_group") is group
        assert type(model.get_submodule(norm)) is kind
    assert after == before
    assert model.order[0] is model.inner[1] is model.one
    x = torch.randn(5, 3)
    assert torch.equal(model.inner[2](x), x / (1 + 1e-5) ** 0.5)
    model.eval().one(x)
    assert model.calls == [1]


class Ghost(nn.BatchNorm1d):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize("norm", [Ghost(3), spectral_norm(nn.BatchNorm1d(3), dim=0)], ids=["forward", "parametrised"])
def test_a_batch_norm_of_another_kind_is_an_error_that_names_it(norm):
    with pytest.raises(InputError, match=r"layer '1\.0': the batch norm .* is not torch's own"):
        synchronise_batch_norms(nn.Sequential(nn.Flatten(), nn.Sequential(norm)), object(), torch.device("cpu"))
