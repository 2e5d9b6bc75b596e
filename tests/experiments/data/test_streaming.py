"""Images streamed from files and tables: their index, batches, workers, and what goes wrong."""

import multiprocessing
import os
import pickle
import signal
import socket
import time
import warnings
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageOps
from pyarrow import parquet

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.data.batches import BatchOrder, Pixels
from skip_conditioning.experiments.data.datasets import load_data
from skip_conditioning.experiments.data.image_decoding import decode_centre
from skip_conditioning.experiments.data.image_index import open_images
from skip_conditioning.experiments.data.streaming import StreamedBatches, StreamedImages, decode_at
from tests.experiments.data.photos import photo

CPU = torch.device("cpu")
SIZE = 32
PLAIN = Pixels(None, None)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """Class folders, 12 training and 6 test images of two classes."""
    for split, per_class in (("train", 6), ("val", 3)):
        for label, name in enumerate(("bird", "cat")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for k in range(per_class):
                image = photo(60 + 5 * k, 45 + label, seed=10 * label + k)
                image.save(tmp_path / "data" / split / name / f"{k}.JPEG", quality=95)
    return tmp_path / "data"


def write_parquet(path, images, labels, *, classes=("bird", "cat"), column="image"):
    path.parent.mkdir(exist_ok=True)
    label = datasets.ClassLabel(names=list(classes)) if classes else datasets.Value("int64")
    features = datasets.Features({column: datasets.Image(), "label": label})
    rows = {column: [{"bytes": image, "path": None} for image in images], "label": list(labels)}
    parquet.write_table(pa.table(rows, schema=features.arrow_schema), path, row_group_size=2)


@pytest.fixture
def table(folder, tmp_path):
    """The same images in Parquet files, the training split in two."""
    data = open_images("birds", folder)
    for split, images in (("train", data.train), ("test", data.test)):
        for part, chosen in enumerate(torch.arange(len(images.labels)).chunk(2 if split == "train" else 1)):
            encoded = [Path(images.encoded(int(i))).read_bytes() for i in chosen]
            write_parquet(tmp_path / "table" / f"{split}-{part}.parquet", encoded, images.labels[chosen].tolist())
    return tmp_path / "table"


def opened(path, **options):
    return open_images("birds", path, image_size=SIZE, **options)


def batches(data, *, augment="resized-crop", workers=0, seed=3, batch_size=5, rank=0, ranks=1):
    order = BatchOrder(len(data.train.labels), batch_size, seed, augment, CPU, rank, ranks)
    return StreamedBatches(data, order, PLAIN, CPU, workers)


def seen(of, steps):
    return [(images.numpy().tobytes(), labels.tolist()) for images, labels in map(of.at, steps)]


def error_of(function, *args, **kwargs):
    message = ""
    try:  # pytest.raises would keep the batches, and so their workers, until garbage is collected
        function(*args, **kwargs)
    except InputError as error:
        message = str(error)
    assert message, "no error"
    assert "\n" not in message
    return message


# The index


def test_images_are_in_the_order_of_load_data(folder, table):
    for path in (folder, table):
        data, held = opened(path), load_data("birds", path, image_size=SIZE)
        for images, split in ((data.train, held.train), (data.test, held.test)):
            assert images.labels.tolist() == split.labels.tolist()
            measured = [Image.open(images.encoded(i)) for i in range(len(split))]
            measured = [ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BILINEAR) for image in measured]
            assert np.array_equal(np.stack(measured), split.images.permute(0, 2, 3, 1))
        assert data.num_classes == held.num_classes == 2


def test_limits_and_draws(folder, table):
    for path in (folder, table):
        data = opened(path, limit_train=7, limit_test=2, draw=lambda count: torch.tensor([count - 1, 0]))
        whole = opened(path)
        assert [data.train.where(i) for i in range(2)] == [whole.train.where(i) for i in (6, 0)]
        assert data.train.labels.tolist() == whole.train.labels[[6, 0]].tolist()
        assert len(data.test.labels) == 2
        assert "limit_test" in error_of(opened, path, limit_test=0)


def test_a_limit_leaves_further_files_alone(table):
    (table / "train-1.parquet").write_bytes(b"no Parquet")
    assert len(opened(table, limit_train=6).train.labels) == 6
    assert f"{table / 'train-1.parquet'} is not a readable Parquet file" in error_of(opened, table, limit_train=7)


def test_a_local_copy_needs_no_network_and_its_path_is_no_pattern(table, monkeypatch):
    def refuse(*_):
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    odd = table.rename(table.with_name("a [1] * b"))
    assert len(opened(odd).train.labels) == 12


