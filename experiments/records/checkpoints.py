"""Checkpoints that cannot run code and are never half-written: weights, and what resuming needs beside them.

Everything is written as safetensors. Users' own ``.pt`` and ``.pth`` files are read through
``torch.load(weights_only=True)``, which builds tensors and plain containers and refuses everything else.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError, near_matches

# Prefixes that data parallelism and compilation put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
# Where training scripts keep the weights in a larger dictionary.
_NESTED = ("state_dict", "model_state_dict", "model")
_TRAINING_STATE = "training_state"


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


def save_checkpoint(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text as one safetensors file: wholly or not at all, replacing an older one.

    Args:
        path: File to write; its folder is made if missing.
        state: Tensors on any device. Tied tensors are written once per name: each name loads on its own.
        metadata: Text kept in the file's header.

    Raises:
        InputError: The file cannot be written, for instance because the disk is full; nothing is left behind.
    """
    stored, storages = {}, set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(stored, temporary, dict(metadata))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in stored.values()) / 2**20
        raise InputError(
            f"cannot write {path} ({size:.1f} MiB): {error}; free some space or write to another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the text that :func:`save_checkpoint` wrote.

    Raises:
        InputError: There is no such file, or it is not a complete safetensors file.
    """
    _check_is_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU, without ever running code from the file.

    Weights may be nested under ``state_dict``, ``model_state_dict`` or ``model``; ``module.`` and
    ``_orig_mod.`` are removed if all names begin with them.

    Args:
        path: A ``.safetensors`` file, or a ``.pt`` or ``.pth`` file.

    Raises:
        InputError: The file is missing, truncated, of another kind, or holds anything but tensors.
    """
    _check_is_file(path)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise InputError(f"{path}: weights are read from .safetensors, .pt or .pth files, not {path.suffix!r}")
    state = read_checkpoint(path)[0] if path.suffix == ".safetensors" else _read_torch(path)
    while isinstance(state, Mapping) and (key := next((k for k in _NESTED if isinstance(state.get(k), Mapping)), "")):
        state = state[key]
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path} holds no weights; save model.state_dict()")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"{path} holds {name!r}, which is no tensor; save model.state_dict() alone")
    return _without_wrappers(state)


def load_into(model: nn.Module, path: Path) -> None:
    """Load weights that must fit the model exactly; on any error the model is left as it was.

    Names are compared without wrappers' prefixes, so the model may be inside DDP or ``torch.compile``.
    Values are cast to the model's dtypes.

    Raises:
        InputError: The file cannot be read, or names or shapes differ from the model's.
        NonFiniteError: A weight is NaN or infinite.
    """
    weights = load_weights(path)
    own = model.state_dict()
    expected = _without_wrappers(own)
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    misshapen = [n for n in expected if n in weights and weights[n].shape != expected[n].shape]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing, first {missing[0]!r}.{near_matches(missing[0], unexpected)}")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected, first {unexpected[0]!r}.")
    if misshapen:
        name = misshapen[0]
        there, here = tuple(weights[name].shape), tuple(expected[name].shape)
        faults.append(f"{len(misshapen)} misshapen, first {name!r}: {there} in the file, {here} in the model.")
    if faults:
        raise InputError(f"{path} does not fit the model of {len(expected)} tensors: {' '.join(faults)}")
    cast = {name: weights[name].to(expected[name].dtype) for name in expected}
    for name, value in cast.items():
        if not value.isfinite().all():
            raise NonFiniteError(f"{path}: {name!r} holds NaN or infinity; use an earlier checkpoint")
    model.load_state_dict(dict(zip(own, cast.values(), strict=True)))


def save_training_state(path: Path, optimizer: torch.optim.Optimizer, rng: Mapping[str, Tensor]) -> None:
    """Write an optimiser's state and random number generators, exactly, without pickle.

    Args:
        path: File to write, atomically as :func:`save_checkpoint` does.
        optimizer: Any optimiser whose state is tensors, numbers, strings and tuples of them.
        rng: Generator states by name, as from ``random_streams.rng_states`` or ``Generator.get_state()``.

    Raises:
        InputError: The file cannot be written.
        TypeError: The optimiser keeps a value that JSON cannot hold.
    """
    tensors = {f"rng.{name}": state for name, state in rng.items()}
    saved = optimizer.state_dict()
    plain: dict[str, Any] = {
        "optimizer": type(optimizer).__name__,
        "shapes": _parameter_shapes(optimizer),
    }
    groups = dict(enumerate(saved["param_groups"]))
    for section, entries in (("state", saved["state"]), ("groups", groups)):
        plain[section] = {}
        for index, entry in entries.items():
            plain[section][index] = {k: v for k, v in entry.items() if not isinstance(v, Tensor)}
            tensors |= {f"{section}.{index}.{k}": v for k, v in entry.items() if isinstance(v, Tensor)}
    save_checkpoint(path, tensors, {_TRAINING_STATE: json.dumps(plain)})


def load_training_state(path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Put an optimiser into a saved state, bit for bit, and return the saved states of random generators by name.

    Raises:
        InputError: The file is missing, damaged, no training state, or of another optimiser or model; the
            optimiser is then left as it was.
    """
    tensors, metadata = read_checkpoint(path)
    if _TRAINING_STATE not in metadata:
        raise InputError(f"{path} holds no training state; give the state_*.safetensors file beside it")
    try:
        plain = json.loads(metadata[_TRAINING_STATE])
        plain["optimizer"], plain["shapes"], plain["state"], plain["groups"]
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    if plain["optimizer"] != (kind := type(optimizer).__name__):
        raise InputError(f"{path} is the state of {plain['optimizer']}, not of {kind}; keep the optimiser")
    if plain["shapes"] != _parameter_shapes(optimizer):
        raise InputError(f"{path} belongs to parameters of other shapes; keep the model")
    rng = {}
    for name, tensor in tensors.items():
        section, _, rest = name.partition(".")
        if section == "rng":
            rng[rest] = tensor
        else:
            index, _, key = rest.partition(".")
            plain[section][index][key] = tensor
    groups = [plain["groups"][str(i)] for i in range(len(plain["groups"]))]
    for group, current in zip(groups, optimizer.param_groups, strict=True):
        for key, value in group.items():
            if isinstance(current.get(key), tuple):  # JSON made a list of it
                group[key] = tuple(value)
    state = {int(index): entry for index, entry in plain["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return rng


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


def _parameter_shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = list(state)
    while prefix := next((p for p in _WRAPPERS if names and all(n.startswith(p) for n in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, state.values(), strict=True))


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give one of the files in it")
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # about a file that is then refused in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files make it raise a dozen unrelated classes
        raise InputError(
            f"{path} is damaged or holds more than tensors, and is not loaded because it could run code"
            f" ({type(error).__name__}); save model.state_dict() alone, or as safetensors"
        ) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is truncated or no safetensors file ({error}); save it again")
