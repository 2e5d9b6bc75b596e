"""Random crops and flips of whole batches of images, on whatever device they are."""

from __future__ import annotations

import math
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


def random_resized_crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Scale a random part of each image to the whole (bilinear), mirror half of the images.

    The usual augmentation of ImageNet: the part takes a uniform 8 to 100 % of the area, at a log-uniform aspect
    ratio of 3:4 to 4:3.

    Args:
        images: Shape ``(N, C, H, W)``, uint8.
        generator: Where the randomness comes from.

    Returns:
        Shape and dtype of ``images``; a new tensor.
    """
    width, height, left, top, flip = draw_parts(len(images), generator).to(images.device)
    zero, scale = torch.zeros_like(width), width * (1 - 2 * flip)
    # Where in the image, whose sides run from -1 to 1, a point of the result comes from: one affine map each.
    maps = torch.stack([scale, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    pixels = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return pixels.round().to(images.dtype)


def draw_parts(n: int, generator: torch.Generator) -> Tensor:
    """Width, height, left, top (in shares of the image's sides) and flip (0 or 1) of ``n`` parts, shape ``(5, n)``.

    Of ten draws the first that lies within the image counts; should there be none, the whole image.
    """
    area, ratio = torch.rand((2, 10, n), generator=generator, device=generator.device)
    area, ratio = 0.08 + 0.92 * area, math.log(3 / 4) + math.log(16 / 9) * ratio
    width, height = (area * ratio.exp()).sqrt(), (area / ratio.exp()).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(0, keepdim=True)
    width, height = (side.gather(0, first)[0].where(fits.any(0), 1.0) for side in (width, height))
    left, top, flip = torch.rand((3, n), generator=generator, device=generator.device)
    return torch.stack([width, height, left * (1 - width), top * (1 - height), flip.round()])


#: By the name that ``--augment`` gives them.
AUGMENTATIONS = {"crop": random_crop_flip, "resized-crop": random_resized_crop_flip}