def test_known_statistics(folder):
    data = open_images("imagenet", folder)
    assert (data.mean, data.std, data.size) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)


def test_hub(table, monkeypatch):
    files = {split: sorted(map(str, table.glob(f"{split}*"))) for split in ("train", "test")}
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, streaming: load("parquet", data_files=files))
    data = opened(None, limit_train=9)
    monkeypatch.setattr(datasets, "load_dataset", load)
    local = opened(table, limit_train=9)
    assert seen(batches(data), range(3)) == seen(batches(local), range(3))
    assert data.train.where(7) == "birds, train split, row 7"


def test_the_index_can_be_sent_to_another_process(folder, table):
    for path in (folder, table):
        images = opened(path).train
        again = pickle.loads(pickle.dumps(images))
        assert again.where(3) == images.where(3)
        assert Image.open(again.encoded(3)).size == Image.open(images.encoded(3)).size


@pytest.mark.parametrize(("split", "lacking"), [("val", "test"), ("train", "training")])
def test_class_missing_from_one_split(folder, split, lacking):
    (folder / split / "cat").rename(folder / "cat")
    assert f"class 'cat' is missing from the {lacking} split" in error_of(opened, folder)


def test_empty_class_folder_and_missing_split(folder):
    (folder / "train" / "ant").mkdir()
    assert f"{folder / 'train' / 'ant'} holds no images" in error_of(opened, folder)
    (folder / "train" / "ant").rmdir()
    (folder / "val").rename(folder / "validate")
    assert "has no test split" in error_of(opened, folder)
    assert "does not exist" in error_of(opened, folder / "nowhere")


@pytest.mark.parametrize("label", [5, -1, None])
def test_label_out_of_range_is_named_by_file_and_row(table, label):
    write_parquet(table / "train-0.parquet", [b""] * 2, [0, 4], classes=None)
    write_parquet(table / "train-1.parquet", [b""] * 3, [1, 2, 3], classes=None)
    write_parquet(table / "test-0.parquet", [b""] * 3, [0, label, 1], classes=None)
    message = error_of(opened, table)
    assert "test-0.parquet, row 1: label " in message
    assert f"{label} is out of range" in message


def test_columns_and_empty_tables(table):
    write_parquet(table / "test-0.parquet", [], [])
    assert "test-0.parquet holds no images" in error_of(opened, table)
    write_parquet(table / "train-1.parquet", [b""], [0], column="picture")
    assert "train-1.parquet has the columns picture, label" in error_of(opened, table)


# Batches


def test_batches_are_the_same_for_any_number_of_workers_from_any_step(folder, table):
    expected = seen(batches(opened(folder)), range(8))
    assert len({images for images, _ in expected}) == 8
    for workers in (1, 2):
        assert seen(batches(opened(folder), workers=workers), range(8)) == expected
    resumed = batches(opened(folder), workers=2)
    assert seen(resumed, [5, 6, 7, 7]) == [*expected[5:], expected[7]]
    assert seen(resumed, [2, 3]) == expected[2:4]
    assert seen(batches(opened(table), workers=1), range(4)) == expected[:4]


@pytest.mark.parametrize("augment", ["none", "resized-crop"])
def test_an_epoch_covers_each_image_once(folder, augment):
    data = opened(folder)
    of = batches(data, augment=augment, batch_size=4)
    assert (of.per_epoch, of.size_at(2)) == (3, 4)
    for epoch in range(2):
        labels = [of.at(step)[1].tolist() for step in range(3 * epoch, 3 * epoch + 3)]
        assert sorted(chain.from_iterable(labels)) == [0] * 6 + [1] * 6
    if augment == "none":
        images = torch.cat([of.at(step)[0] for step in range(3)])
        every = PLAIN(decode_at(data, torch.arange(12))[0])
        assert sorted(image.numpy().tobytes() for image in images) == sorted(i.numpy().tobytes() for i in every)


def test_an_image_is_cut_otherwise_in_each_epoch_and_trial(folder):
    data = opened(folder, limit_train=1)
    measured = [seen(batches(data, seed=seed), [step])[0][0] for seed in (1, 2) for step in (0, 1)]
    assert len(set(measured)) == 4


def test_ranks_share_a_batch(folder):
    data = opened(folder)
    whole, parts = batches(data).at(1), [batches(data, rank=rank, ranks=2).at(1) for rank in range(2)]
    assert [len(labels) for _, labels in parts] == [2, 3]
    for value, *own in zip(whole, *parts, strict=True):
        assert torch.equal(value, torch.cat(own))


