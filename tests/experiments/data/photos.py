"""Pictures and files of them, for tests of what decodes and streams."""

import io

import torch
from PIL import Image
from torch.nn import functional


def photo(width=60, height=45, seed=0):
    """Something smooth, as photographs are; its mean brightness tells the seeds apart."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return Image.fromarray((smooth[0].permute(1, 2, 0) * 255).byte().numpy())


def content(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer
