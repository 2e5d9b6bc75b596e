"""Work dealt to two processes: the same results as in one, and errors that reach both."""

import pytest

from skip_conditioning.diagnostics.support.sharding import distribute

#: What each of the two processes runs: rank, and the file through which they meet.
PROGRAM = """
import os
import sys
import numpy as np
import torch
from torch import distributed
from skip_conditioning.diagnostics.errors import NonFiniteError
from skip_conditioning.diagnostics.linalg.operators import MatrixOperator
from skip_conditioning.diagnostics.support.sharding import distribute
from skip_conditioning.diagnostics.linalg.slq import lanczos_density

class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)

torch.set_num_threads(1)
rank, meeting = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
group, done = distributed.group.WORLD, []

def work(index):
    done.append(index)
    return index**2

assert distribute(range(3, 8), work, group) == [9, 16, 25, 36, 49]
assert done == ([3, 5, 7], [4, 6])[rank]
assert distribute([5], work, group) == [25]  # one process has nothing to do
assert distribute([], work, group) == []

def fails(error, at):
    def attempt(index):
        if index >= at:
            raise error(index)
        return index
    return attempt

for at in (2, 3):  # the error is one process's, then the other's
    try:
        distribute(range(5), fails(NonFiniteError, at), group)
    except NonFiniteError as error:
        assert error.args == (at,), error.args
    else:
        raise AssertionError("no error")
try:
    distribute(range(4), fails(lambda index: Unpicklable(index, 0), 1), group)
except RuntimeError as error:
    assert str(error) == "Unpicklable: 1"
else:
    raise AssertionError("no error")

matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 40)))
for options in ({"vectors": 3, "steps": 8}, {"tolerance": 0.02}):
    alone = lanczos_density(MatrixOperator(matrix), **options)
    shared = lanczos_density(MatrixOperator(matrix), group=group, **options)
    assert shared.steps == alone.steps and shared.products == alone.products
    assert np.array_equal(shared.density.nodes, alone.density.nodes)
    assert np.array_equal(shared.density.weights, alone.density.weights)
    assert shared.density.mean() == alone.density.mean()
    assert (shared.sigma_max, shared.residual) == (alone.sigma_max, alone.residual)
distributed.destroy_process_group()
print("both agree", flush=True)
os._exit(0)  # all is checked: gloo's threads have been seen to abort while the interpreter ends
"""


def test_two_processes_agree_with_one_and_share_errors(agree_in_two_processes):
    agree_in_two_processes(PROGRAM)


def test_a_process_alone_does_everything_in_order():
    assert distribute([4, 2], lambda index: index + 1, None) == [5, 3]


def test_a_process_alone_raises_what_the_work_does():
    with pytest.raises(ZeroDivisionError):
        distribute([1, 0], lambda index: 1 / index, None)
