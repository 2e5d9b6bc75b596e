"""Probes from files: one tensor, or several by the names under which the network's forward pass takes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.experiments.records.tensor_files import check_is_file, quoted, read_checkpoint
from skip_conditioning.experiments.records.weight_files import TORCH_SUFFIXES, read_torch_file

#: Names under which a file may hold targets beside its inputs; ``y`` is that of an experiment's own probe.
_TARGETS = ("targets", "target", "labels", "label", "y")


def read_probe_file(path: Path) -> Any:
    """The probe in a file, as the measuring functions take it.

    Args:
        path: ``.npy`` (one array), ``.npz`` or ``.safetensors`` (arrays by name), or a file by ``torch.save`` of a
            tensor, a tuple of positional inputs or a dictionary of keyword inputs.

    Returns:
        A tensor, a tuple or a dictionary of tensors; a ``Probe`` where the file holds one input and its targets. What
        is floating is of the default dtype, the rest as it is.

    Raises:
        InputError: The file is missing, damaged, of another kind, or holds anything but dense arrays of numbers.
    """
    check_is_file(path)
    name = path.name.lower()
    readers: dict[tuple[str, ...], Callable[[Path], Any]] = {
        (".npy", ".npz"): _read_numpy,
        (".safetensors",): lambda file: read_checkpoint(file)[0],
        TORCH_SUFFIXES: read_torch_file,
    }
    for suffixes, read in readers.items():
        if name.endswith(suffixes):
            return _as_batch(read(path), path)
    raise InputError(f"{path}: a probe is read from .npy, .npz, .safetensors or .pt files")


def _as_batch(content: Any, path: Path) -> Any:
    if isinstance(content, Tensor | np.ndarray):
        return _as_tensor(content, "", path)
    if isinstance(content, tuple | list) and content:
        return tuple(_as_tensor(part, str(index), path) for index, part in enumerate(content))
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no probe; save a tensor, or a dictionary of the network's inputs by name")
    named = {name: _as_tensor(part, name, path) for name, part in dict.items(content)}
    inputs = [name for name in named if name not in _TARGETS]
    if len(inputs) != 1:  # the network's forward pass says which of them it takes
        return named
    targets = [part for name, part in named.items() if name in _TARGETS]
    return Probe(named[inputs[0]], targets[0]) if targets else named[inputs[0]]


def _as_tensor(part: Any, name: Any, path: Path) -> Tensor:
    """A tensor of a probe, from an array or a tensor.

    Raises:
        InputError: It holds no numbers, or is not dense.
    """
    what = f"{path}: {quoted(name)}" if name != "" else str(path)
    if not isinstance(name, str):
        raise InputError(f"{what} is no name of an input; save a dictionary of the network's inputs by name")
    if isinstance(part, np.ndarray):
        part = _from_numpy(part, what)
    if not isinstance(part, Tensor):
        raise InputError(f"{what} is of type {type(part).__name__}; a probe holds tensors alone")
    if part.is_quantized or part.is_nested or part.layout != torch.strided or part.device.type == "meta":
        raise InputError(f"{what} is no dense tensor with values; save it as one")
    part = part.detach()
    return part.to(torch.get_default_dtype()) if part.is_floating_point() else part


def _from_numpy(array: np.ndarray, what: str) -> Tensor:
    if array.dtype.kind not in "biufc":
        raise InputError(f"{what} holds {quoted(array.dtype)} instead of numbers; save an array of numbers")
    if array.dtype.kind in "fc" and array.dtype.itemsize > (8 if array.dtype.kind == "f" else 16):  # long doubles
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.complex128)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch computes little with these
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise InputError(f"{what} holds numbers that are too large; save it as int64")
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _read_numpy(path: Path) -> Any:
    """The array of a ``.npy`` file, or those of a ``.npz`` file by their names."""
    try:
        if path.name.lower().endswith(".npy"):
            return _read_array(path)
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("no archive")
            return {name: file[name] for name in file.files}
    except Exception as error:  # damaged and hostile files make it raise a dozen unrelated classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise InputError(f"{path} cannot be read as NumPy arrays ({reason}); write it with numpy.save") from error


def _read_array(path: Path) -> np.ndarray:
    """The array in a file; a header that claims more than the file holds is an error, not an allocation."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("it is an archive; name it .npz")
    return np.array(array)
