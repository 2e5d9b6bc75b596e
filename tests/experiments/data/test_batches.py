from itertools import chain

import pytest
import torch

from skip_conditioning.experiments.data.augmentation import AUGMENTATIONS, Augmentation
from skip_conditioning.experiments.data.batches import (
    AUGMENTATION,
    ORDER,
    Batches,
    BatchOrder,
    HeldImages,
    Pixels,
    derive_seed,
    generator,
)
from skip_conditioning.experiments.data.datasets import Split, load_data
from tests.unchanged import nothing_changes

PLAIN = Pixels(None, None)


def numbered(n):
    """Images that are as bright as their number, which is also their label."""
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 8, 8).contiguous()
    return Split(images, torch.arange(n))


def batches(n=10, batch_size=3, augment="none", seed=5, **ranks):
    return Batches(numbered(n), PLAIN, BatchOrder(n, batch_size, seed, augment, **ranks))


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
    measured = epochs(batches(12, 5), 4)
    assert all(sorted(epoch) == list(range(12)) for epoch in measured)
    assert len({tuple(epoch) for epoch in measured}) == 4


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


def test_trials_differ_and_all_images_at_once_keep_their_order():
    assert labels(batches(seed=1), range(6)) != labels(batches(seed=2), range(6))
    assert labels(batches(batch_size=None), [0, 9]) == [list(range(10))] * 2


@pytest.mark.parametrize(("n", "batch_size"), [(1, 3), (2, 1), (10, 3), (11, 4), (12, 12), (9, None)])
def test_size_at_is_the_size_of_the_batch_in_every_epoch(n, batch_size):
    of = batches(n, batch_size)
    for step in range(3 * of.per_epoch):
        images, measured = of.at(step)
        assert len(images) == len(measured) == of.size_at(step) == of.size_at(step % of.per_epoch)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("batch_size", [None, 5])
def test_augmentation_is_a_function_of_seed_and_step(augment, batch_size):
    data = load_data("digits", limit_train=12).train

    def at(step, seed=0, chosen=augment):
        return Batches(data, PLAIN, BatchOrder(12, batch_size, seed, chosen)).at(step)[0]

    assert torch.equal(at(4), at(4))
    assert not torch.equal(at(3), at(4))
    assert not torch.equal(at(3), at(3, seed=1))
    assert not torch.equal(at(3), at(3, chosen="none"))


def drawn_by_image(of, epoch):
    """What an order draws for each image, in the images' own order, from the batches of an epoch."""
    parts = [of.at(step) for step in range(of.per_epoch * epoch, of.per_epoch * (epoch + 1))]
    chosen, drawn = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
    return drawn[:, chosen.argsort()]


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_draws_belong_to_the_images_and_each_epoch_draws_anew(augment):
    orders = [BatchOrder(12, batch_size, 5, augment) for batch_size in (4, 6, 12, None)]
    for epoch in range(3):
        expected = AUGMENTATIONS[augment].draw(12, generator(5, AUGMENTATION, epoch))
        for order in orders:
            assert torch.equal(drawn_by_image(order, epoch), expected)
    measured = [drawn_by_image(orders[0], epoch) for epoch in range(4)]
    assert not any(torch.equal(one, other) for i, one in enumerate(measured) for other in measured[:i])


