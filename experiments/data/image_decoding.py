"""Images decoded as a viewer shows them: whole, their centres, or random parts to train on."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables.files import regular, shortened

# JPEG's decoder may halve images, but only to twice the size wanted; resizing, which is better, does the rest.
_REDUCING_GAP = 2

#: Formats whose images have sixteen bits where Pillow says 32.
_SIXTEEN_BITS = ("PNG", "PPM")

#: Left, top, right, bottom, in pixels.
Box = tuple[float, float, float, float]


class UnreadableImageError(InputError):
    """An image that cannot be decoded."""


def open_image(where: str, encoded: Any) -> Image.Image:
    """An image, decoded at its own size.

    Raises:
        UnreadableImageError: It is damaged, or no image.
    """
    try:
        with Image.open(encoded_file(encoded)) as image:
            image.load()
            return as_displayed(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, zlib.error, ...
        raise unreadable(where, error) from error


def encoded_file(encoded: Any) -> str | BytesIO:
    """What Pillow opens, of a row as Hugging Face keeps it (content or path), or of the content alone.

    Raises:
        OSError: The path is not that of a file.
        ValueError: It is neither.
    """
    content = encoded.get("bytes") if isinstance(encoded, dict) else encoded
    if isinstance(content, bytes):
        return BytesIO(content)
    path = encoded.get("path") if isinstance(encoded, dict) else None
    if isinstance(path, str) and content is None:
        return str(regular(Path(path)))
    nothing = encoded is None or (isinstance(encoded, dict) and content is None and path is None)
    raise ValueError("the row holds no image" if nothing else f"the row holds a {type(encoded).__name__}")


def as_displayed(image: Image.Image) -> Image.Image:
    """An image as a viewer shows it, in grey (``L``) or colour (``RGB``) of eight bits.

    Turned as the camera noted (EXIF), sixteen bits scaled to eight, transparent parts on white.

    Raises:
        ValueError: Its pixels are real numbers or integers of 32 bits, of which none is known to be white.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in _SIXTEEN_BITS):
        kind = "real numbers" if image.mode == "F" else "integers of 32 bits"
        raise ValueError(f"its pixels are {kind}; save it with eight or sixteen bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        on_white = Image.new("RGBA", layer.size, "white")
        on_white.alpha_composite(layer)
        return on_white.convert("L" if image.mode in ("LA", "La", "L") else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def unreadable(where: str, error: Exception) -> UnreadableImageError:
    """What a decoder raised, as an error that names the image and the way out."""
    reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else one_line(error)
    return UnreadableImageError(f"{where}: not a readable image ({reason}); replace or remove it")


def one_line(error: BaseException) -> str:
    """The first line of an error's message, cut short, or what kind it is."""
    return shortened(str(error).partition("\n")[0]) or type(error).__name__


def random_part(width: int, height: int, random: torch.Generator) -> tuple[Box, bool]:
    """The part of an image to train on, and whether to mirror it: torchvision's ``RandomResizedCrop`` and a fair flip.

    The area is uniform in 8 to 100 % of the image's, the ratio of the part's sides log-uniform from 3:4 to 4:3. Of ten
    draws the first that lies within the image counts; should there be none, the largest central part of such a ratio.
    """
    areas, ratios = torch.rand((2, 10), generator=random, dtype=torch.float64).tolist()
    left, top, flip = torch.rand(3, generator=random, dtype=torch.float64).tolist()
    for area, ratio in zip(areas, ratios, strict=True):
        area, ratio = width * height * (0.08 + 0.92 * area), 0.75 * (16 / 9) ** ratio
        part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < part_width <= width and 0 < part_height <= height:
            left, top = int(left * (width - part_width + 1)), int(top * (height - part_height + 1))
            break
    else:
        part_width, part_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - part_width) // 2, (height - part_height) // 2
    return (left, top, left + part_width, top + part_height), flip < 0.5


def decode_part(file: str | BytesIO, size: int, random: torch.Generator) -> np.ndarray:
    """A random part of an image, scaled to a square: uint8, shape ``(3, size, size)``."""
    with Image.open(file) as image:
        upright = _upright(image)
        part, mirrored = random_part(*upright.size, random)
        pixels, (left, top, right, bottom) = _load(upright, part, size)
    # Cut first, lest the scaling look beyond the part's edges.
    cut = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    within = (left - cut[0], top - cut[1], right - cut[0], bottom - cut[1])
    square = np.asarray(pixels.crop(cut).resize((size, size), Image.Resampling.BILINEAR, within))
    return (square[:, ::-1] if mirrored else square).transpose(2, 0, 1)


def decode_centre(file: str | BytesIO, size: int) -> np.ndarray:
    """An image's centre: of the shorter side scaled to 8/7 of ``size``; uint8, shape ``(3, size, size)``."""
    with Image.open(file) as image:
        upright = _upright(image)
        pixels, centre = _load(upright, _centre(*upright.size, size), size)
    return np.asarray(pixels.resize((size, size), Image.Resampling.BILINEAR, centre)).transpose(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    """An image that is not yet decoded, turned as the camera noted; decoded if it has to be turned."""
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else as_displayed(image)


def _centre(width: int, height: int, size: int) -> Box:
    """Where in an image the centre lies that scaling the whole, and then cutting, would leave."""
    short = size * 8 // 7
    scaled = [short * side // min(width, height) for side in (width, height)]
    left, top = (round((side - size) / 2) for side in scaled)
    x, y = width / scaled[0], height / scaled[1]
    return left * x, top * y, (left + size) * x, (top + size) * y


def _load(image: Image.Image, part: Box, size: int) -> tuple[Image.Image, Box]:
    """Decode as RGB, at a fraction of the resolution where that is ample, and where the part lies then."""
    width, height = image.size
    enough = [
        math.ceil(_REDUCING_GAP * size * whole / (last - first))
        for whole, first, last in ((width, part[0], part[2]), (height, part[1], part[3]))
    ]
    drafted = image.draft(None, (enough[0], enough[1]))
    scale = drafted[1][2] / width if drafted else 1.0
    left, top, right, bottom = (edge * scale for edge in part)
    return as_displayed(image).convert("RGB"), (left, top, right, bottom)
