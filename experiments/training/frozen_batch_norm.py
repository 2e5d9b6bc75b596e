"""Batch norm that always uses the statistics of one batch: an affine map of each channel that training does not change.

In train mode batch norm makes the images of a batch interact and rescales each layer anew at every step. With frozen
statistics a network is, at initialisation and on that batch, the same function, without either.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.networks.isolation import quiet
from skip_conditioning.experiments.data.batches import Batches, TrainingBatches
from skip_conditioning.experiments.data.streaming import StreamedBatches

#: Mean and biased variance of each channel, by batch norm.
Moments = dict[_BatchNorm, tuple[Tensor, Tensor]]


def freeze_batch_norms(model: nn.Module, images: Tensor, name: str) -> None:
    """Make every batch norm of a network normalise by its statistics of a batch, whatever mode it is put into.

    They are those by which batch norm in train mode normalises this very batch: its output is the same before and
    after, to rounding. They are computed in the weights' own precision and kept as running statistics (the variance is
    the biased one), so that the names and shapes in the state dict stay. Nothing else of the model changes, and no
    random stream.

    Args:
        model: In train mode, on its device.
        images: The batch, on the same device.
        name: What to call the network in messages.

    Raises:
        InputError: The network has no batch norm, or one that has no running statistics or is applied several times.
    """
    norms = hold_batch_norms(model, name)
    # Batch norms take their moments as the batch comes through, so that each sees what earlier ones made of it.
    with quiet(model, batch_mode="batch"), torch.no_grad(), _moments_taken(norms, name) as moments:
        model(images)
    for module, (mean, variance) in moments.items():
        _set_statistics(module, mean, variance)


def hold_batch_norms(model: nn.Module, name: str) -> dict[str, _BatchNorm]:
    """Make every batch norm of a network normalise by its running statistics, whatever mode it is put into.

    Args:
        model: The network, for instance with frozen statistics from a checkpoint.
        name: What to call it in messages.

    Returns:
        They, by path.

    Raises:
        InputError: There is none, or one has no running statistics.
    """
    norms = {path: module for path, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        raise InputError(f"--batch-norm frozen: {name} has no batch norm; leave the option out, or change the network")
    for path, module in norms.items():
        if module.running_mean is None or module.running_var is None:
            raise InputError(f"--batch-norm frozen: {path!r} of {name} keeps no running statistics to be frozen")
        module.__class__ = _held(type(module))  # as it is referred to from elsewhere, the module stays the same object
        module.eval()
    return norms


def whole_first_batch(batches: TrainingBatches) -> Tensor:
    """The images of a run's first step, those of all its processes, the same in each of them."""
    assert isinstance(batches, Batches | StreamedBatches)
    order = replace(batches.order, rank=0, ranks=1)
    if isinstance(batches, StreamedBatches):  # workers would decode what comes after it, too
        return replace(batches, order=order, workers=0).at(0)[0]
    return replace(batches, order=order).at(0)[0]


class _Held:
    """A batch norm that stays in eval mode."""

    def train(self, mode: bool = True) -> Any:
        """Stay in eval mode."""
        return super().train(False)  # type: ignore[misc]


#: One class for each, so that networks of one structure still have the same classes.
_HELD: dict[type[_BatchNorm], type[_BatchNorm]] = {}


def _held(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    if issubclass(kind, _Held):
        return kind
    return _HELD.setdefault(kind, type(f"Frozen{kind.__name__}", (_Held, kind), {}))


@contextmanager
def _moments_taken(norms: dict[str, _BatchNorm], name: str) -> Iterator[Moments]:
    """Inside, batch norms take the moments of what they are applied to for their statistics, and tell of them."""
    paths = {module: path for path, module in norms.items()}
    moments: Moments = {}

    def take(module: _BatchNorm, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if module in moments:
            raise InputError(
                f"--batch-norm frozen: {paths[module]!r} of {name} is applied several times in a forward pass, each "
                "time with other statistics; give each place a batch norm of its own"
            )
        x = args[0] if args else kwargs["input"]
        others = [dimension for dimension in range(x.dim()) if dimension != 1]
        variance, mean = torch.var_mean(x, others, correction=0)
        moments[module] = mean, variance
        _set_statistics(module, mean, variance)

    with ExitStack() as stack:
        for module in paths:
            stack.callback(module.register_forward_pre_hook(take, with_kwargs=True).remove)
        yield moments


@torch.no_grad()
def _set_statistics(module: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert module.running_mean is not None
    assert module.running_var is not None
    module.running_mean.copy_(mean)
    module.running_var.copy_(variance)
