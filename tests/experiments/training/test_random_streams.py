"""The global random streams: seeded alike, saved and put back, in the same number of bytes at any time."""

import random

import numpy as np
import torch

from skip_conditioning.experiments.training.random_streams import rng_states, seed_streams, set_rng_states


def draws():
    normal = [random.gauss(0, 1), np.random.standard_normal(), torch.randn(()).item()]
    return [*normal, random.random(), np.random.rand(), torch.rand(()).item(), random.getrandbits(40)]


def test_one_seed_is_for_all_streams():
    seed_streams(5)
    first = draws()
    seed_streams(5)
    assert draws() == first
    seed_streams(2**32 + 6)
    assert not set(draws()) & set(first)


def test_states_are_put_back_also_between_the_two_numbers_of_a_normal_pair():
    sizes = set()
    for count in range(4):
        seed_streams(count)
        for _ in range(count):
            draws()
        states = rng_states()
        sizes.add(tuple((name, state.numel(), state.dtype) for name, state in states.items()))
        expected = [draws(), draws()]
        set_rng_states(states)
        assert [draws(), draws()] == expected
    assert len(sizes) == 1
    assert {dtype for _, _, dtype in next(iter(sizes))} == {torch.uint8}


def test_states_of_older_checkpoints_leave_the_other_streams_alone():
    seed_streams(1)
    state = rng_states()
    set_rng_states({"cpu": state["cpu"]})
    assert all(torch.equal(one, state[name]) for name, one in rng_states().items())
