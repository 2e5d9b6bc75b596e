"""Probes from files of every kind, or one line that says why not."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skip_conditioning import Probe
from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.analysis.probe_file import read_probe_file


def header(shape, descr="'<f4'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + b"abc"


@pytest.mark.parametrize("dtype", [">f4", "<f2", ">i8", "bool", ">u2", np.longdouble])
def test_arrays_of_any_byte_order(tmp_path, dtype):
    array = np.array([[0, 1], [1, 0]], dtype=dtype)
    np.save(tmp_path / "p.npy", array)
    x = read_probe_file(tmp_path / "p.npy")
    assert x.tolist() == array.tolist()
    assert x.is_floating_point() == (array.dtype.kind == "f")


def test_named_inputs_and_targets(tmp_path):
    ids, mask = torch.tensor([[1, 2], [3, 4]]), torch.ones(2, 2)
    named = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1])}
    torch.save(named, tmp_path / "p.pt")
    save_file(named, tmp_path / "p.safetensors")
    np.savez(tmp_path / "p.npz", **{name: tensor.numpy() for name, tensor in named.items()})
    for suffix in ("pt", "safetensors", "npz"):
        batch = read_probe_file(tmp_path / f"p.{suffix}")
        assert batch.keys() == named.keys()
        assert all(torch.equal(batch[name], named[name]) for name in named)
    torch.save({"x": mask, "y": torch.tensor([0, 1])}, tmp_path / "p.pt")
    probe = read_probe_file(tmp_path / "p.pt")
    assert isinstance(probe, Probe)
    assert (probe.inputs.shape, probe.targets.tolist()) == ((2, 2), [0, 1])
    torch.save((ids, mask), tmp_path / "p.pt")
    assert [part.shape for part in read_probe_file(tmp_path / "p.pt")] == [(2, 2), (2, 2)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.array(["a"]), "instead of numbers"),
        (np.zeros(3, dtype=[("a", "f4")]), "instead of numbers"),
        (np.array([{}]), "cannot be read"),
        (np.full(2, 2**64 - 1, dtype=np.uint64), "too large"),
        (header("(6000000000000,)"), "cannot be read"),
        (header("(-3,)"), "cannot be read"),
        (header("(((("), "cannot be read"),
        (header("__import__('os').abort()"), "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_what_is_no_probe_is_one_line(tmp_path, content, reason):
    path = tmp_path / "p.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(InputError, match=reason) as caught:
        read_probe_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, {"a": 3}, {3: torch.ones(1)}, torch.ones(2, 2).to_sparse(), 3])
def test_torch_files_that_hold_no_probe(tmp_path, content):
    torch.save(content, tmp_path / "p.pt")
    with pytest.raises(InputError, match=r"p\.pt"):
        read_probe_file(tmp_path / "p.pt")
