import contextlib
import copy
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError
from skip_conditioning.experiments.records.checkpoints import (
    checkpoint_path,
    list_checkpoints,
    load_into,
    load_training_state,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    save_training_state,
    training_state_path,
)
from skip_conditioning.experiments.training.random_streams import rng_states, set_rng_states


def network(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(4 * width, 3))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def snapshot(model):
    return copy.deepcopy(model.state_dict())


def error_of(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Weights


def test_round_trip_is_exact(tmp_path):
    path, state = checkpoint_path(tmp_path, 12), network().state_dict()
    save_checkpoint(path, state, {"model": "net"})
    assert same(load_weights(path), state)
    assert read_checkpoint(path)[1] == {"model": "net"}
    assert os.listdir(path.parent) == ["step_000000012.safetensors"]


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
    assert same(load_weights(tmp_path / "x.safetensors"), state)


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
    assert torch.equal(load_weights(path)["a"], torch.zeros(3))
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


@pytest.mark.parametrize(
    ("nest", "prefix"),
    [
        (lambda state: state, "module._orig_mod."),
        (lambda state: {"epoch": 3, "state_dict": state}, "_orig_mod.module."),
        (lambda state: {"model": state}, ""),
    ],
)
def test_users_torch_files(tmp_path, nest, prefix):
    state = network().state_dict()
    torch.save(nest({prefix + name: value for name, value in state.items()}), tmp_path / "x.pt")
    assert same(load_weights(tmp_path / "x.pt"), state)


def test_prefix_stays_where_not_all_names_carry_it(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "x.pth")
    assert load_weights(tmp_path / "x.pth").keys() == state.keys()


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
    message = error_of(load_weights, path)
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
    "list": lambda path: torch.save([torch.ones(1)], path),
    "no tensors": lambda path: torch.save({"epoch": 3}, path),
    "nothing": lambda path: torch.save({}, path),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_foreign_file(tmp_path, kind, suffix):
    path = tmp_path / f"x{suffix}"
    FOREIGN[kind](path)
    assert str(path) in error_of(load_weights, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.99])
def test_truncated_file(tmp_path, suffix, share):
    path, state = tmp_path / f"x{suffix}", network().state_dict()
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_checkpoint(path, state, {})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert str(path) in error_of(load_weights, path)


def test_missing_file_folder_and_suffix(tmp_path):
    assert "does not exist" in error_of(load_weights, tmp_path / "x.pt")
    assert "is a folder" in error_of(load_weights, tmp_path)
    (tmp_path / "x.bin").write_bytes(b"")
    assert "'.bin'" in error_of(load_weights, tmp_path / "x.bin")
    assert "does not exist" in error_of(read_checkpoint, tmp_path / "x.safetensors")


# Into a model


def test_load_into_casts_to_the_model(tmp_path):
    source, target = network(0), network(1).double()
    save_checkpoint(tmp_path / "x.safetensors", source.state_dict(), {})
    load_into(target, tmp_path / "x.safetensors")
    assert same(target.state_dict(), source.double().state_dict())


def test_load_into_wrapped_models(tmp_path):
    save_checkpoint(tmp_path / "x.safetensors", network(0).state_dict(), {})
    target = nn.DataParallel(torch.compile(network(1)))
    load_into(target, tmp_path / "x.safetensors")
    assert all(name.startswith("module._orig_mod.") for name in target.state_dict())
    assert same(target.module._orig_mod.state_dict(), network(0).state_dict())


def test_load_into_names_what_does_not_fit(tmp_path):
    model, path = network(), tmp_path / "x.safetensors"
    state = network(1).state_dict()
    state["0.weigth"], state["3.bias"] = state.pop("0.weight"), torch.zeros(7)
    save_checkpoint(path, state, {})
    before = snapshot(model)
    message = error_of(load_into, model, path)
    assert str(path) in message
    assert "1 missing, first '0.weight'. Did you mean '0.weigth'?" in message
    assert "1 unexpected, first '0.weigth'" in message
    assert "first '3.bias': (7,) in the file, (3,) in the model" in message
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_load_into_refuses_weights_that_are_not_finite_in_the_model(tmp_path, value):
    model, path, state = network().half(), tmp_path / "x.safetensors", network(1).state_dict()
    state["3.bias"] = torch.tensor([0, value, 0])
    save_checkpoint(path, state, {})
    before = snapshot(model)
    with pytest.raises(NonFiniteError, match=r"'3\.bias'"):
        load_into(model, path)
    assert same(model.state_dict(), before)


