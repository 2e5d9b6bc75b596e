"""Spectra shared between two processes: what one alone computes, and an error in one is one in both."""

#: What each of two processes runs: rank, and the file through which they meet.
PROGRAM = """
import datetime
import os
import sys
import numpy as np
import torch
from torch import distributed, nn
from skip_conditioning import spectra
from skip_conditioning.diagnostics.errors import NonFiniteError, UnsupportedModelError

torch.set_num_threads(1)
rank, meeting = int(sys.argv[1]), sys.argv[2]
limit = datetime.timedelta(seconds=15)
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=limit)
group = distributed.group.WORLD
torch.manual_seed(0)
inner = (nn.Linear(8, 9), nn.BatchNorm1d(9), nn.Tanh())
model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(*inner), nn.Linear(9, 7)).double()
x = torch.randn(5, 8, dtype=torch.float64)

def compare(model, x, **options):
    alone, shared = spectra(model, x, **options), spectra(model, x, group=group, **options)
    assert alone.keys() == shared.keys()
    for one, other in zip(alone.values(), shared.values()):
        if options["method"] == "exact":
            np.testing.assert_allclose(one.values, other.values, rtol=0, atol=1e-13 * one.sigma_max)
            assert (one.method, one.note, one.rank) == (other.method, other.note, other.rank)
        else:
            assert {**one.as_row(), "seconds": 0} == {**other.as_row(), "seconds": 0}, options
    return one

def same():
    for method in ("exact", "lanczos"):
        for map in ("layer", "tail", "param", "kernel"):
            compare(model, x, map=map, layers="1", method=method)
        compare(model, x[:2], map="network", batch_mode="sample", method=method)
    compare(model, x, map="network", method="lanczos", tolerance=0.1)
    wide = nn.Linear(200, 4).double(), torch.randn(5, 200, dtype=torch.float64)
    assert "streamed" in compare(*wide, map="network", method="exact", memory_budget=420_000).method

class Fails(torch.autograd.Function):
    generate_vmap_rule = True
    products, last = 0, 0

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        Fails.products += 1
        if rank == 1 and Fails.products > Fails.last:
            raise RuntimeError("no more products in this process")
        return 2 * gradient * ctx.saved_tensors[0]

class Square(nn.Module):
    def forward(self, x):
        return Fails.apply(x)

def fails(method, last):
    Fails.products, Fails.last = 0, last
    try:
        spectra(Square(), x, map="network", method=method, group=group)
    except UnsupportedModelError as error:
        assert "no more products in this process" in str(error)
    else:
        raise AssertionError("no error")
    # Both go on together afterwards.
    spectra(model, x, map="network", method="lanczos", group=group)

same()
fails("lanczos", 8)
fails("lanczos", 0)  # while the map is set up
fails("exact", 0)  # in the rows
distributed.destroy_process_group()
print("both agree", flush=True)
os._exit(0)  # all is checked: gloo's threads have been seen to abort while the interpreter ends
"""


def test_two_processes_agree_with_one_and_fail_together(agree_in_two_processes):
    agree_in_two_processes(PROGRAM)
