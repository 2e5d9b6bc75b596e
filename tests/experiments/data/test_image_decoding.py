"""Decoding: the parts and the centre of an image are torch's to rounding, whatever kind of image it is."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from skip_conditioning.experiments.data.batches import generator
from skip_conditioning.experiments.data.image_decoding import (
    UnreadableImageError,
    decode_centre,
    decode_part,
    open_image,
    random_part,
)
from tests.experiments.data.photos import content, photo

SIZE = 32


def oracle(image, box, size):
    """torch's own antialiased bilinear scaling of what is cut out."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()
    left, top, right, bottom = map(int, box)
    cut = pixels[..., top:bottom, left:right]
    return functional.interpolate(cut, size, mode="bilinear", antialias=True)[0].round()


@pytest.mark.parametrize("size", [(60, 45), (45, 60), (224, 224), (300, 50), (16, 12), (1, 1), (3, 40)])
def test_parts_agree_with_torch(size):
    image = photo(*size)
    for seed in range(5):
        box, mirrored = random_part(*size, generator(seed))
        expected = oracle(image, box, (SIZE, SIZE))
        measured = torch.from_numpy(decode_part(content(image, "PNG"), SIZE, generator(seed)).copy())
        assert measured.dtype == torch.uint8
        assert (measured - (expected.flip(-1) if mirrored else expected)).abs().max() <= 1


@pytest.mark.parametrize("size", [(60, 45), (45, 60), (224, 224), (300, 50), (16, 12), (1, 1), (3, 40)])
def test_centres_agree_with_torch(size):
    image, (width, height) = photo(*size), size
    short = SIZE * 8 // 7
    scaled = [short * side // min(size) for side in (height, width)]
    expected = oracle(image, (0, 0, width, height), scaled)
    top, left = (round((side - SIZE) / 2) for side in scaled)
    measured = torch.from_numpy(decode_centre(content(image, "PNG"), SIZE).copy())
    assert (measured - expected[:, top : top + SIZE, left : left + SIZE]).abs().max() <= 1


def test_a_part_is_not_tinged_by_what_surrounds_it():
    pixels = np.full((400, 400, 3), 255, np.uint8)
    (left, top, right, bottom), _ = random_part(400, 400, generator(8))
    assert (right - left) * (bottom - top) < 400 * 400
    pixels[int(top) : int(bottom), int(left) : int(right)] = 0
    assert decode_part(content(Image.fromarray(pixels), "PNG"), SIZE, generator(8)).max() == 0


def test_large_jpegs_may_be_decoded_at_less_than_their_resolution():
    image = photo(1601, 1203)
    file = content(image, quality=95)
    for seed in range(4):
        box, mirrored = random_part(*image.size, generator(seed))
        expected = oracle(Image.open(file), box, (SIZE, SIZE))
        measured = torch.from_numpy(decode_part(file, SIZE, generator(seed)).copy())
        assert (measured - (expected.flip(-1) if mirrored else expected)).abs().max() <= 2


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (50, 500), (300, 300)])
def test_parts_are_those_of_random_resized_crop(width, height):
    parts = [random_part(width, height, generator(seed)) for seed in range(1000)]
    boxes = np.array([box for box, _ in parts])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= [width, height]).all()
    ratios = sides[:, 0] / sides[:, 1]
    assert ratios.min() > 0.72
    assert ratios.max() < 1.39
    assert 400 < sum(mirrored for _, mirrored in parts) < 600
    shares = sides.prod(1) / (width * height)
    # torchvision's own algorithm, drawn by another generator.
    random, expected = np.random.default_rng(0), []
    for _ in range(4000):
        for _ in range(10):
            area, ratio = random.uniform(0.08, 1) * width * height, np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                break
        else:
            w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        expected.append(w * h / (width * height))
    quantiles = np.linspace(0.05, 0.95, 10)
    assert np.abs(np.quantile(shares, quantiles) - np.quantile(expected, quantiles)).max() < 0.06


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_colour(mode):
    image = photo().convert("L") if mode == "I;16" else photo()
    file = content(image.convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    assert decode_part(file, SIZE, generator(0)).shape == decode_centre(file, SIZE).shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_the_camera_noted_whether_held_or_streamed(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = content(photo(), "PNG", exif=exif)
    held = open_image("here", turned.getvalue())
    assert held.size == (photo().size if orientation < 5 else photo().size[::-1])
    assert np.array_equal(decode_centre(turned, SIZE), decode_centre(content(held, "PNG"), SIZE))
    parts = (decode_part(file, SIZE, generator(1)) for file in (turned, content(held, "PNG")))
    assert np.array_equal(*parts)


def drawing(mode):
    """A square on a ground, in a mode of Pillow's; and what a viewer shows of it, in eight bits."""
    shown = np.full((8, 8), 255, np.uint8)
    shown[2:6, 2:6] = 64
    if mode == "I;16":
        return Image.fromarray(shown.astype(np.uint16) * 257), shown
    if mode == "LA":
        opaque = Image.fromarray(np.where(shown == 64, 255, 0).astype(np.uint8))
        return Image.merge("LA", (Image.new("L", (8, 8), 64), opaque)), shown
    black = Image.new("RGB", (8, 8))
    return Image.merge("RGBA", (*black.split(), Image.fromarray(255 - shown))), np.stack([shown] * 3, -1)


@pytest.mark.parametrize("mode", ["I;16", "LA", "RGBA"])
def test_sixteen_bits_and_transparent_parts_are_as_a_viewer_shows_them(mode):
    image, shown = drawing(mode)
    pixels = np.asarray(open_image("here", content(image, "PNG").getvalue()))
    assert np.array_equal(pixels, shown)
    streamed = decode_centre(content(image, "PNG"), 7)  # of a square that is not scaled
    assert np.array_equal(streamed, decode_centre(content(Image.fromarray(shown), "PNG"), 7))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (None, "the row holds no image"),
        (3, "the row holds a int"),
        ([1, 2], "the row holds a list"),
        ({"bytes": None, "path": None}, "the row holds no image"),
        (b"no image", "its format is unknown"),
        (content(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF").getvalue(), "its pixels are real numbers"),
        (content(Image.fromarray(np.full((4, 4), 255, np.int32)), "TIFF").getvalue(), "integers of 32 bits"),
    ],
)
def test_what_is_no_image_of_eight_or_sixteen_bits_is_named(encoded, message):
    with pytest.raises(UnreadableImageError, match=f"row 7: not a readable image.*{message}"):
        open_image("row 7", encoded)


def test_an_endless_strip_takes_no_memory():
    assert decode_centre(content(photo(20_000, 1), "PNG"), SIZE).shape == (3, SIZE, SIZE)
