import io
import os
import socket
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.presets import preset
from skip_conditioning.experiments.data.datasets import load_data, to_float
from skip_conditioning.experiments.data.image_index import open_images
from skip_conditioning.experiments.data.training_data import open_data
from skip_conditioning.experiments.processes.ranks import Ranks


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def pixels(n, size=(32, 32), channels=3, seed=0):
    shape = (n, *size, channels) if channels == 3 else (n, *size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_parquet(path, images, labels, *, columns=("img", "label"), classes=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    label = datasets.ClassLabel(num_classes=classes) if classes else datasets.Value("int64")
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: label})
    rows = {columns[0]: [encoded(image) for image in images], columns[1]: list(labels)}
    parquet.write_table(pa.table(rows, schema=features.arrow_schema), path, row_group_size=4)


def write_cifar(folder, n=12):
    images = pixels(n)
    write_parquet(folder / "train-00000-of-00001.parquet", images, [i % 10 for i in range(n)])
    write_parquet(folder / "test-00000-of-00001.parquet", images[:4], [0, 1, 2, 3])
    return images


def write_class_folders(folder, sizes=((40, 50), (60, 30)), classes=("bird", "cat"), per_class=3):
    for split in ("train", "val"):
        for i, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for k in range(per_class):
                Image.fromarray(pixels(1, sizes[k % 2], seed=9 * i + k)[0]).save(folder / split / name / f"{k}.JPEG")


def error_of(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        load_data(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is loaded


def test_digits_need_no_files_and_repeat(no_network):
    first, second = load_data("digits"), load_data("digits")
    assert first.train.images.shape == (1500, 1, 28, 28)
    assert first.test.images.shape == (297, 1, 28, 28)
    assert first.train.images.dtype == torch.uint8
    assert first.train.labels.dtype == torch.int64
    assert torch.equal(first.train.images, second.train.images)
    assert set(first.train.labels.tolist()) == set(first.test.labels.tolist()) == set(range(10))
    together = torch.cat([first.train.images, first.test.images]).flatten(1)
    assert len(together.unique(dim=0)) == 1797, "training and test images overlap"
    some = load_data("digits", limit_train=7, limit_test=5)
    assert torch.equal(some.train.images, first.train.images[:7])
    assert (len(some.test), some.mean) == (5, first.mean)


@pytest.mark.parametrize("inside", ["", "cifar10", "cifar10/plain_text", "data"])
def test_parquet_pixels_and_labels_wherever_the_folder_is(tmp_path, inside, no_network):
    images = write_cifar(tmp_path / inside)
    data = load_data("cifar10", tmp_path)
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), images)
    assert data.train.images.is_contiguous()
    assert data.train.labels.tolist() == [i % 10 for i in range(12)]
    assert data.test.labels.tolist() == [0, 1, 2, 3]
    assert data.num_classes == 10


def test_parquet_parts_keep_their_order_and_a_limit_takes_the_first(tmp_path):
    images = pixels(9)
    for part in range(3):
        chosen = slice(3 * part, 3 * part + 3)
        write_parquet(tmp_path / f"train-0000{part}-of-00003.parquet", images[chosen], [part] * 3)
    write_parquet(tmp_path / "test.parquet", images[:2], [0, 1])
    data = load_data("cifar10", tmp_path, limit_train=5, limit_test=1)
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), images[:5])
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert len(data.test) == 1


def test_limit_does_not_read_further(tmp_path):
    write_parquet(tmp_path / "test.parquet", pixels(2), [0, 1])
    write_parquet(tmp_path / "train.parquet", pixels(600), [0] * 599 + [0])
    table = parquet.read_table(tmp_path / "train.parquet").to_pydict()
    table["img"][-1] = {"bytes": b"broken", "path": None}
    parquet.write_table(pa.table(table), tmp_path / "train.parquet")
    assert len(load_data("cifar10", tmp_path, limit_train=10).train) == 10
    assert "row 599" in error_of("cifar10", tmp_path)