def test_images_are_changed_as_drawn_for_them_before_they_become_floats():
    data = load_data("digits", limit_train=12)
    pixels = Pixels(data.mean, data.std)
    of = Batches(data.train, pixels, BatchOrder(12, 5, 3, "crop"))
    images, measured = of.at(4)
    order = BatchOrder(12, 5, 3, "crop")
    chosen, drawn = order.at(4)
    expected = AUGMENTATIONS["crop"].apply(data.train.images[chosen], drawn)
    assert torch.equal(images, pixels(expected))
    assert torch.equal(measured, data.train.labels[chosen])
    assert images.dtype == torch.float32


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(("augment", "batch_size"), [("none", 8), ("crop", 8), ("resized-crop", 7), ("crop", None)])
def test_shares_of_all_ranks_are_together_the_batch_of_one_process(ranks, augment, batch_size):
    data = load_data("digits", limit_train=30).train
    whole, *shares = (
        Batches(data, PLAIN, BatchOrder(30, batch_size, 2, augment, rank=rank, ranks=count))
        for rank, count in ((0, 1), *((rank, ranks) for rank in range(ranks)))
    )
    for step in range(2 * shares[0].per_epoch):
        parts = [share.at(step) for share in shares]
        images, measured = (torch.cat(part) for part in zip(*parts, strict=True))
        expected = whole.at(step + step // shares[0].per_epoch * (whole.per_epoch - shares[0].per_epoch))
        assert torch.equal(images, expected[0])
        assert torch.equal(measured, expected[1])
        sizes = [len(part[1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert {share.size_at(step) for share in shares} == {sum(sizes)}


@pytest.mark.parametrize(
    ("n", "ranks", "sizes"),
    [(12, 2, [8, 4]), (11, 2, [8]), (14, 3, [8, 6]), (13, 3, [8]), (10, 1, [8, 2]), (9, 1, [8]), (4, 2, [4])],
)
def test_fewer_than_two_images_a_process_are_left_over_for_all_of_them(n, ranks, sizes):
    shares = [batches(n, 8, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert {share.per_epoch for share in shares} == {len(sizes)}
    for step, size in enumerate(sizes):
        parts = [len(share.at(step)[1]) for share in shares]
        assert sum(parts) == size
        assert min(parts) >= 2


def test_there_is_a_step_however_few_the_images():
    assert batches(1, 8).per_epoch == 1
    assert batches(3, 8, ranks=2).per_epoch == 1
    assert labels(batches(1, 8), [0, 1]) == [[0], [0]]


def test_one_generator_on_the_cpu_serves_an_epoch_whatever_the_device(monkeypatch):
    devices = []

    def draw(n, source):
        devices.append(source.device.type)
        return AUGMENTATIONS["crop"].draw(n, source)

    monkeypatch.setitem(AUGMENTATIONS, "recorded", Augmentation(draw, AUGMENTATIONS["crop"].apply))
    order = BatchOrder(10, 5, 0, "recorded", device=torch.device("meta"))
    for step in range(6):
        assert {tensor.device.type for tensor in order.at(step)} == {"meta"}
    assert devices == ["cpu"] * 3


@pytest.mark.parametrize("augment", ["none", *AUGMENTATIONS])
def test_images_and_global_random_streams_are_left_as_they_are(augment):
    of = batches(augment=augment)
    with nothing_changes(x=of.split.images):
        labels(of, range(5))
        list(HeldImages(of.split, PLAIN))


@pytest.mark.parametrize("n", [3, 500, 501, 1203])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_parts_of_all_ranks_cover_the_images_to_evaluate_once_and_in_order(n, ranks):
    split = Split(torch.arange(n)[:, None, None, None].remainder(256).to(torch.uint8), torch.arange(n))
    parts = [HeldImages(split, PLAIN, rank, ranks) for rank in range(ranks)]
    assert {len(part) for part in parts} == {n}
    measured = [list(part) for part in parts]
    assert torch.equal(torch.cat([labels for part in measured for _, labels in part]), split.labels)
    assert torch.equal(torch.cat([images for part in measured for images, _ in part]), PLAIN(split.images))
    assert max(len(labels) for part in measured for _, labels in part) <= 500
    counts = [sum(len(labels) for _, labels in part) for part in measured]
    assert max(counts) - min(counts) <= 1
    again = [labels for _, labels in parts[0]]
    assert all(torch.equal(one, other) for one, (_, other) in zip(again, measured[0], strict=True))


def test_normalised_pixels_have_mean_zero_and_deviation_one():
    data = load_data("digits")
    pixels = Pixels(data.mean, data.std)(data.train.images)
    assert abs(pixels.mean().item()) < 1e-4
    assert pixels.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    plain = PLAIN(data.train.images)
    assert (plain.min().item(), plain.max().item()) == (0, 1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pixels_have_the_memory_format_asked_for_and_the_same_values(memory_format):
    images = torch.randint(256, (4, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = Pixels((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), memory_format)(images)
    assert pixels.is_contiguous(memory_format=memory_format)
    assert torch.equal(pixels, Pixels((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))(images))


def test_seeds_of_different_purposes_differ():
    parts = [(0, 1), (1, 1), (0, 1, 1), (0, 2, 1), (1, 1, 1), (0, 1, 2), (1, 2)]
    assert len({derive_seed(*part) for part in parts}) == len(parts)
    assert generator(3, ORDER).initial_seed() == derive_seed(3, ORDER)
