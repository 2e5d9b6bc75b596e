import gc
import weakref

import numpy as np
import pytest
import torch

from experiments import out_of_memory
from experiments.out_of_memory import is_out_of_memory, out_of_memory_advice

ERRORS = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "linux": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    ),
    "windows": RuntimeError("[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you"),
    "python": MemoryError(),
}


def limited_to(limit, error=ERRORS["gpu"], tried=None):
    """A step for which so many images are the most that fit."""

    def try_step(images):
        if tried is not None:
            tried.append(images)
        if images > limit:
            raise error

    return try_step


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_the_batch_that_fits_is_named_whatever_ran_out(error):
    assert is_out_of_memory(error)
    tried = []
    advice = out_of_memory_advice(limited_to(50, error, tried), 128)
    assert advice == "out of memory at a batch of 128 images; 48 fit: give --batch-size 48 or less"
    assert tried == [64, 32, 48, 56]


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("DefaultCPUAllocator"), KeyboardInterrupt()]
)
def test_other_errors_are_none_of_its_business(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught:
        out_of_memory_advice(limited_to(10, error), 128)
    assert caught.value is error


def test_the_real_errors_of_torch_and_numpy_are_known():
    def try_step(images):
        torch.empty(2**60 // 4 if images > 8 else images)

    with pytest.raises(RuntimeError) as caught:
        try_step(9)
    assert is_out_of_memory(caught.value)
    assert "; 8 fit" in out_of_memory_advice(try_step, 32)
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, dtype=np.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("batch_size", [3, 5, 100, 128, 50_000])
def test_what_is_found_fits_is_nearly_the_most_and_takes_few_tries(batch_size, monkeypatch):
    monkeypatch.setattr(out_of_memory, "_free", lambda: None)  # many tries, which hold nothing
    for limit in {2, 3, 7, 8, 29, 99, 127, 1000, 33_333, batch_size - 1}:
        if limit >= batch_size:
            continue
        tried = []
        advice = out_of_memory_advice(limited_to(limit, tried=tried), batch_size)
        found = int(advice.split()[-3])
        assert f"; {found} fit: " in advice
        assert 0.8 * limit < found <= limit
        assert found in tried
        assert len(tried) == len(set(tried)) <= np.log2(batch_size / found) + 4
        assert all(2 <= images < batch_size for images in tried)


def test_when_no_batch_fits_other_ways_out_are_named():
    ways = "use a smaller model, --precision bfloat16 (on a GPU) or another --device"
    tried = []
    advice = out_of_memory_advice(limited_to(1, tried=tried), 9)
    assert advice == f"out of memory at a batch of 9 images, and 2 do not fit either: {ways}"
    assert tried == [4, 2]
    assert "9 images, and 6 do not fit either" in out_of_memory_advice(limited_to(5), 9, smallest=6)
    for batch_size in (1, 2):
        expected = f"out of memory at a batch of {batch_size} images: {ways}"
        assert out_of_memory_advice(limited_to(0), batch_size) == expected


@pytest.mark.parametrize("handled", [True, False], ids=["in the handler", "after it"])
def test_nothing_of_a_failed_step_is_left_when_the_next_is_tried(handled):
    held = []

    def try_step(images):
        assert not any(activations() is not None for activations in held)
        activations = torch.ones(images, requires_grad=True)
        cycle = [activations]
        cycle.append(cycle)
        held.append(weakref.ref(activations))
        if images > 10:
            raise torch.OutOfMemoryError

    gc.disable()  # so that it is the function that collects the cycle
    try:
        try:
            try_step(128)
        except torch.OutOfMemoryError:
            advice = out_of_memory_advice(try_step, 128) if handled else None
        advice = advice or out_of_memory_advice(try_step, 128)
    finally:
        gc.enable()
    assert "; 10 fit" in advice
    assert len(held) == 7
