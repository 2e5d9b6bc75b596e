"""Training that meets what it cannot go on with: no memory, unreadable images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diagnostics.tables import read_experiment
from experiments.train import main

ALONE = ("--model", "nets:greedy", "--arms", "default", "--layers", "1")


def test_out_of_memory_says_which_batch_fits_and_what_failed_is_resumed_with_it(small, nets, capsys):
    assert main([*small, *ALONE, "--out", "o"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == "error: out of memory at a batch of 16 images; 12 fit: give --batch-size 12 or less"
    status = json.loads(Path("o/runs/default-lr0.1-trial00/status.json").read_text())
    assert status["status"] == "failed"
    assert "OutOfMemoryError: CUDA out of memory" in status["reason"]
    assert main([*small, *ALONE, "--out", "o", "--batch-size", "12", "--overwrite"]) == 0


def test_out_of_memory_of_runs_that_are_trained_together(small, nets, capsys):
    assert main([*small, *ALONE, "--out", "o", "--trials", "2"]) == 2
    assert "out of memory with 2 runs trained together: give --together no" in capsys.readouterr().err


@pytest.fixture
def folders(nets):
    """A data set of class folders, one training image of which is no image."""
    pixels = np.random.default_rng(0).integers(256, size=(10, 28, 28), dtype=np.uint8)
    for split in ("train", "val"):
        for index, image in enumerate(pixels):
            path = nets / "mine" / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    (nets / "mine/train/b/1.png").write_bytes(b"no image")
    return nets / "mine"


OPTIONS = (
    *("paper-mnist", "--model", "nets:layers", "--model-options", "classes=2", "--arms", "default", "--layers", "1"),
    *("--subset", "None", "--steps", "3", "--trials", "1", "--probe-size", "2", "--data-dir", "mine"),
)


def test_corrupt_image_is_named_and_left_out_only_if_asked(folders, capsys):
    assert main([*OPTIONS, "--dataset", "mine", "--out", "o"]) == 2
    assert "b/1.png" in capsys.readouterr().err
    assert not Path("o").exists()
    with pytest.warns(UserWarning, match="b/1.png"):
        assert main([*OPTIONS, "--dataset", "mine", "--out", "o", "--skip-corrupt"]) == 0
    assert read_experiment("o").runs["status"].tolist() == ["finished"]


def test_missing_class_folder_is_named(folders, capsys):
    for path in (folders / "val/b").iterdir():
        path.unlink()
    (folders / "val/b").rmdir()
    assert main([*OPTIONS, "--dataset", "mine", "--out", "o"]) == 2
    assert "class 'b' is missing from the test split" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "1"])
def test_corrupt_image_of_a_streamed_data_set(folders, workers, capsys):
    options = (
        *("paper-imagenet", "--model", "preact-resnet18", "--model-options", "width=4", "--arms", "original"),
        *("--data-dir", "mine", "--batch-size", "4", "--steps", "2", "--no-diagnostics", "--workers", workers),
    )
    assert main([*options, "--out", "o"]) == 2
    assert "b/1.png" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="b/1.png.*left out"):
        assert main([*options, "--out", "o", "--resume", "--skip-corrupt"]) == 0
    metrics = read_experiment("o").metrics
    assert metrics[metrics["split"] == "train"]["step"].tolist() == [0, 1, 2]
    assert metrics["loss"].notna().all()
