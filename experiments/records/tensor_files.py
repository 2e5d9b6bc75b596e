"""Safetensors files of tensors and text: they cannot run code, and are never half-written."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError

#: Characters of a name in a message.
_LONGEST = 80


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
    check_is_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error


def check_is_file(path: Path) -> None:
    """Raise ``InputError`` unless there is a file of this name."""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
        if "\0" in str(path):
            raise ValueError("it holds a zero byte")
    except (OSError, ValueError) as error:
        raise InputError(f"{quoted(path)} cannot be the name of a file ({_reason(error)})") from error
    if is_folder:
        raise InputError(f"{path} is a folder; give one of the files in it")
    if not is_file:
        raise InputError(f"{path} does not exist")


def unreadable(path: Path, error: Exception) -> InputError:
    """The error for a file that ends too early or is no safetensors file."""
    return InputError(f"{path} is truncated or no safetensors file ({_reason(error)}); save it again")


def quoted(text: object) -> str:
    """A name from a file as messages show it: in quotation marks, on one line, and not too long."""
    name = str(text)
    return repr(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…")


def _reason(error: Exception) -> str:
    """The first line of an error's message, not too long."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return text.strip().splitlines()[0][: 2 * _LONGEST]