def test_unknown_set_is_described_by_its_files(tmp_path, no_network):
    images = pixels(6, (20, 24), channels=1)
    write_parquet(tmp_path / "train.parquet", images, [0, 1, 4, 2, 3, 0], columns=("image", "label"), classes=0)
    write_parquet(tmp_path / "validation.parquet", images[:2], [0, 4], columns=("image", "label"), classes=0)
    data = load_data("someone/fashion", tmp_path)
    assert data.train.images.shape == (6, 1, 20, 24)
    assert data.num_classes == 5
    values = torch.from_numpy(images).double() / 255
    assert data.mean == pytest.approx((values.mean().item(),))
    assert data.std == pytest.approx((values.std(correction=0).item(),))


def test_class_folders_are_cropped_and_taken_in_turn(tmp_path, no_network):
    write_class_folders(tmp_path)
    (tmp_path / "train" / "bird" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    Image.fromarray(pixels(1)[0]).save(tmp_path / "train" / "bird" / "more.png")
    data = load_data("imagenet", tmp_path, image_size=16)
    assert data.train.images.shape == (7, 3, 16, 16)
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert data.num_classes == 2
    assert load_data("imagenet", tmp_path, limit_train=3).train.images.shape == (3, 3, 224, 224)


def test_crop_is_central_and_keeps_proportions(tmp_path):
    # Left and right thirds black, the middle square white: only white may remain.
    picture = np.zeros((30, 90, 3), np.uint8)
    picture[:, 30:60] = 255
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / split / "a" / "0.png")
    # A crop one pixel aside would have an edge of a third less.
    assert load_data("imagenet", tmp_path, image_size=10).train.images.min() > 200


def test_hub_names_and_splits(tmp_path, monkeypatch):
    write_cifar(tmp_path)
    asked = []

    def load_dataset(name, *, streaming):
        asked.append((name, streaming))
        files = {split: str(tmp_path / f"{split}-00000-of-00001.parquet") for split in ("train", "test")}
        return load("parquet", data_files=files, streaming=streaming, cache_dir=str(tmp_path / f"cache{streaming}"))

    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    local, whole, some = (
        load_data("cifar10", tmp_path),
        load_data("cifar10"),
        load_data("uoft-cs/cifar10", limit_train=5),
    )
    assert asked == [("uoft-cs/cifar10", False), ("uoft-cs/cifar10", True)]
    assert torch.equal(whole.train.images, local.train.images)
    assert torch.equal(whole.test.labels, local.test.labels)
    assert torch.equal(some.train.images, local.train.images[:5])


def test_to_float():
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    assert to_float(images).dtype == torch.float32
    assert to_float(images, dtype=torch.float64).tolist() == [[[[0, 1]], [[0.2, 0.4]]]]
    normalised = to_float(images, (0.5, 0.2), (0.5, 0.1), torch.float64)
    assert torch.allclose(normalised, torch.tensor([[[[-1.0, 1.0]], [[0.0, 2.0]]]]).double())


# Real data


def test_real_mnist(real_data, no_network):
    data = load_data("mnist", real_data)
    assert data.train.images.shape == (60_000, 1, 28, 28)
    assert data.test.images.shape == (10_000, 1, 28, 28)
    assert data.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    pixels = to_float(data.train.images, dtype=torch.float64)
    assert data.mean == pytest.approx((pixels.mean().item(),), abs=1e-4)
    assert data.std == pytest.approx((pixels.std().item(),), abs=1e-4)


