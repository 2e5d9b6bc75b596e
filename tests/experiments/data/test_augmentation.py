import pytest
import torch
from torch.nn import functional

from skip_conditioning.experiments.data.augmentation import (
    AUGMENTATIONS,
    crop_flip,
    draw_crop_flips,
    draw_parts,
    resize_parts,
)
from tests.unchanged import nothing_changes


def images(n=64, channels=3, height=8, width=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_equals_cropping_and_flipping_image_by_image():
    batch, expected = images(), []
    drawn = draw_crop_flips(len(batch), seeded())
    for image, top, left, flip in zip(batch, *drawn, strict=True):
        crop = functional.pad(image, (4,) * 4)[:, top : top + 8, left : left + 6]
        expected.append(crop.flip(-1) if flip else crop)
    result = crop_flip(batch, drawn)
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    assert torch.equal(result, torch.stack(expected))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_same_seed_same_images_and_input_untouched(augmentation):
    batch = images()
    with nothing_changes(x=batch):
        drawn, same, other = (augmentation.draw(len(batch), seeded(seed)) for seed in (0, 0, 1))
        first, other = augmentation.apply(batch, drawn), augmentation.apply(batch, other)
    assert torch.equal(drawn, same)
    assert torch.equal(first, augmentation.apply(batch, same))
    assert not torch.equal(first, other)
    assert (first.dtype, first.shape) == (batch.dtype, batch.shape)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_what_is_drawn_for_an_image_is_done_to_it_in_any_batch(augmentation):
    batch = images(height=12, width=12)
    drawn = augmentation.draw(len(batch), seeded())
    assert drawn.shape[1:] == (len(batch),)
    whole = augmentation.apply(batch, drawn)
    for chosen in (torch.tensor([5]), torch.tensor([40, 3, 3, 17]), torch.arange(10, 20)):
        assert torch.equal(augmentation.apply(batch[chosen], drawn[:, chosen]), whole[chosen])


def test_draws_reach_every_offset_and_both_directions():
    drawn = draw_crop_flips(20_000, seeded())
    top, left, flip = drawn
    assert drawn.dtype == torch.int64
    assert flip.unique().tolist() == [0, 1]
    for offsets in (top, left):
        counts = torch.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert (counts / 20_000 - 1 / 9).abs().max() < 0.01
    assert abs(flip.double().mean() - 0.5) < 0.02
    assert torch.corrcoef(torch.stack([top, left, flip]).double()).fill_diagonal_(0).abs().max() < 0.03


def resized(part):
    """A smooth picture after a given part (width, height, left, top, flip) was scaled to the whole."""
    ramp = torch.arange(64.0)
    picture = (2 * ramp[:, None] + ramp[None, :]).expand(1, 1, 64, 64).to(torch.uint8)
    return resize_parts(picture, torch.tensor(part)[:, None])[0, 0].double()


def test_resized_crop_shows_the_part_that_was_drawn():
    whole = resized([1.0, 1.0, 0.0, 0.0, 0.0])
    assert torch.equal(whole, 2 * torch.arange(64.0)[:, None].double() + torch.arange(64.0))
    assert torch.equal(resized([1.0, 1.0, 0.0, 0.0, 1.0]), whole.flip(-1))
    # The right half, between a quarter and three quarters of the height: pixel centres half as far apart.
    columns, rows = 32 + (torch.arange(64) + 0.5) / 2 - 0.5, 16 + (torch.arange(64) + 0.5) / 2 - 0.5
    expected = 2 * rows[:, None] + columns.clamp(max=63)
    assert (resized([0.5, 0.5, 0.5, 0.25, 0.0]) - expected).abs().max() <= 0.51


def test_parts_lie_within_the_image_and_have_the_stated_areas_and_ratios():
    width, height, left, top, flip = draw_parts(20_000, seeded()).double()
    assert flip.unique().tolist() == [0, 1]
    assert min(left.min(), top.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    area, ratio = width * height, width / height
    assert 0.08 - 1e-6 <= area.min() < 0.09
    assert 3 / 4 - 1e-6 <= ratio.min() < 0.76
    assert 1.32 < ratio.max() <= 4 / 3 + 1e-6
    assert (width == 1).double().mean() < 0.01
    small = area < 0.5  # always fit, so there the draws are as they were
    assert abs(area[small].mean() - 0.29) < 0.01
    assert abs(ratio[small].log().mean()) < 0.01
    assert abs(flip.mean() - 0.5) < 0.02
    # In shares of the room that there is, any place is as likely, whatever the size.
    places = torch.stack([left / (1 - width), top / (1 - height), flip, area, ratio])[:, small]
    assert (places[:2].mean(1) - 0.5).abs().max() < 0.02
    assert torch.corrcoef(places).fill_diagonal_(0).abs().max() < 0.04
