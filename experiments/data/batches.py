"""Training batches as a function of the step alone, so that a run resumed at any step sees the same ones."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from skip_conditioning.experiments.data.augmentation import AUGMENTATIONS
from skip_conditioning.experiments.data.datasets import Split, to_float

# Uses of a seed; each has a random stream of its own.
INITIALISATION, ORDER, AUGMENTATION, SUBSET, PROBE = range(5)

_EVALUATION_BATCH = 500


def derive_seed(*parts: int) -> int:
    """An independent seed from a base seed and what it is for (numpy's ``SeedSequence``)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


def generator(*parts: int) -> torch.Generator:
    """A CPU random stream of its own for a base seed and what it is for."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def share(count: int, rank: int, ranks: int) -> range:
    """Indices of the contiguous part that one of several processes takes of ``count`` images."""
    return range(count * rank // ranks, count * (rank + 1) // ranks)


class EvaluationBatches(Protocol):
    """The images on which a trainer evaluates."""

    def __len__(self) -> int:
        """Number of images, all processes together, unreadable ones included."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's images, float32, and labels, batch by batch, on its device."""


@dataclass(frozen=True)
class Pixels:
    """Turns stored images into what the network sees.

    Attributes:
        mean: Subtracted from each channel, or None.
        std: Divided by afterwards, or None.
        memory_format: Memory format of the result.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    memory_format: torch.memory_format = torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 ``(N, C, H, W)`` to float32 of the same shape; a user's own inputs as they are."""
        if images.dtype != torch.uint8:
            return images
        return to_float(images, self.mean, self.std).contiguous(memory_format=self.memory_format)


@dataclass(eq=False)
class BatchOrder:
    """Which images make the batch of a step, and which of them this process takes.

    Attributes:
        count: Number of images.
        batch_size: Images per batch, all processes together; None for all images, in their order, at every step.
        seed: The trial's; the same for all its arms.
        augment: A name in ``AUGMENTATIONS``, whose random numbers are drawn anew for each epoch, or ``none``.
        device: Where indices and random numbers are kept; they are moved there once an epoch.
        rank: Rank of this process among those that share each batch.
        ranks: Number of these processes; each takes a contiguous part of every batch.
    """

    count: int
    batch_size: int | None
    seed: int
    augment: str = "none"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    ranks: int = 1
    _epoch: int = field(default=-1, init=False)
    _order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), init=False)
    _drawn: Tensor | None = field(default=None, init=False)

    @property
    def per_epoch(self) -> int:
        """Steps in one pass; a last batch of fewer than two images a process, too few for batch norm, is left out."""
        if self.batch_size is None:
            return 1
        whole, rest = divmod(self.count, self.batch_size)
        return max(whole + (rest >= 2 * self.ranks), 1)

    def size_at(self, step: int) -> int:
        """Images in the batch of a step, all processes together."""
        if self.batch_size is None:
            return self.count
        return min(self.batch_size, self.count - step % self.per_epoch * self.batch_size)

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Indices of this process's images in the batch of a step, and the random numbers of each (last dimension)."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._begin(epoch)
        size = self.size_at(step)
        start = 0 if self.batch_size is None else batch * self.batch_size
        part = share(size, self.rank, self.ranks)
        chosen = self._order[start + part.start : start + part.stop]
        return chosen, None if self._drawn is None else self._drawn[..., chosen]

    def _begin(self, epoch: int) -> None:
        if self.batch_size is None:
            order = torch.arange(self.count)
        else:
            order = torch.randperm(self.count, generator=generator(self.seed, ORDER, epoch))
        self._epoch, self._order = epoch, order.to(self.device)
        if self.augment != "none":
            drawn = AUGMENTATIONS[self.augment].draw(self.count, generator(self.seed, AUGMENTATION, epoch))
            self._drawn = drawn.to(self.device)


class TrainingBatches:
    """The training batches of one run, wherever they come from.

    Attributes:
        order: Which images make the batch of a step.
    """

    order: BatchOrder

    @property
    def per_epoch(self) -> int:
        """Steps in one pass."""
        return self.order.per_epoch

    def size_at(self, step: int) -> int:
        """Images in the batch of a step, all processes together, unreadable ones included."""
        return self.order.size_at(step)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's part of the batch of a step: images, float32, and labels, on its device."""
        raise NotImplementedError


@dataclass(eq=False)
class Batches(TrainingBatches):
    """The batches of one run, of images that are all held on the training device.

    Attributes:
        split: Images, shape ``(N, C, H, W)``, uint8, and labels, on the device.
        pixels: Makes floats of them.
        order: On the same device.
    """

    split: Split
    pixels: Pixels
    order: BatchOrder

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's part of the batch of a step: images, float32, and labels."""
        chosen, drawn = self.order.at(step)
        images, labels = self.split.images[chosen], self.split.labels[chosen]
        if drawn is not None:
            images = AUGMENTATIONS[self.order.augment].apply(images, drawn)
        return self.pixels(images), labels


@dataclass(eq=False)
class HeldImages:
    """Images to evaluate on, all held on the device.

    Attributes:
        split: Images, uint8, and labels.
        pixels: Makes floats of them.
        rank: Rank of this process among those that share the images.
        ranks: Number of these processes; each takes a contiguous part.
    """

    split: Split
    pixels: Pixels
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        """Number of images, all processes together."""
        return len(self.split)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's images, float32, and labels, batch by batch."""
        part = share(len(self), self.rank, self.ranks)
        for start in part[::_EVALUATION_BATCH]:
            chosen = slice(start, min(start + _EVALUATION_BATCH, part.stop))
            yield self.pixels(self.split.images[chosen]), self.split.labels[chosen]