def test_real_cifar10(real_data, no_network):
    data = load_data("cifar10", real_data / "cifar10", limit_train=5000, limit_test=100)
    assert data.train.images.shape == (5000, 3, 32, 32)
    assert data.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    normalised = to_float(data.train.images, data.mean, data.std)
    assert normalised.mean((0, 2, 3)).abs().max() < 0.05
    assert (normalised.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_real_cifar100(real_data, no_network):
    data = load_data("cifar100", real_data, limit_train=2000, limit_test=100)
    assert data.num_classes == 100
    assert data.train.labels[:3].tolist() == [19, 29, 0]
    normalised = to_float(data.train.images, data.mean, data.std)
    assert normalised.mean((0, 2, 3)).abs().max() < 0.05


def test_real_imagenet(real_data, no_network):
    data = load_data("imagenet", real_data, limit_train=50, limit_test=20, image_size=64)
    assert data.train.images.shape == (50, 3, 64, 64)
    assert data.train.labels.bincount().tolist() == [5] * 10
    assert data.num_classes == 10


# Bad input


def test_nothing_usable(tmp_path):
    assert str(tmp_path / "nowhere") in error_of("cifar10", tmp_path / "nowhere")
    assert "found nothing" in error_of("mnist", tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"")
    assert "looked for train*.parquet and train/<class>/, found train-images-idx3-ubyte" in error_of("mnist", tmp_path)


def test_no_test_split(tmp_path):
    write_parquet(tmp_path / "train.parquet", pixels(2), [0, 1])
    assert "has no test split" in error_of("cifar10", tmp_path)


def test_wrong_columns(tmp_path):
    write_cifar(tmp_path)
    write_parquet(tmp_path / "train-00000-of-00001.parquet", pixels(2), [0, 1], columns=("picture", "y"))
    message = error_of("cifar10", tmp_path)
    assert "picture, y" in message
    assert "'label'" in message


def test_cifar10_is_not_taken_for_cifar100_nor_for_mnist(tmp_path):
    write_cifar(tmp_path)
    assert "'fine_label'" in error_of("cifar100", tmp_path)
    assert "32×32 pixels, not 28×28" in error_of("mnist", tmp_path)


def test_wrong_number_of_classes(tmp_path):
    write_parquet(tmp_path / "train.parquet", pixels(2), [0, 11], classes=20)
    write_parquet(tmp_path / "test.parquet", pixels(2), [0, 1], classes=20)
    assert "20 classes, not 10" in error_of("cifar10", tmp_path)


@pytest.mark.parametrize("label", [10, -1, None])
def test_label_out_of_range(tmp_path, label):
    write_cifar(tmp_path)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", pixels(3), [0, label, 1], classes=0)
    message = error_of("cifar10", tmp_path)
    assert "test-00000-of-00001.parquet, row 1" in message
    assert f"label {label} is out of range" in message


@pytest.mark.parametrize("damage", [lambda b: b[:-50], lambda b: b[:4] + b"\xff" * 19_996 + b[20_000:]])
def test_damaged_parquet(tmp_path, damage):
    write_cifar(tmp_path)
    file = tmp_path / "train-00000-of-00001.parquet"
    file.write_bytes(damage(file.read_bytes()))
    assert str(file) in error_of("cifar10", tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda _: b"text", lambda _: b""])
def test_corrupt_image_file(tmp_path, damage):
    write_class_folders(tmp_path)
    file = tmp_path / "train" / "cat" / "1.JPEG"
    file.write_bytes(damage(file.read_bytes()))
    assert f"{file}: not a readable image" in error_of("imagenet", tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "my-birds"])
def test_corrupt_images_are_left_out_on_request(tmp_path, name):
    write_class_folders(tmp_path, sizes=((40, 50), (40, 50)))
    whole = load_data(name, tmp_path)
    for file in ("bird/0.JPEG", "cat/1.JPEG"):
        (tmp_path / "train" / file).write_bytes(b"text")
    with pytest.warns(UserWarning, match="left out") as caught:
        data = load_data(name, tmp_path, skip_corrupt=True)
    (message,) = [str(warning.message) for warning in caught]
    assert "the training split: 2 unreadable images are left out" in message
    assert str(tmp_path / "train" / "bird" / "0.JPEG") in message
    assert str(tmp_path / "train" / "cat" / "1.JPEG") in message
    assert torch.equal(data.train.images, whole.train.images[[1, 2, 4, 5]])
    assert data.train.labels.tolist() == [1, 0, 0, 1]
    assert torch.equal(data.test.images, whole.test.images)


def test_nothing_but_corrupt_images(tmp_path):
    write_class_folders(tmp_path, per_class=1)
    for file in tmp_path.glob("val/*/*"):
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="2 unreadable images"):
        assert "the test split holds no readable images" in error_of("imagenet", tmp_path, skip_corrupt=True)


