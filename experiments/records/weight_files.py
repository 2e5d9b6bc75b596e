"""Files of weights as anybody may have saved them, read without running code from them."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.records.tensor_files import check_is_file, quoted, read_checkpoint

#: Files that ``torch.save`` wrote.
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
_INDEX = ".index.json"

#: How ``torch.load`` words what it refuses to call or build.
_REFUSED = re.compile(
    r"GLOBAL (?P<name>\S+) (?:was not an allowed|whose module)"
    r"|(?:reduce for unrecognized function|but got) <?(?:class|function|built-in function)? ?'?(?P<object>[\w.]+)"
)
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def read_weight_file(path: Path) -> Any:
    """What a file of weights holds, on the CPU: containers and tensors, as they were saved.

    Args:
        path: A ``.safetensors`` file, one by ``torch.save`` (`TORCH_SUFFIXES`), or the ``.index.json`` of weights that
            are split over several of these.

    Raises:
        InputError: The file is missing, damaged, of another kind, or holds more than containers and tensors.
    """
    name = path.name.lower()
    if name.endswith(_INDEX):
        return _read_shards(path)
    if name.endswith(".safetensors"):
        return read_checkpoint(path)[0]
    if name.endswith(TORCH_SUFFIXES):
        return read_torch_file(path)
    check_is_file(path)
    known = ", ".join((*TORCH_SUFFIXES[:-1], ".safetensors", _INDEX))
    raise InputError(f"{path}: weights are read from files {known}; {path.suffix!r} is none of them")


def read_torch_file(path: Path) -> Any:
    """What ``torch.save`` wrote, by ``torch.load(weights_only=True)``, which runs no code.

    Raises:
        InputError: The file is missing or damaged, or holds an object that is refused, which is named.
    """
    check_is_file(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # about a file that is then refused in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files make it raise a dozen unrelated classes
        raise InputError(f"{path} {_why_refused(path, error)}") from error


def _why_refused(path: Path, error: Exception) -> str:
    """Why a file is not loaded, and the way out; to be read after its name."""
    text = str(error)
    if isinstance(error, PermissionError):
        return "cannot be read; check its permissions"
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return f"does not fit into memory ({path.stat().st_size / 2**30:.2f} GiB on disk), or is damaged"
    if "TorchScript" in text:
        return "is a TorchScript program, which is not run; save the state_dict() of its module"
    if "legacy .tar" in text:
        return "is of PyTorch before 0.4; load it there or by hand, and save model.state_dict() again"
    if match := _REFUSED.search(text):
        name = quoted(match["name"] or match["object"])
        return f"needs {name}, which could run code and is not loaded; save model.state_dict() alone"
    if path.stat().st_size == 0:
        return "is empty; save it again"
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip or isinstance(error, EOFError):
        return "is damaged or truncated; copy or save it again"
    return f"is damaged, or no file of torch.save ({type(error).__name__}); save model.state_dict()"


def _read_shards(index: Path) -> dict[str, Any]:
    """The tensors of several files beside their index."""
    check_is_file(index)
    try:
        shards = json.loads(index.read_text())["weight_map"]
        if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{index} is no index of weights: it needs a weight_map from names to files") from error
    weights: dict[str, Any] = {}
    for shard in dict.fromkeys(shards.values()):
        file = index.parent / shard
        if Path(shard).name != shard or not shard.lower().endswith((".safetensors", *TORCH_SUFFIXES)):
            raise InputError(f"{index} names {quoted(shard)}; only files of weights beside the index are read")
        if not file.is_file():
            raise InputError(f"{index} needs {quoted(shard)}, which is not beside it; copy all its files")
        content = read_weight_file(file)
        expected = [name for name, of in shards.items() if of == shard]
        lacking = [name for name in expected if not isinstance(content, dict) or name not in content]
        if lacking:
            raise InputError(f"{file} lacks {quoted(lacking[0])}, which {index.name} says it holds; copy it again")
        weights |= {name: content[name] for name in expected}
    return weights
