"""Advice when training runs out of memory: which option to lower, and to what."""

import gc
import sys
import traceback
from collections.abc import Callable

import torch

#: How the CPU's allocator, which raises a plain RuntimeError, words it on Linux and macOS, and on Windows.
_CPU_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: on a GPU, in torch's CPU allocator, or in Python or numpy."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _CPU_MESSAGES)


def out_of_memory_advice(try_step: Callable[[int], None], batch_size: int, smallest: int = 2) -> str:
    """One line that says which batch size fits, found by trying, or what else to change if none does.

    Halves the batch until it fits, then bisects between the last two sizes, in multiples of a power of two that is an
    eighth to a quarter of what fits: about ``log2(batch_size / fits) + 3`` tries. Nothing else may hold the tensors of
    the failed step: those of an error that is being handled when this is called are dropped here, with the local
    variables of the frames that it came through.

    Linux lets CPU processes reserve more than there is and kills them when they use it, which no error announces; so
    print the error before asking for advice on a CPU.

    Args:
        try_step: One forward and backward pass of so many images, with whatever else is in memory while training. What
            it leaves behind (gradients, running statistics) stays.
        batch_size: Images of the step that ran out of memory, which is not tried again.
        smallest: Fewest images of a batch.

    Returns:
        Such as ``out of memory at a batch of 128 images; 48 fit: give --batch-size 48 or less``.

    Raises:
        Exception: Whatever ``try_step`` raises, other than for want of memory.
    """
    handled = sys.exception()
    if handled is not None:
        traceback.clear_frames(handled.__traceback__)
    _free()
    found = _largest_that_fits(try_step, batch_size, smallest)
    if found is not None:
        return f"out of memory at a batch of {batch_size} images; {found} fit: give --batch-size {found} or less"
    even = f", and {smallest} do not fit either" if smallest < batch_size else ""
    return (
        f"out of memory at a batch of {batch_size} images{even}: "
        "use a smaller model, --precision bfloat16 (on a GPU) or another --device"
    )


def _largest_that_fits(try_step: Callable[[int], None], fails: int, smallest: int) -> int | None:
    """About the largest batch that fits, below one that does not; None if not even the smallest does."""
    while fails > smallest:
        fits = max(fails // 2, smallest)
        if _fits(try_step, fits):
            break
        fails = fits
    else:
        return None
    multiple = 1 << max((fits // 4).bit_length() - 1, 0)
    low, high = fits // multiple, -(-fails // multiple)
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(try_step, middle * multiple):
            low, fits = middle, middle * multiple
        else:
            high = middle
    return fits


def _fits(try_step: Callable[[int], None], images: int) -> bool:
    """Whether a step of so many images ends without running out of memory."""
    try:
        try_step(images)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    # Only here is the error gone, and with it the frames that hold the step's tensors.
    _free()
    return fits


def _free() -> None:
    """Return what nothing refers to any more, cycles included, to the allocator and the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
