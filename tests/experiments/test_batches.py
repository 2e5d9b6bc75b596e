from itertools import chain

import pytest
import torch

from experiments.batches import ORDER, Batches, Pixels, derive_seed, generator
from experiments.data import load_data


def batches(n=10, batch_size=3, augment="none", seed=5):
    """Images that are as bright as their number, which is also their label."""
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 8, 8).contiguous()
    return Batches(images, torch.arange(n), Pixels(None, None), batch_size, augment, seed)


def labels(of, steps):
    return [of.at(step)[1].tolist() for step in steps]


def epochs(of, count):
    """The labels of each epoch in the order seen."""
    return [[*chain.from_iterable(labels(of, range(of.per_epoch * e, of.per_epoch * (e + 1))))] for e in range(count)]


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(10, 5, [5, 5]), (11, 3, [3, 3, 3, 2]), (9, 4, [4, 4]), (3, 8, [3]), (1, 4, [1]), (2, 1, [1, 1])],
)
def test_a_single_image_left_over_is_passed_over(n, batch_size, sizes):
    assert [len(batch) for batch in labels(batches(n, batch_size), range(len(sizes)))] == sizes
    assert batches(n, batch_size).per_epoch == len(sizes)


def test_an_epoch_covers_every_image_once_in_a_new_order():
    found = epochs(batches(12, 5), 4)
    assert all(sorted(epoch) == list(range(12)) for epoch in found)
    assert len({tuple(epoch) for epoch in found}) == 4


def test_the_image_left_over_is_another_one_each_epoch():
    left_over = [{*range(10)} - {*epoch} for epoch in epochs(batches(10, 3), 8)]
    assert all(len(images) == 1 for images in left_over)
    assert len(set.union(*left_over)) > 2


def test_a_batch_is_a_function_of_the_step_alone():
    whole = labels(batches(), range(20))
    assert labels(batches(), reversed(range(20))) == whole[::-1]
    for step in (0, 7, 13):
        torch.manual_seed(step)
        assert labels(batches(), [step])[0] == whole[step]


def test_images_go_with_their_labels():
    images, found = batches().at(4)
    assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), found)


def test_trials_differ_and_all_images_at_once_keep_their_order():
    assert labels(batches(seed=1), range(6)) != labels(batches(seed=2), range(6))
    assert labels(batches(batch_size=None), [0, 9]) == [list(range(10))] * 2


@pytest.mark.parametrize("augment", ["crop", "resized-crop"])
def test_augmentation_is_a_function_of_seed_and_step(augment):
    data = load_data("digits", limit_train=12).train

    def at(step, seed=0, chosen=augment):
        return Batches(data.images, data.labels, Pixels(None, None), None, chosen, seed).at(step)[0]

    assert torch.equal(at(3), at(3))
    assert not torch.equal(at(3), at(4))
    assert not torch.equal(at(3), at(3, seed=1))
    assert not torch.equal(at(3), at(3, chosen="none"))


def test_global_random_state_is_not_used():
    before = torch.get_rng_state()
    batches(augment="crop").at(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_normalised_pixels_have_mean_zero_and_deviation_one():
    data = load_data("digits")
    pixels = Pixels.of(data, normalise=True)(data.train.images)
    assert abs(pixels.mean().item()) < 1e-4
    assert pixels.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    plain = Pixels.of(data, normalise=False)(data.train.images)
    assert (plain.min().item(), plain.max().item()) == (0, 1)


def test_seeds_of_different_purposes_differ():
    parts = [(0, 1), (1, 1), (0, 1, 1), (0, 2, 1), (1, 1, 1), (0, 1, 2), (1, 2)]
    assert len({derive_seed(*part) for part in parts}) == len(parts)
    assert generator(3, ORDER).initial_seed() == derive_seed(3, ORDER)
