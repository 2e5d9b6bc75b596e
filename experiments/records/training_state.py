"""What resuming needs beside the weights: the optimiser's state and that of random streams, without pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.records.tensor_files import quoted, read_checkpoint, save_checkpoint, unreadable

_TRAINING_STATE = "training_state"
_SECTIONS = ("state", "groups")


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
    for section, entries in zip(_SECTIONS, (saved["state"], groups), strict=True):
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
        kind, shapes = plain["optimizer"], plain["shapes"]
        entries = {section: {int(i): dict(entry) for i, entry in plain[section].items()} for section in _SECTIONS}
        rng = {}
        for name, tensor in tensors.items():
            section, _, rest = name.partition(".")
            if section == "rng":
                rng[rest] = tensor
            else:
                index, _, key = rest.partition(".")
                entries[section][int(index)][key] = tensor
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, error) from error
    if kind != (own := type(optimizer).__name__):
        raise InputError(f"{path} is the state of {quoted(kind)}, not of {own}; keep the optimiser")
    if shapes != _parameter_shapes(optimizer):
        raise InputError(f"{path} belongs to parameters of other shapes; keep the model")
    saved = optimizer.state_dict()
    groups = _like(entries["groups"], saved["param_groups"], path)
    count = sum(len(group["params"]) for group in saved["param_groups"])
    if not all(0 <= index < count for index in entries["state"]):
        raise InputError(f"{path} is damaged: it holds the state of a parameter that there is not; save it again")
    optimizer.load_state_dict({"state": entries["state"], "param_groups": groups})
    return rng


def _like(groups: Mapping[int, dict[str, Any]], own: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Saved parameter groups as the optimiser's own are: the same options, with values of the same types.

    Raises:
        InputError: They are not.
    """
    if sorted(groups) != list(range(len(own))):
        raise InputError(f"{path} is damaged: it does not hold the optimiser's {len(own)} groups; save it again")
    for index, current in enumerate(own):
        group = groups[index]
        for key in current.keys() | group.keys():
            value, before = group.get(key), current.get(key)
            if isinstance(before, tuple) and isinstance(value, list):  # JSON made a list of it
                group[key] = value = tuple(value)
            same = key in group and key in current and _kind(value) == _kind(before)
            if not same or (key == "params" and value != before):
                raise InputError(f"{path} is damaged: the optimiser's {quoted(key)} is {quoted(value)}; save it again")
    return [groups[index] for index in range(len(own))]


def _kind(value: Any) -> Any:
    """What a value must have in common with the one it replaces: any number for any other, also in tensors."""
    if isinstance(value, tuple):
        return [_kind(entry) for entry in value]
    is_number = isinstance(value, int | float | Tensor) and not isinstance(value, bool)
    # An option that is a switch may be unset.
    return float if is_number else bool if value is None else type(value)


def _parameter_shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]
