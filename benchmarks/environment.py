"""The environment of a measurement, as one line to print above its table."""

import torch

from skip_conditioning.experiments.processes.machine import device_name, git_revision, versions


def environment(device: torch.device) -> str:
    """Hardware, threads, versions and commit."""
    return f"{device_name(device)}; {versions()}; commit {git_revision()}\n"
