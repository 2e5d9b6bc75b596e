"""Training that meets what it cannot go on with: no memory, unreadable or other images, networks that do not train."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.processes.machine import clear_memory_errors
from skip_conditioning.experiments.records.directory import LOCK, check_unlocked, locked
from skip_conditioning.experiments.train import main, parse

ALONE = ("--model", "nets:greedy", "--arms", "default", "--layers", "1")


def test_out_of_memory_names_the_option_and_what_failed_is_trained_with_it(small, nets, capsys):
    assert main([*small, *ALONE, "--out", "o"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == "error: out of memory; give a smaller --batch-size, or more processes (torchrun)"
    status = json.loads(Path("o/runs/default-lr0.1-trial00/status.json").read_text())
    assert status["status"] == "failed"
    assert "OutOfMemoryError: CUDA out of memory" in status["reason"]
    assert main([*small, *ALONE, "--out", "o", "--batch-size", "12", "--overwrite"]) == 0


def test_other_errors_are_not_taken_for_want_of_memory():
    for error in (RuntimeError("shapes differ"), NotImplementedError(), ValueError("DefaultCPUAllocator")):
        with pytest.raises(type(error)) as caught, clear_memory_errors():
            raise error
        assert caught.value is error


def test_the_real_errors_of_torch_and_numpy_are_known():
    for too_much in (lambda: torch.empty(2**58), lambda: np.empty(2**60, dtype=np.uint8)):
        with pytest.raises(InputError, match="out of memory"), clear_memory_errors():
            too_much()


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


def test_other_images_on_resuming_are_refused(folders, capsys):
    (folders / "train/b/1.png").unlink()
    assert main([*OPTIONS, "--dataset", "mine", "--out", "o"]) == 0
    (folders / "train/b/3.png").unlink()
    assert main([*OPTIONS, "--dataset", "mine", "--out", "o", "--resume"]) == 2
    assert "the training images are not those that o was started with" in capsys.readouterr().err


HOPELESS = """
import random
import numpy as np
import torch
from torch import nn
from nets import layers

def frozen():
    return layers().requires_grad_(False)

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

class Chance(nn.Module):
    def forward(self, x):
        return x * random.random() + np.random.rand()

def chance():
    model = layers(Chance())
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(np.random.standard_normal((16, 784))) / 28)
    return model
"""


@pytest.mark.parametrize(("model", "words"), [("frozen", "no parameter to train"), ("lazy", "lazy layers")])
def test_networks_that_cannot_be_trained(small, nets, model, words, capsys):
    (nets / "hopeless.py").write_text(HOPELESS)
    assert main([*small, "--model", f"hopeless:{model}", "--arms", "default", "--layers", "1", "--out", "o"]) == 2
    assert words in capsys.readouterr().err
    assert not Path("o").exists()


def test_networks_that_draw_from_python_and_numpy_repeat_and_resume(small, nets, same_results, monkeypatch):
    (nets / "hopeless.py").write_text(HOPELESS)
    options = [*small, "--model", "hopeless:chance", "--arms", "default", "--layers", "1"]
    assert main([*options, "--out", "whole"]) == 0
    assert main([*options, "--out", "again"]) == 0
    same_results(Path("whole"), Path("again"))

    def stop(self, step):
        if step == 5:
            raise InterruptedError
        return evaluate(self, step)

    from skip_conditioning.experiments.training.trainer import Trainer

    evaluate = Trainer.checkpoint_due
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "checkpoint_due", stop)
        with pytest.raises(InterruptedError):
            main([*options, "--out", "killed"])
    assert main([*options, "--out", "killed", "--resume"]) == 0
    same_results(Path("whole"), Path("killed"))


def test_a_process_forked_from_one_that_was_killed_does_not_hold_its_lock(tmp_path):
    parent = os.fork()
    if not parent:
        with locked(tmp_path):
            child = os.fork()
            if not child:
                time.sleep(60)
            (tmp_path / "child").write_text(str(child))
            os.kill(os.getpid(), 9)
    os.waitpid(parent, 0)
    try:
        assert (tmp_path / LOCK).exists()
        check_unlocked([tmp_path])
        assert not (tmp_path / LOCK).exists()
    finally:
        os.kill(int((tmp_path / "child").read_text()), 9)


def test_learning_rates_that_look_alike_are_two_runs(small, nets, capsys):
    rates = ("0.12345678", "0.12345679")
    assert main([*small, "--out", "o", "--lr", *rates]) == 0
    assert read_experiment("o").runs["run_id"].tolist() == [f"plain-lr{rate}-trial00" for rate in rates]


def test_another_model_does_not_take_the_options_of_the_presets(nets):
    assert parse(["demo", "--out", "o", "--model", "nets:layers"]).network.model_options == ()
    assert parse(["demo", "--out", "o"]).network.model_options == ("depth=16", "normaliser=batch")


@pytest.mark.parametrize("said", ["2", "x", "-1"])
def test_an_environment_that_is_not_torchruns(small, monkeypatch, said, capsys):
    monkeypatch.setenv("WORLD_SIZE", said)
    assert main([*small, "--out", "o"]) == 2
    assert f"WORLD_SIZE={said}" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["step_*", "state_*"])
def test_a_damaged_checkpoint_is_named_with_a_way_out(small, train, file, capsys):
    out = train("o")
    run = next((out / "runs").iterdir())
    (run / "status.json").unlink()
    path = sorted(run.glob(f"checkpoints/{file}"))[-1]
    path.write_bytes(path.read_bytes()[:200])
    assert main([*small, "--out", "o", "--resume"]) == 2
    assert path.name in (said := capsys.readouterr().err)
    assert f"remove {run} and repeat" in said