def test_pixels_are_normalised_and_a_caller_may_write_on_them(folder):
    data = opened(folder)
    of = StreamedBatches(data, batches(data).order, Pixels(data.mean, data.std), CPU)
    images, _ = of.at(0)
    again = images.clone()
    images.zero_()
    assert torch.equal(of.at(0)[0], again)
    assert again.min() < 0


def test_unsuitable_augmentation(folder):
    assert "--augment crop" in error_of(batches, opened(folder), augment="crop")


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_in_parts(folder, workers, monkeypatch):
    monkeypatch.setattr("skip_conditioning.experiments.data.streaming._EVALUATION_BATCH", 2)
    data = opened(folder)
    whole = StreamedImages(data, PLAIN, CPU, workers)
    assert len(whole) == 6
    assert [len(labels) for _, labels in whole] == [2, 2, 2]
    parts = [StreamedImages(data, PLAIN, CPU, workers, rank, 4) for rank in range(4)]
    assert [sum(len(labels) for _, labels in part) for part in parts] == [1, 2, 1, 2]
    measured = torch.cat([images for images, _ in chain(*parts)])
    assert torch.equal(measured, torch.cat([images for images, _ in whole]))
    expected = [decode_centre(data.test.encoded(i), SIZE) for i in range(6)]
    assert torch.equal(measured, PLAIN(torch.from_numpy(np.stack(expected))))


def test_global_state_is_untouched(folder):
    rng, handler = torch.get_rng_state(), signal.getsignal(signal.SIGCHLD)
    of = batches(opened(folder), workers=1)
    of.at(0)
    list(StreamedImages(opened(folder), PLAIN, CPU, 1))
    assert torch.equal(torch.get_rng_state(), rng)
    assert signal.getsignal(signal.SIGCHLD) == handler
    del of
    assert not multiprocessing.active_children()


# What goes wrong


def damage(folder):
    file = folder / "train" / "cat" / "1.JPEG"
    file.write_bytes(file.read_bytes()[:700])
    return file


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named(folder, workers):
    file = damage(folder)
    of = batches(opened(folder), workers=workers)
    message = error_of(seen, of, range(of.per_epoch))
    assert message.startswith(f"{file}: not a readable image (")
    assert message.endswith("replace or remove it")
    assert str(file) in error_of(decode_at, opened(folder), torch.arange(12))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_left_out_and_named_once(folder, workers):
    expected = [labels for _, labels in seen(batches(opened(folder)), range(3))]
    file = damage(folder)
    data = opened(folder, skip_corrupt=True)
    with pytest.warns(UserWarning, match="left out") as caught:
        measured = [labels for _, labels in seen(batches(data, workers=workers), range(6))]
    assert [str(file) in str(warning.message) for warning in caught] == [True]
    assert len(data.unreadable) == 1
    # A cat is missing from one batch; the others are as ever.
    fewer = [old for old, new in zip(expected, measured, strict=False) if old != new]
    assert len(fewer) == 1
    assert sum(map(len, measured[:3])) == 11


def test_nothing_left(folder):
    damage(folder)
    data = opened(folder, skip_corrupt=True, draw=lambda _: torch.tensor([3]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "no image of a batch of 1 can be read" in error_of(batches(data).at, 0)


@pytest.mark.parametrize("image", [b"text", b"", None])
def test_a_corrupt_row_is_named(table, image):
    write_parquet(table / "train-1.parquet", [image], [1])
    message = error_of(decode_at, opened(table), torch.tensor([6]))
    assert message.startswith(f"{table / 'train-1.parquet'}, row 0: not a readable image")


def test_a_dead_worker_is_reported(folder):
    of = batches(opened(folder), workers=1)
    of.at(0)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.2)  # its death raises nothing here
    assert "a process that decodes images died" in error_of(seen, of, range(1, 20))
    assert seen(of, [1]) == seen(batches(opened(folder)), [1])


# Real data


def test_real_imagenet(real_data):
    data = open_images("imagenet", real_data, limit_train=40)
    of = StreamedBatches(data, BatchOrder(40, 20, 0, "resized-crop"), Pixels(data.mean, data.std), CPU, 1)
    images = torch.cat([of.at(step)[0] for step in range(2)])
    assert images.shape == (40, 3, 224, 224)
    assert images.mean((0, 2, 3)).abs().max() < 0.4
    assert 0.7 < images.std() < 1.4
    assert data.num_classes == 10
