"""Several processes started by ``torchrun``: joined to one group, of which the first writes."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import torch
from torch import distributed

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.support.sharding import run_in_all
from skip_conditioning.experiments.processes.machine import own_device

Result = TypeVar("Result")

#: Attribute of an error: whether it occurred in this process alone.
_OWN = "_is_of_one_process"

#: Seconds that a process without an error of its own leaves the first process to print the common one.
_PATIENCE = 10.0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[distributed.ProcessGroup | None]:
    """The group of all processes that ``torchrun`` started, joined inside; None for a single process."""
    if processes() == 1:
        yield None
        return
    _end_with_torchrun()
    if device.type == "cuda":
        torch.cuda.set_device(own_device(device))  # NCCL sends Python objects through the current device
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield distributed.group.WORLD
    except Exception as error:
        _mark(error, own=True)
        raise
    finally:
        distributed.destroy_process_group()


def _end_with_torchrun() -> None:
    """End this process when ``torchrun`` is killed, which it would not notice: it would train on, or wait for hours."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watches torchrun").start()


def processes() -> int:
    """How many processes ``torchrun`` started; 1 without it.

    Raises:
        InputError: The environment variables of ``torchrun`` are incomplete or wrong.
    """
    world_size = os.environ.get("WORLD_SIZE") or "1"
    if not world_size.isdecimal() or (
        int(world_size) > 1 and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    ):
        raise InputError(f"WORLD_SIZE={world_size} is set, but not by torchrun; start with torchrun, or unset it")
    return int(world_size)


def processes_here() -> int:
    """How many processes ``torchrun`` started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that writes and prints: the only one, or rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


def everywhere(work: Callable[[], Result], group: distributed.ProcessGroup | None) -> Result:
    """Let every process of a group do some work, and fail in all of them if it fails in any.

    Raises:
        Exception: What the work raised in one of them; the first process prints it.
    """
    try:
        return run_in_all(work, group)
    except Exception as error:
        _mark(error, own=False)
        raise


def is_to_print(error: BaseException) -> bool:
    """Whether this process prints an error that ends it; if not, it has first waited for the process that does.

    Every process prints an error of its own. An error common to all, such as a wrong option, is printed by the first
    process only, and the others wait, because ``torchrun`` ends all processes when one has ended.
    """
    own = getattr(error, _OWN, None)
    # Before the processes are joined, the first on each machine prints.
    if own or (is_first_process() if own is False else os.environ.get("LOCAL_RANK", "0") == "0"):
        return True
    time.sleep(_PATIENCE)
    return False


def _mark(error: Exception, *, own: bool) -> None:
    if not hasattr(error, _OWN):
        setattr(error, _OWN, own)


def leave(code: int) -> NoReturn:
    """End the program; under ``torchrun`` at once, as gloo's threads may abort while the interpreter shuts down."""
    if "RANK" not in os.environ:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
