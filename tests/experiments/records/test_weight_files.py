"""Files of weights of every kind: none runs code, and each refusal names its reason in one line."""

import argparse
import contextlib
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from skip_conditioning.experiments.records.tensor_files import save_checkpoint
from skip_conditioning.experiments.records.weight_files import read_weight_file
from tests.experiments.records.examples import error_of, network, same


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_malicious_pickle_does_not_run(tmp_path, suffix, save):
    harm, path = tmp_path / "harm", tmp_path / f"x{suffix}"
    save({"weight": torch.ones(1), "run": Malicious(str(harm))}, path)
    message = error_of(read_weight_file, path)
    assert str(path) in message
    assert not harm.exists()
    if suffix != ".safetensors":
        with contextlib.suppress(RuntimeError):  # runs the code, then finds that it is no checkpoint
            torch.load(path, weights_only=False)
        assert harm.exists(), "the file was harmless, so nothing was tested"


def write_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "hello")


FOREIGN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("step,loss\n1,2.3\n" * 100),
    "zip": write_zip,
    "huge header": lambda path: path.write_bytes(b"\xff" * 64),
    "whole model": lambda path: torch.save(network(), path),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_foreign_file(tmp_path, kind, suffix):
    path = tmp_path / f"x{suffix}"
    FOREIGN[kind](path)
    assert str(path) in error_of(read_weight_file, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.99])
def test_truncated_file(tmp_path, suffix, share):
    path, state = tmp_path / f"x{suffix}", network().state_dict()
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_checkpoint(path, state, {})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert str(path) in error_of(read_weight_file, path)


REFUSED = {
    "whole model": (lambda path: torch.save(network(), path), "needs 'torch.nn.modules.container.Sequential'"),
    "namespace": (lambda path: torch.save({"args": argparse.Namespace(a=1)}, path), "needs 'argparse.Namespace'"),
    "numpy number": (lambda path: torch.save({"loss": np.float64(1)}, path), "multiarray.scalar'"),
    "program": (lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path), "TorchScript"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("step,loss\n1,2.3\n" * 100), "no file of torch.save"),
    "zip": (write_zip, "damaged"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_says_what_was_refused(tmp_path, kind):
    write, reason = REFUSED[kind]
    write(tmp_path / "x.ckpt")
    assert reason in error_of(read_weight_file, tmp_path / "x.ckpt")


def test_a_truncated_file_is_called_so(tmp_path):
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(network().state_dict(), tmp_path / "x.bin", **options)
        whole = (tmp_path / "x.bin").read_bytes()
        (tmp_path / "x.bin").write_bytes(whole[: len(whole) * 2 // 3])
        assert "damaged or truncated" in error_of(read_weight_file, tmp_path / "x.bin")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".BIN"])
def test_suffixes_of_torch_files(tmp_path, suffix):
    torch.save(network().state_dict(), tmp_path / f"x{suffix}")
    assert same(read_weight_file(tmp_path / f"x{suffix}"), network().state_dict())


def test_missing_file_folder_suffix_and_names_no_file_can_have(tmp_path):
    assert "does not exist" in error_of(read_weight_file, tmp_path / "x.pt")
    assert "does not exist" in error_of(read_weight_file, tmp_path / "x.safetensors")
    assert "is a folder" in error_of(read_weight_file, tmp_path)
    (tmp_path / "x.onnx").write_bytes(b"")
    assert "'.onnx'" in error_of(read_weight_file, tmp_path / "x.onnx")
    for name in (f"{'x' * 300}.pt", "a\0b.safetensors"):
        assert "cannot be the name of a file" in error_of(read_weight_file, tmp_path / name)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_sharded_weights(tmp_path, suffix):
    state = network().state_dict()
    shards = {name: f"model-{i % 2}{suffix}" for i, name in enumerate(state)}
    for shard in set(shards.values()):
        part = {name: state[name] for name in state if shards[name] == shard}
        torch.save(part, tmp_path / shard) if suffix == ".bin" else save_checkpoint(tmp_path / shard, part, {})
    index = tmp_path / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert same(read_weight_file(index), state)
    index.write_text(json.dumps({"weight_map": shards | {"more": f"model-1{suffix}"}}))
    assert "lacks 'more'" in error_of(read_weight_file, index)
    (tmp_path / f"model-1{suffix}").unlink()
    assert f"needs 'model-1{suffix}'" in error_of(read_weight_file, index)


@pytest.mark.parametrize(
    "content", ["[]", "{", "{}", '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x.bin"}}', "[" * 100_000]
)
def test_an_index_that_is_none_or_leads_elsewhere(tmp_path, content):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.bin")
    (tmp_path / "folder").mkdir()
    index = tmp_path / "folder" / "model.bin.index.json"
    index.write_text(content)
    message = error_of(read_weight_file, index)
    assert str(index) in message
    assert len(message) < 500
