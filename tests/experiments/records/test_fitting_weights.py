"""Weights are found in whatever a file holds by what fits the network, or refused in one line."""

import copy

import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import NonFiniteError
from skip_conditioning.experiments.records.fitting_weights import load_into
from skip_conditioning.experiments.records.tensor_files import save_checkpoint
from tests.experiments.records.examples import error_of, network, same


def snapshot(model):
    return copy.deepcopy(model.state_dict())


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


NESTED = {
    "plain": lambda state: state,
    "prefixed": lambda state: {"epoch": 3, "state_dict": prefixed("_orig_mod.module.", state)},
    "any name": lambda state: {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "params": state},
    "deep": lambda state: {"a": [{"b": {"teacher": prefixed("net.", state)}}]},
    "encoder": lambda state: {"state_dict": prefixed("module.encoder_q.", state) | {"module.queue": torch.ones(3)}},
    "inner": lambda state: {
        name.replace("0.", "0._checkpoint_wrapped_module.").replace("3.", "3.inner."): tensor
        for name, tensor in state.items()
    },
    "no counters": lambda state: {name: tensor for name, tensor in state.items() if "num_batches" not in name},
}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("kind", NESTED)
def test_weights_are_found_by_what_fits(tmp_path, kind):
    target = network(1)
    torch.save(NESTED[kind](network(0).state_dict()), tmp_path / "x.pth.tar")
    load_into(target, tmp_path / "x.pth.tar")
    assert same(target.state_dict(), network(0).state_dict())


def test_a_network_inside_another_module_takes_the_weights_of_the_network(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(1)

    target = Wrapper()
    torch.save(prefixed("model.", network(0).state_dict()), tmp_path / "x.pt")
    load_into(target, tmp_path / "x.pt")
    assert same(target.net.state_dict(), network(0).state_dict())


def test_a_key_chooses_among_several_that_fit(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": network(1).state_dict(), "ema": prefixed("module.", network(2).state_dict())}, path)
    target = network(0)
    assert "several weights that fit: 'model', 'ema'; choose by --key ema" in error_of(load_into, target, path)
    assert same(target.state_dict(), network(0).state_dict())
    for key, seed in (("model", 1), ("ema", 2)):
        load_into(target, path, key)
        assert same(target.state_dict(), network(seed).state_dict())
    assert "no weights under 'emma'; save model.state_dict(). Did you mean 'ema'?" in error_of(
        load_into, target, path, "emma"
    )


def test_tied_tensors_are_needed_once_and_must_agree(tmp_path):
    def tied(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
        model[1].weight = model[0].weight
        return model

    state = tied(0).state_dict()
    for left_out in ("0.weight", "1.weight"):
        target = tied(1)
        torch.save({name: tensor for name, tensor in state.items() if name != left_out}, tmp_path / "x.pt")
        load_into(target, tmp_path / "x.pt")
        assert same(target.state_dict(), state)
    torch.save(state | {"1.weight": torch.ones(5, 3)}, tmp_path / "x.pt")
    assert "'0.weight' and '1.weight', which the model ties, differ" in error_of(load_into, tied(1), tmp_path / "x.pt")


def test_a_file_that_holds_itself(tmp_path):
    state = {}
    state["model"] = state
    torch.save(state, tmp_path / "x.pt")
    assert "holds no weights" in error_of(load_into, network(), tmp_path / "x.pt")
    state |= {"list": [state], "ema": network(1).state_dict()}
    torch.save(state, tmp_path / "x.pt")
    target = network()
    load_into(target, tmp_path / "x.pt")
    assert same(target.state_dict(), network(1).state_dict())


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(1)], torch.ones(3), 3, None, {3: torch.ones(1)}])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    assert "holds no weights; save model.state_dict()" in error_of(load_into, network(), tmp_path / "x.pt")


def quantised():
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda: torch.ones(3).to_sparse(), "is not a dense tensor but torch.sparse_coo"),
        (quantised, "is quantised"),
        (lambda: torch.ones(3, device="meta"), "has no values"),
        (lambda: torch.full((3,), 1 + 2j), "is complex64, and would lose its imaginary part"),
        (lambda: torch.ones(3, dtype=torch.int8), "is int8 where the model has float32"),
    ],
)
def test_tensors_that_cannot_be_weights(tmp_path, value, reason):
    target, state = network(), network(1).state_dict()
    torch.save(state | {"3.bias": value()}, tmp_path / "x.pt")
    message = error_of(load_into, target, tmp_path / "x.pt")
    assert "'3.bias'" in message
    assert reason in message
    assert same(target.state_dict(), network().state_dict())


def test_other_heads_and_long_names_are_refused_naming_a_few(tmp_path):
    path, state = tmp_path / "x.pt", network(1).state_dict()
    torch.save(prefixed("module.", state | {f"head.{i}": torch.ones(1) for i in range(9)}), path)
    message = error_of(load_into, network(), path)
    assert "9 unexpected, first 'head.0', 'head.1', 'head.2'. (under 'module')" in message
    torch.save({"head.weight" if name == "3.weight" else name: tensor for name, tensor in state.items()}, path)
    assert "1 missing, first '3.weight'" in error_of(load_into, network(), path)
    torch.save(state | {"x" * 100_000: torch.ones(1)}, path)
    message = error_of(load_into, network(), path)
    assert "1 unexpected, first 'xxx" in message
    assert len(message) < 500
