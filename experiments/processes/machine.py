"""The machine and the software that a result comes from: device, cores, threads, versions and revision."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from skip_conditioning.diagnostics.errors import InputError

#: How torch's CPU allocator, which raises a plain RuntimeError, words it.
_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def choose_device(name: str) -> torch.device:
    """A device by name; ``auto`` is a GPU if there is one, under ``torchrun`` the GPU of this process.

    Raises:
        InputError: No such device, or it is not there.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}); try --device cpu") from error
    return own_device(device)


def own_device(device: torch.device) -> torch.device:
    """The device for this process: of several GPUs, that of its local rank."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile can compile for a device, with the smallest function.

    Raises:
        InputError: It cannot, for instance because there is no C++ compiler.
    """
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(2, device=device))
    except Exception as error:  # of a dozen classes, most of them private
        reason = str(error).partition("\n")[0]
        raise InputError(f"--compile does not work here ({reason}); install a C++ compiler, or leave it out") from error


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside: with small matrices more threads save seconds, and cost minutes where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def device_name(device: torch.device) -> str:
    """The kind of hardware, such as ``cpu (x86_64, 2 threads)``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> str:
    """Python's and the main packages' versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "skip-conditioning"))
    return f"python {platform.python_version()}, {packages}"


def git_revision() -> str:
    """The commit of the code, marked if files were changed since; ``unknown`` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@contextlib.contextmanager
def clear_memory_errors(
    advice: str = "give a smaller --batch-size, or more processes (torchrun)",
) -> Iterator[None]:
    """Turn an error for want of memory, on a GPU or not, into one line.

    Args:
        advice: The way out.

    Raises:
        InputError: There was not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise InputError(f"out of memory; {advice}") from error
