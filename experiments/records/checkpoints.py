"""The checkpoints of a run: the weights after each of some steps, and what resuming needs beside the last of them."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError
from skip_conditioning.experiments.records.fitting_weights import load_into
from skip_conditioning.experiments.records.tensor_files import read_checkpoint, save_checkpoint
from skip_conditioning.experiments.records.training_state import load_training_state, save_training_state


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where a run keeps its weights after ``step`` steps."""
    return run_dir / "checkpoints" / f"step_{step:09d}.safetensors"


def training_state_path(run_dir: Path, step: int) -> Path:
    """Where a run keeps, beside its weights, the optimiser's state after ``step`` steps."""
    return run_dir / "checkpoints" / f"state_{step:09d}.safetensors"


def list_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """Steps and files of a run's checkpoints of weights, in order, without temporary files."""
    matches = (
        (re.fullmatch(r"step_(\d+)\.safetensors", path.name), path) for path in (run_dir / "checkpoints").glob("step_*")
    )
    return sorted((int(match[1]), path) for match, path in matches if match)


def last_whole_step(directory: Path) -> int:
    """The last step for which a run has both weights and training state; 0 if there is none."""
    steps = (step for step, _ in list_checkpoints(directory) if training_state_path(directory, step).exists())
    return max(steps, default=0)


def save_run(
    directory: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, rng: Mapping[str, Tensor]
) -> None:
    """Write a run's weights, then the training state that resuming needs too.

    Raises:
        InputError: A file cannot be written, for instance because the disk is full.
    """
    save_checkpoint(checkpoint_path(directory, step), model.state_dict(), {"step": str(step)})
    save_training_state(training_state_path(directory, step), optimizer, rng)


def load_run(directory: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Put a model and its optimiser into the state of a step; returns the saved states of the random streams.

    Without a training state of that step, which then is 0, nothing is changed and nothing returned.

    Raises:
        InputError: A file is damaged, or of another model or optimiser.
    """
    if not training_state_path(directory, step).exists():
        return {}
    path = checkpoint_path(directory, step)
    try:
        try:
            load_into(model, path)
        except NonFiniteError:
            # The run was killed after it diverged and before it noticed; its next step shows it again.
            model.load_state_dict(read_checkpoint(path)[0])
        return load_training_state(training_state_path(directory, step), optimizer)
    except InputError as error:
        advice = f"or remove {directory} and repeat the command: that run alone starts anew"
        raise InputError(f"{error}; {advice}") from error


def drop_older(directory: Path, step: int, keep: Callable[[int], bool]) -> None:
    """Remove the training states of steps before ``step``, and the weights of steps for which ``keep`` is false."""
    for older, path in list_checkpoints(directory):
        if older < step:
            training_state_path(directory, older).unlink(missing_ok=True)
            if not keep(older):
                path.unlink()
