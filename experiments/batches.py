"""Training batches as a function of the step alone, so that a run resumed at any step sees the same ones."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from experiments.augmentation import AUGMENTATIONS
from experiments.data import ImageData, to_float

# What a seed is for; each use has a stream of its own.
INITIALISATION, ORDER, AUGMENTATION, SUBSET, PROBE = range(5)


def derive_seed(*parts: int) -> int:
    """An independent seed from a base seed and what it is for (numpy's ``SeedSequence``)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


def generator(*parts: int) -> torch.Generator:
    """A CPU random stream of its own for a base seed and what it is for."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@dataclass(frozen=True, eq=False)
class Pixels:
    """Turns stored images into what the network sees.

    Attributes:
        mean: Subtracted from each channel, or None.
        std: Divided by afterwards, or None.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @classmethod
    def of(cls, data: ImageData, normalise: bool) -> "Pixels":
        """Per-channel normalisation, or pixels in [0, 1]."""
        return cls(data.mean, data.std) if normalise else cls(None, None)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 ``(N, C, H, W)`` to float32 of the same shape."""
        return to_float(images, self.mean, self.std)


@dataclass(eq=False)
class Batches:
    """The batches of one run.

    Attributes:
        images: Shape ``(N, C, H, W)``, uint8, on the training device.
        labels: Shape ``(N,)``, int64, likewise.
        pixels: Makes floats of them.
        batch_size: Images per batch; None for all of them, in their order, at every step.
        augment: A name in ``AUGMENTATIONS``, or ``none``.
        seed: The trial's; the same for all its arms.
    """

    images: Tensor
    labels: Tensor
    pixels: Pixels
    batch_size: int | None
    augment: str
    seed: int
    _epoch: int = field(default=-1, init=False)
    _order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), init=False)

    @property
    def per_epoch(self) -> int:
        """Steps in one pass; a single image left over is passed over, as batch norm cannot use it."""
        if self.batch_size is None:
            return 1
        whole, rest = divmod(len(self.labels), self.batch_size)
        return max(whole + (rest > 1), 1)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: images, float32, and labels."""
        images, labels = self.images, self.labels
        if self.batch_size is not None:
            epoch, place = divmod(step, self.per_epoch)
            chosen = self._order_of(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
            images, labels = images[chosen], labels[chosen]
        if self.augment != "none":
            images = AUGMENTATIONS[self.augment](images, generator(self.seed, AUGMENTATION, step))
        return self.pixels(images), labels

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = torch.randperm(len(self.labels), generator=generator(self.seed, ORDER, epoch))
            self._epoch, self._order = epoch, order.to(self.labels.device)
        return self._order
