"""Files of tensors: exact, whole or not there, and refused in one line."""

import os
import subprocess
import sys

import torch

from skip_conditioning.experiments.records.tensor_files import read_checkpoint, save_checkpoint
from tests.experiments.records.examples import error_of, network, same


def test_round_trip_is_exact(tmp_path):
    path, state = tmp_path / "folder" / "x.safetensors", network().state_dict()
    save_checkpoint(path, state, {"model": "net"})
    assert same(read_checkpoint(path)[0], state)
    assert read_checkpoint(path)[1] == {"model": "net"}
    assert os.listdir(path.parent) == ["x.safetensors"]


def test_tied_sliced_and_transposed_tensors(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    state = {
        "a": whole,
        "tied": whole,
        "row": whole[1],
        "transposed": whole.T,
        "empty": whole[:0],
        "b": whole.half(),
    }
    save_checkpoint(tmp_path / "x.safetensors", state, {})
    assert same(read_checkpoint(tmp_path / "x.safetensors")[0], state)


def test_a_view_of_a_large_tensor_is_stored_alone(tmp_path):
    save_checkpoint(tmp_path / "x.safetensors", {"a": torch.ones(1_000_000)[5:10]}, {})
    assert (tmp_path / "x.safetensors").stat().st_size < 1000


def test_replacing_leaves_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"a": torch.zeros(3)}, {})

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert "No space left" in error_of(save_checkpoint, path, {"a": torch.ones(3)}, {})
    assert torch.equal(read_checkpoint(path)[0]["a"], torch.zeros(3))
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_disk_that_takes_no_more(tmp_path):
    code = """if True:
        import resource, signal, sys, torch
        from pathlib import Path
        from skip_conditioning.experiments.records.checkpoints import save_checkpoint
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        save_checkpoint(Path(sys.argv[1]), {"a": torch.ones(100_000)}, {})
    """
    command = [sys.executable, "-c", code, str(tmp_path / "x.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"InputError: cannot write {tmp_path / 'x.safetensors'}" in result.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in error_of(save_checkpoint, tmp_path / "file" / "x.safetensors", {}, {})
