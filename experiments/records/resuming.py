"""The files from which a run resumes: weights and training states, each written whole or not at all."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError
from skip_conditioning.experiments.records.checkpoints import (
    checkpoint_path,
    list_checkpoints,
    load_into,
    load_training_state,
    save_checkpoint,
    save_training_state,
    training_state_path,
)


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
        load_into(model, path)
    except NonFiniteError:
        # The run was killed after it diverged and before it noticed; its next step shows it again.
        model.load_state_dict(load_file(path))
    except InputError as error:
        raise _damaged(directory, error) from error
    try:
        return load_training_state(training_state_path(directory, step), optimizer)
    except InputError as error:
        raise _damaged(directory, error) from error


def _damaged(directory: Path, error: InputError) -> InputError:
    return InputError(f"{error}; or remove {directory} and repeat the command: that run alone starts anew")


def drop_older(directory: Path, step: int, keep: Callable[[int], bool]) -> None:
    """Remove the training states of steps before ``step``, and the weights of steps for which ``keep`` is false."""
    for older, path in list_checkpoints(directory):
        if older < step:
            training_state_path(directory, older).unlink(missing_ok=True)
            if not keep(older):
                path.unlink()