def test_class_missing_from_one_split(tmp_path):
    write_class_folders(tmp_path)
    (tmp_path / "val" / "cat").rename(tmp_path / "cat")
    assert "class 'cat' is missing from the test split" in error_of("imagenet", tmp_path)


def test_empty_class_folder(tmp_path):
    write_class_folders(tmp_path)
    (tmp_path / "train" / "ant").mkdir()
    assert f"{tmp_path / 'train' / 'ant'} holds no images" in error_of("imagenet", tmp_path)


def test_no_rows(tmp_path):
    write_cifar(tmp_path)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [], [])
    assert "the test split holds no images" in error_of("cifar10", tmp_path)


def test_images_of_several_sizes(tmp_path):
    write_class_folders(tmp_path)
    assert "60×30 pixels, not 40×50" in error_of("my-birds", tmp_path)
    assert load_data("my-birds", tmp_path, image_size=20).train.images.shape == (6, 3, 20, 20)


def test_colour_among_grey_images(tmp_path):
    write_cifar(tmp_path)
    write_parquet(tmp_path / "train-00000-of-00001.parquet", pixels(3, channels=1), [0, 1, 2])
    assert "in colour" in error_of("mine", tmp_path)


@pytest.mark.parametrize("option", ["limit_train", "limit_test", "image_size"])
def test_option_below_one(option):
    assert option in error_of("digits", **{option: 0})


@pytest.mark.slow
def test_offline_without_a_directory():
    code = """
from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.data.datasets import load_data

for name in ("cifar", "mnist", "someone/else"):
    try:
        load_data(name)
    except InputError as error:
        print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    unknown, known, elsewhere = result.stdout.splitlines()
    assert "unknown data set 'cifar'. Did you mean 'cifar10' or 'cifar100'" in unknown
    assert "data set 'someone/else' cannot be loaded from the Hugging Face Hub" in elsewhere
    assert "data set 'mnist' cannot be loaded from the Hugging Face Hub" in known
    assert "--data-dir" in known
    assert "Did you mean" not in known


def write_named(path, names):
    """Images of 8×8, one of each class, with the names of the classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    images = [encoded(image) for image in pixels(len(names), (8, 8))]
    rows = {"img": images, "label": list(range(len(names)))}
    parquet.write_table(pa.table(rows, schema=features.arrow_schema), path)


@pytest.mark.parametrize("load", [load_data, open_images], ids=["held", "streamed"])
@pytest.mark.parametrize("other", ["test-00000-of-00001.parquet", "train-00001-of-00002.parquet"])
def test_classes_in_another_order_are_refused_by_file(load, other, tmp_path):
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"):
        write_named(tmp_path / name, ("dog", "cat") if name == other else ("cat", "dog"))
    with pytest.raises(InputError, match=r"numbers its classes differently: class 0 is 'dog', in .* 'cat'"):
        load("mine", tmp_path)


@pytest.mark.parametrize("load", [load_data, open_images], ids=["held", "streamed"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
            "1 of the 3 parts .* missing, .*00001-of-00003",
        ),
        (["train.parquet", "train (1).parquet"], r"train \(1\)\.parquet looks like a second copy"),
        (["train-0.parquet", "train-00000-of-00001.parquet"], "train-0.* and train-.* may hold the same images"),
        (["train.parquet", "train-0.parquet"], "may hold the same images of the train split"),
        (["train-0.parquet", "train-00.parquet"], "may hold the same images of the train split"),
    ],
)
def test_parts_that_are_missing_or_there_twice_are_named(load, names, message, tmp_path):
    for name in [*names, "test.parquet"]:
        write_named(tmp_path / name, ("cat", "dog"))
    with pytest.raises(InputError, match=message):
        load("mine", tmp_path)


