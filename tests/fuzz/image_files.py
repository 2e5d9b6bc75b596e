"""Images that say which they are, in every format a user may have; and what the pixels that were read say.

Each image is a few white squares on black: its class, its number and its orientation in bits, so that whatever a reader
makes of a data set, the pixels alone tell which image got which label.
"""

import io
import random
from collections.abc import Callable

import numpy as np
from PIL import Image
from torch import Tensor

SIZE = 16
#: Corners of the squares, each of 4×4 pixels within the central 14×14: class (2 bits), number (4 bits).
_BITS = ((2, 2), (2, 6), (2, 10), (6, 2), (6, 6), (6, 10))
#: Always white, and always black: another orientation has something else there.
_WHITE, _BLACK = (10, 2), ((10, 6), (10, 10))

#: An image's class and its number in its split.
Identity = tuple[int, int]


def drawing(identity: Identity) -> np.ndarray:
    """An image as a viewer shows it: uint8, shape ``(16, 16)``, 0 and 255."""
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    value = identity[0] + 4 * identity[1]
    for bit, (top, left) in [*enumerate(_BITS), (None, _WHITE)]:
        if bit is None or value >> bit & 1:
            pixels[top : top + 4, left : left + 4] = 255
    return pixels


def identified(image: Tensor) -> Identity | None:
    """Which image it is that a reader gave, uint8, shape ``(C, 14, 14)``; None if it is none of them."""
    grey = image.float().mean(0)
    if ((image.float() - grey).abs() > 60).any() or grey.min() > 100 or grey.max() < 155:
        return None

    def bit(corner: tuple[int, int]) -> bool:
        return bool(grey[corner[0] : corner[0] + 2, corner[1] : corner[1] + 2].mean() > 127)

    if not bit(_WHITE) or any(map(bit, _BLACK)):
        return None
    value = sum(bit(corner) << k for k, corner in enumerate(_BITS))
    return value % 4, value // 4


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _turned(pixels: np.ndarray, source: random.Random) -> bytes:
    """Lying on its side, with the note of a camera how to turn it."""
    orientation = source.randrange(2, 9)
    back = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].T,
        8: lambda x: np.rot90(x, -1),
    }
    exif = Image.Exif()
    exif[274] = orientation
    colour = Image.fromarray(np.ascontiguousarray(back[orientation](pixels))).convert("RGB")
    form, options = source.choice((("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})))
    return _saved(colour, form, exif=exif, **options)


def _sixteen(pixels: np.ndarray, source: random.Random) -> bytes:
    kind = source.choice(("<u2", "<i4", "<f4"))
    highest = source.choice((255, 65535)) if kind == "<i4" else 1.0 if kind == "<f4" else 65535
    scaled = (pixels // 255).astype(kind) * np.array(highest, kind)
    return _saved(Image.fromarray(scaled), "PNG" if kind == "<u2" and source.random() < 0.5 else "TIFF")


def _transparent(pixels: np.ndarray, source: random.Random) -> bytes:
    """Drawn in the transparency of a black picture, or white made transparent in a palette or in grey."""
    grey = Image.fromarray(pixels)
    way = source.randrange(3)
    if way == 0:
        layers = [np.zeros_like(pixels)] * source.choice((1, 3))
        form, options = source.choice((("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})))
        return _saved(Image.fromarray(np.stack([*layers, 255 - pixels], -1)), form, **options)
    if way == 1:
        return _saved(grey.quantize(2), "PNG", transparency=grey.quantize(2).getpixel((3, 11)))
    return _saved(grey, "PNG", transparency=255)


#: Formats by name, each made of the pixels to be seen.
_FORMATS: tuple[Callable[[np.ndarray, random.Random], bytes], ...] = (
    _turned,
    _sixteen,
    _transparent,
    lambda pixels, _: _saved(Image.fromarray(pixels), "PNG"),
    lambda pixels, _: _saved(Image.fromarray(pixels).convert("RGB"), "JPEG", quality=95),
    lambda pixels, _: _saved(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=95),
    lambda pixels, _: _saved(Image.fromarray(pixels).convert("CMYK"), "TIFF"),
    lambda pixels, _: _saved(Image.fromarray(pixels).convert("RGB").convert("YCbCr"), "TIFF"),
    lambda pixels, _: _saved(Image.fromarray(pixels).convert("RGB").convert("LAB"), "TIFF"),
    lambda pixels, _: _saved(Image.fromarray(pixels).convert("1"), "PNG"),
    lambda pixels, _: _saved(Image.fromarray(pixels).convert("P"), "BMP"),
    lambda pixels, _: _saved(Image.fromarray(pixels), "GIF", save_all=True, append_images=[Image.new("L", (16, 16))]),
    lambda pixels, _: _saved(Image.fromarray(pixels), "JPEG2000"),
    lambda pixels, source: _saved(Image.fromarray(pixels), "PNG")[: source.randrange(200)],
    lambda pixels, source: source.randbytes(100),
    lambda pixels, _: b"",
    # What decompresses to far more than it is, and what no memory holds.
    lambda pixels, _: _saved(Image.new("1", (60000, 60000)), "PNG") if pixels[0, 0] else b"P5 900000 900000 255 ",
)


def odd_image(identity: Identity, source: random.Random) -> bytes:
    """An image's file in some format, or one that cannot be read."""
    return source.choice(_FORMATS)(drawing(identity), source)


def plain_image(identity: Identity) -> bytes:
    """An image's file as PNG, in colour."""
    return _saved(Image.fromarray(drawing(identity)).convert("RGB"), "PNG")
