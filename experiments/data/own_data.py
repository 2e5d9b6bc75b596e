"""Data of the user's own, named on the command line as ``package.module:batches`` or ``file.py:batches``.

The name stands for a function without arguments. It returns the training data, or ``{"train": ..., "test": ...}``, each
a pair of tensors, a ``Dataset`` of pairs, or batches of pairs that can be counted (a ``DataLoader``, a list). All is
held in memory, in the order in which it comes; which samples make a batch is decided as for any other data set.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.data.datasets import ImageData, Split, count_classes
from skip_conditioning.models.user_code import load_attribute, raised

_CONTRACT = (
    "a pair of tensors (inputs, class indices), a Dataset of such pairs, or a DataLoader or list of batches of them"
)


def load_own(name: str) -> ImageData:
    """The data that a user's function returns, real inputs as they are and bytes (uint8) as pixels.

    Args:
        name: ``package.module:batches``, or ``path/to/file.py:batches``.

    Raises:
        InputError: It cannot be imported, raises an error, or returns something else.
    """
    try:
        make = load_attribute(name)
    except ImportError as error:
        raise InputError(f"--data {name}: {error}") from error
    if not callable(make):
        raise InputError(f"--data {name} is a {type(make).__name__}; name a function that returns the data")
    try:
        data = make()
        parts = data if isinstance(data, Mapping) and "train" in data else {"train": data}
        splits = {part: _split(parts[part], f"--data {name}, {part}") for part in ("train", "test") if part in parts}
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise InputError(f"--data {name} {raised(error)}") from error
    train = splits["train"]
    classes = count_classes(name, train.labels)
    test = splits.get("test", Split(train.images[:0], train.labels[:0]))
    if len(test) and int(test.labels.max()) >= classes:
        raise InputError(f"--data {name}, test holds class {int(test.labels.max())}; train has 0 to {classes - 1}")
    return ImageData(name, train, test, classes, (), ())


def _split(part: Any, where: str) -> Split:
    if _is_pair(part):
        inputs, labels = part
    elif hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, list | tuple | Mapping):
        pairs = [_pair(part[index], f"{where}, sample {index}") for index in range(len(part))]
        inputs, labels = _stacked([(x[None], y.reshape(1)) for x, y in pairs], where)
    elif isinstance(part, Iterable) and _is_counted(part) and not isinstance(part, Mapping | str):
        inputs, labels = _stacked([_pair(batch, f"{where}, batch {k}") for k, batch in enumerate(part)], where)
    else:
        raise InputError(f"{where} is a {type(part).__name__}; return {_CONTRACT}")
    if inputs.is_sparse or inputs.is_quantized or inputs.is_nested or inputs.is_complex():
        raise InputError(f"{where} holds inputs that are sparse, quantised, nested or complex; give plain real tensors")
    if labels.is_floating_point() or labels.is_complex() or labels.shape != inputs.shape[:1]:
        shapes = f"inputs {tuple(inputs.shape)} and targets {tuple(labels.shape)} of {labels.dtype}"
        raise InputError(f"{where} holds {shapes}; a class index is needed for each sample")
    if inputs.is_meta or labels.is_meta:
        raise InputError(f"{where} holds tensors without values, of the device meta; give them on the CPU")
    if not len(labels) or int(labels.min()) < 0:
        raise InputError(f"{where} holds {'no samples' if not len(labels) else 'a negative class index'}")
    if not inputs.isfinite().all():
        raise InputError(f"{where} holds NaN or infinity in sample {int((~inputs.isfinite()).nonzero()[0, 0])}")
    return Split(inputs.detach(), labels.long())


def _is_counted(batches: Any) -> bool:
    """Whether batches come to an end; a loader has a length that it may not know."""
    try:
        return len(batches) >= 0
    except TypeError:
        return False


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, Tensor) for part in value)


def _pair(value: Any, where: str) -> tuple[Tensor, Tensor]:
    if isinstance(value, Mapping):
        raise InputError(
            f"{where} is a dictionary; train holds tensors only: train such a network in a loop of your own, with "
            "SpectrumMonitor or a callback of a trainer"
        )
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InputError(f"{where} is a {type(value).__name__}, not a pair (inputs, class indices)")
    return torch.as_tensor(value[0]), torch.as_tensor(value[1])


def _stacked(pairs: list[tuple[Tensor, Tensor]], where: str) -> tuple[Tensor, Tensor]:
    shapes = {tuple(x.shape[1:]) for x, _ in pairs}
    if len(shapes) != 1:
        named = " and ".join(map(str, sorted(shapes)[:2])) or "none"
        raise InputError(f"{where} holds samples of shapes {named}; all have to have the same")
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
