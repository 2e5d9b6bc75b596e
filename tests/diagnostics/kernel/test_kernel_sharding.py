"""The tangent kernel shared between two processes: what one alone computes, and an error in one is one in both."""

PROGRAM = """
import os, sys
from datetime import timedelta
import torch
from torch import distributed, nn
from skip_conditioning import tangent_kernel
from skip_conditioning.diagnostics.errors import UnsupportedModelError

rank, meeting = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group(
    "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=50)
)
group = distributed.group.WORLD
torch.manual_seed(0)

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(48, 3)
        self.gain = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x):
        return self.head((self.gain * torch.tanh(self.norm(self.conv(x)))).flatten(1))

model, x = Network().double(), torch.randn(5, 2, 6, 6, dtype=torch.float64)

def same():
    for training in (True, False):
        model.train(training)
        for options in ({}, {"outputs": "trace"}, {"batch_mode": "sample"}, {"memory_budget": 60_000}, {"x2": x[:3]}):
            alone, shared = tangent_kernel(model, x, **options), tangent_kernel(model, x, group=group, **options)
            assert alone.methods == shared.methods
            for name in (*alone.blocks, "total"):
                one, other = alone.block(name), shared.block(name)
                torch.testing.assert_close(other, one, rtol=0, atol=1e-13 * float(alone.total.abs().max()))

class Fails(torch.autograd.Function):
    passes = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Fails.passes += 1
        if rank == 0 and Fails.passes > 1:  # the first one is the check
            raise RuntimeError("no more passes in this process")
        return gradient

class Failing(Network):
    def forward(self, x):
        return super().forward(Fails.apply(self.gain[:2]) * x)

def fails():
    try:
        tangent_kernel(Failing().double(), x, group=group)
    except UnsupportedModelError as error:
        assert "no more passes in this process" in str(error)
    else:
        raise AssertionError("no error")
    tangent_kernel(model, x, group=group)  # both go on together

same()
fails()
distributed.destroy_process_group()
print("both agree", flush=True)
os._exit(0)  # all is checked: gloo's threads have been seen to abort while the interpreter ends
"""


def test_two_processes_agree_with_one_and_fail_together(agree_in_two_processes):
    agree_in_two_processes(PROGRAM)