# Resuming

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1 / 3, betas=(0.8, 0.99)),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), amsgrad=True),
    "groups": lambda p: torch.optim.AdamW([{"params": p[:2]}, {"params": p[2:], "lr": 0.5}], lr=0.1),
}


def flat(state):
    """Every tensor and number of an optimiser's state by its path; types count, so a tuple is no list."""
    entries = {("state", i): entry for i, entry in state["state"].items()}
    entries |= {("group", i): group for i, group in enumerate(state["param_groups"])}
    values = {(*path, key): value for path, entry in entries.items() for key, value in entry.items()}
    return {path: v if isinstance(v, torch.Tensor) else torch.tensor([*repr(v).encode()]) for path, v in values.items()}


def take_steps(model, optimizer, n):
    for _ in range(n):
        optimizer.zero_grad()
        model(torch.randn(5, 1, 4, 4)).logsumexp(1).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_run_continues_to_the_same_bits(tmp_path, name):
    model = network()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    take_steps(model, optimizer, 3)
    weights, state = checkpoint_path(tmp_path, 3), training_state_path(tmp_path, 3)
    save_checkpoint(weights, model.state_dict(), {})
    save_training_state(state, optimizer, rng_states())
    take_steps(model, optimizer, 4)

    resumed = network(seed=9)
    resumed_optimizer = OPTIMIZERS[name](list(resumed.parameters()))
    load_into(resumed, weights)
    set_rng_states(load_training_state(state, resumed_optimizer))
    take_steps(resumed, resumed_optimizer, 4)
    assert same(resumed.state_dict(), model.state_dict())
    assert same(flat(resumed_optimizer.state_dict()), flat(optimizer.state_dict()))


def test_learning_rate_of_a_schedule_comes_back_exactly(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.1 * 0.2 / 3
    save_training_state(tmp_path / "s.safetensors", optimizer, {})
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    load_training_state(tmp_path / "s.safetensors", other)
    assert other.param_groups[0]["lr"] == 0.1 * 0.2 / 3


@pytest.mark.parametrize(
    ("other", "width", "message"),
    [("adam", 4, "not of Adam"), ("momentum", 5, "other shapes"), ("groups", 4, "not of AdamW")],
)
def test_state_of_another_optimiser_or_model(tmp_path, other, width, message):
    model, path = network(), tmp_path / "s.safetensors"
    optimizer = OPTIMIZERS["momentum"](list(model.parameters()))
    take_steps(model, optimizer, 1)
    save_training_state(path, optimizer, {})
    resumed = OPTIMIZERS[other](list(network(width=width).parameters()))
    before = repr(resumed.state_dict())
    assert message in error_of(load_training_state, path, resumed)
    assert repr(resumed.state_dict()) == before


def test_weights_are_no_training_state(tmp_path):
    save_checkpoint(tmp_path / "x.safetensors", network().state_dict(), {})
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    assert "holds no training state" in error_of(load_training_state, tmp_path / "x.safetensors", optimizer)


def test_list_checkpoints(tmp_path):
    assert list_checkpoints(tmp_path) == []
    for step in (20, 3, 1_234_567_890):
        save_checkpoint(checkpoint_path(tmp_path, step), {}, {})
    save_training_state(training_state_path(tmp_path, 20), torch.optim.SGD(network().parameters()), {})
    folder = tmp_path / "checkpoints"
    for leftover in (".step_000000004.safetensors.77.tmp", "step_5.safetensors.tmp", "step_x.safetensors"):
        (folder / leftover).write_bytes(b"")
    assert list_checkpoints(tmp_path) == [(step, checkpoint_path(tmp_path, step)) for step in (3, 20, 1_234_567_890)]