@pytest.mark.parametrize("load", [load_data, open_images], ids=["held", "streamed"])
def test_labels_have_to_be_integers_among_the_names(load, tmp_path):
    for name in ("train.parquet", "test.parquet"):
        write_parquet(tmp_path / name, pixels(2), [0, 3], classes=3)
    with pytest.raises(InputError, match=r"train.parquet, row 1: label 3 is out of range, it must be 0 to 2"):
        load("mine", tmp_path)
    table = pa.table({"img": [encoded(image) for image in pixels(2)], "label": [0.0, 1.0]})
    parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(InputError, match="the column 'label' holds double; save the classes as integers from 0"):
        load("mine", tmp_path)


def test_what_cannot_be_told_is_said(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", pixels(2), [0, 1], classes=2)
    write_parquet(tmp_path / "train-2.parquet", pixels(2), [0, 1], classes=2)
    write_parquet(tmp_path / "test.parquet", pixels(2), [0, 1], classes=None)
    with (
        pytest.warns(UserWarning, match="there is no part 1 of the train split, but later ones"),
        pytest.warns(UserWarning, match="only the training split names its classes"),
    ):
        assert len(load_data("mine", tmp_path).train) == 4


def test_files_of_a_class_folder_that_are_no_images_are_said(tmp_path):
    write_class_folders(tmp_path, sizes=((8, 8), (8, 8)))
    (tmp_path / "train/cat/more").mkdir()
    with pytest.warns(UserWarning, match="train: 1 files or folders are not taken for images .* cat/more"):
        assert len(load_data("mine", tmp_path).train) == 6


def test_a_pipe_is_no_image(tmp_path):
    write_class_folders(tmp_path, sizes=((8, 8), (8, 8)))
    (tmp_path / "train/cat/1.JPEG").unlink()
    os.mkfifo(tmp_path / "train/cat/1.JPEG")
    assert "cat/1.JPEG: not a readable image (it is no file)" in error_of("mine", tmp_path)


def test_other_files_are_no_training_data(tmp_path):
    for name in ("train.parquet", "train-unlabelled.parquet", "test.parquet"):
        write_named(tmp_path / name, ("cat", "dog"))
    with pytest.warns(UserWarning, match="not taken for parts of the train split: train-unlabelled.parquet"):
        assert len(load_data("mine", tmp_path).train) == 2


def test_a_class_without_images_is_said(tmp_path):
    for name in ("train.parquet", "test.parquet"):
        write_parquet(tmp_path / name, pixels(3), [1, 2, 3], classes=None)
    with pytest.warns(UserWarning, match=r"4 classes, but 1 of them have no training images \(0\)"):
        assert load_data("mine", tmp_path).num_classes == 4


def test_a_constant_channel_is_not_normalised(tmp_path):
    images = pixels(4)
    images[..., 1] = 7
    for name in ("train.parquet", "test.parquet"):
        write_parquet(tmp_path / name, images, [0, 1, 0, 1], classes=2)
    config = preset("demo", dataset="mine", data_dir=tmp_path, normalise=True, subset=None)
    with pytest.raises(InputError, match="channel 1 of mine has the same value in every pixel"):
        open_data(config, torch.device("cpu"), Ranks())


@pytest.mark.parametrize("column", [pa.array([1, 2]), pa.array([[1], [2]]), pa.array([None, None], pa.null())])
@pytest.mark.parametrize("load", [load_data, open_images], ids=["held", "streamed"])
def test_columns_that_hold_no_images(load, column, tmp_path):
    for name in ("train.parquet", "test.parquet"):
        parquet.write_table(pa.table({"img": column, "label": [0, 1]}), tmp_path / name)
    with pytest.raises(InputError, match="the column 'img' holds no images but"):
        load("mine", tmp_path)


def test_a_damaged_description_of_the_columns(tmp_path):
    table = pa.table({"img": [encoded(image) for image in pixels(2)], "label": [0, 1]})
    for name in ("train.parquet", "test.parquet"):
        parquet.write_table(table.replace_schema_metadata({"huggingface": '{"info": 3}'}), tmp_path / name)
    with pytest.raises(InputError, match=r"train\.parquet: the description of its columns .* is damaged"):
        load_data("mine", tmp_path)
