import torch
from torch.nn import functional

from experiments.augmentation import crop_flip, draw_crop_flips, random_crop_flip


def images(n=64, channels=3, height=8, width=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_equals_cropping_and_flipping_image_by_image():
    batch, padding = images(), 4
    expected = []
    drawn = draw_crop_flips(len(batch), seeded(), padding=padding)
    for image, top, left, flip in zip(batch, *drawn, strict=True):
        crop = functional.pad(image, (padding,) * 4)[:, top : top + 8, left : left + 6]
        expected.append(crop.flip(-1) if flip else crop)
    result = random_crop_flip(batch, seeded(), padding=padding)
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    assert torch.equal(result, torch.stack(expected))


def test_same_seed_same_images_and_input_untouched():
    batch, before = images(), images()
    assert torch.equal(random_crop_flip(batch, seeded()), random_crop_flip(batch, seeded()))
    assert not torch.equal(random_crop_flip(batch, seeded()), random_crop_flip(batch, seeded(1)))
    assert torch.equal(batch, before)


def test_global_random_state_is_not_used():
    before = torch.get_rng_state()
    random_crop_flip(images(), seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_reach_every_offset_and_both_directions():
    top, left, flip = draw_crop_flips(20_000, seeded(), padding=4)
    for offsets in (top, left):
        counts = torch.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert (counts / 20_000 - 1 / 9).abs().max() < 0.01
    assert abs(flip.double().mean() - 0.5) < 0.02
    assert torch.corrcoef(torch.stack([top, left, flip]).double()).fill_diagonal_(0).abs().max() < 0.03


def test_float_images_and_no_padding():
    batch = images().double()
    drawn = draw_crop_flips(len(batch), seeded(), padding=0)
    flipped = torch.where(drawn.flip[:, None, None, None], batch.flip(-1), batch)
    assert torch.equal(crop_flip(batch, drawn, padding=0), flipped)
