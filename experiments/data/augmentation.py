"""Random crops and flips of whole batches of images, on whatever device they are.

The random numbers are drawn first, for a whole epoch at once; applying them to a batch draws none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

#: Black pixels added on each side before cropping.
_PADDING = 4


class Augmentation(NamedTuple):
    """A random change of images.

    Attributes:
        draw: From a number of images and a generator, random numbers for each: shape ``(k, N)``.
        apply: The change that these numbers make to images of shape ``(N, C, H, W)``: a new tensor, of the same shape
            and dtype.
    """

    draw: Callable[[int, torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


def draw_crop_flips(n: int, generator: torch.Generator) -> Tensor:
    """Independent uniform crops and fair flips for ``n`` images.

    Args:
        n: Number of images.
        generator: Source of the random numbers; they are on its device.

    Returns:
        Shape ``(3, n)``, int64: first row and first column of the crop in the padded image (0 to 8), and
        whether it is mirrored left to right (0 or 1).
    """
    device = generator.device
    corners = torch.randint(2 * _PADDING + 1, (2, n), generator=generator, device=device)
    return torch.cat([corners, torch.randint(2, (1, n), generator=generator, device=device)])


def crop_flip(images: Tensor, drawn: Tensor) -> Tensor:
    """Pad with black, crop back to the old size, mirror: one gather for the whole batch, CIFAR's usual augmentation.

    Args:
        images: Shape ``(N, C, H, W)``, any dtype.
        drawn: As from ``draw_crop_flips``, for as many images.

    Returns:
        Shape and dtype of ``images``; a new tensor.
    """
    n, channels, height, width = images.shape
    top, left, flip = drawn.to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None].bool(), columns.flip(0), columns)
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    padded = functional.pad(images, (_PADDING,) * 4)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def draw_parts(n: int, generator: torch.Generator) -> Tensor:
    """A random part of each of ``n`` images, 8 to 100 % of the area, and fair flips: ImageNet's usual augmentation.

    The area is uniform, the aspect ratio log-uniform from 3:4 to 4:3. Of ten draws the first that lies within the image
    counts; should there be none, the whole image.

    Args:
        n: Number of images.
        generator: Source of the random numbers; they are on its device.

    Returns:
        Shape ``(5, n)``: width, height, left, top (in shares of the image's sides) and flip (0 or 1).
    """
    area, ratio = torch.rand((2, 10, n), generator=generator, device=generator.device)
    area, ratio = 0.08 + 0.92 * area, math.log(3 / 4) + math.log(16 / 9) * ratio
    width, height = (area * ratio.exp()).sqrt(), (area / ratio.exp()).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(0, keepdim=True)
    width, height = (side.gather(0, first)[0].where(fits.any(0), 1.0) for side in (width, height))
    left, top, flip = torch.rand((3, n), generator=generator, device=generator.device)
    return torch.stack([width, height, left * (1 - width), top * (1 - height), flip.round()])


def resize_parts(images: Tensor, drawn: Tensor) -> Tensor:
    """Scale a part of each image to the whole (bilinear), and mirror.

    Args:
        images: Shape ``(N, C, H, W)``, uint8.
        drawn: As from ``draw_parts``, for as many images.

    Returns:
        Shape and dtype of ``images``; a new tensor.
    """
    width, height, left, top, flip = drawn.to(images.device)
    zero, scale = torch.zeros_like(width), width * (1 - 2 * flip)
    # Where in the image, whose sides run from -1 to 1, a point of the result comes from: one affine map each.
    maps = torch.stack([scale, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    pixels = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return pixels.round().to(images.dtype)


#: By the name that ``--augment`` gives them.
AUGMENTATIONS = {
    "crop": Augmentation(draw_crop_flips, crop_flip),
    "resized-crop": Augmentation(draw_parts, resize_parts),
}
