"""Where a result comes from: versions, hardware and revision, recorded with every run."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def versions() -> str:
    """Python's and the main packages' versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "skip-conditioning"))
    return f"python {platform.python_version()}, {packages}"


def device_name(device: torch.device) -> str:
    """The kind of hardware, such as ``cpu (x86_64, 2 threads)``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)"


def git_revision() -> str:
    """The commit of the code, marked if files were changed since; ``unknown`` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
