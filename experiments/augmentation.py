"""Random crops and flips of whole batches of images, on whatever device they are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class CropFlips(NamedTuple):
    """What happens to each image of a batch; each field has shape ``(N,)``.

    Attributes:
        top: First row of the crop in the padded image, int64 in ``0 … 2·padding``.
        left: First column of the crop, int64 in the same range.
        flip: Whether the crop is mirrored left to right, bool.
    """

    top: Tensor
    left: Tensor
    flip: Tensor


def random_crop_flip(images: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """Pad with black, crop back to the old size at a random place, mirror half of the images.

    The usual augmentation of CIFAR, each image drawing its own crop and flip.

    Args:
        images: Shape ``(N, C, H, W)``, any dtype.
        generator: Where the randomness comes from. One on the images' device avoids a copy; one on the CPU
            gives the same images on every device.
        padding: Pixels added on each side.

    Returns:
        Shape and dtype of ``images``; a new tensor.
    """
    return crop_flip(images, draw_crop_flips(len(images), generator, padding=padding), padding=padding)


def draw_crop_flips(n: int, generator: torch.Generator, *, padding: int) -> CropFlips:
    """Independent uniform crops and fair flips for ``n`` images, on the generator's device."""
    device = generator.device
    top, left = torch.randint(2 * padding + 1, (2, n), generator=generator, device=device)
    flip = torch.randint(2, (n,), generator=generator, device=device).bool()
    return CropFlips(top, left, flip)


def crop_flip(images: Tensor, drawn: CropFlips, *, padding: int) -> Tensor:
    """Apply given crops and flips: one gather for the whole batch."""
    n, channels, height, width = images.shape
    top, left, flip = (field.to(images.device) for field in drawn)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], columns.flip(0), columns)
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    padded = functional.pad(images, (padding,) * 4)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
