"""Resuming: to the same bits, and nothing of another optimiser or of a damaged file."""

import json

import pytest
import torch

from skip_conditioning.experiments.records.checkpoints import checkpoint_path, training_state_path
from skip_conditioning.experiments.records.fitting_weights import load_into
from skip_conditioning.experiments.records.tensor_files import read_checkpoint, save_checkpoint
from skip_conditioning.experiments.records.training_state import load_training_state, save_training_state
from skip_conditioning.experiments.training.random_streams import rng_states, set_rng_states
from tests.experiments.records.examples import error_of, network, same

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


DAMAGE = (None, 3, [], {}, "x", [[[]]])
DAMAGED = [
    *(lambda state, key=key: state.pop(key) for key in ("optimizer", "shapes", "state", "groups")),
    *(
        lambda state, key=key, value=value: state.update({key: value})
        for key in ("state", "groups")
        for value in DAMAGE
    ),
    *(lambda state, value=value: state["groups"].update({"0": value}) for value in DAMAGE),
    *(lambda state, value=value: state["groups"]["0"].update(lr=value) for value in ("0.1", None, [0.1], True)),
    lambda state: state["groups"].update({"x": {}}),
    lambda state: state["groups"]["0"].pop("momentum"),
    lambda state: state["groups"]["0"].update(params=[0, 0, 0, 0]),
    lambda state: state["state"].update({"99": {}}),
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_state_is_refused_and_changes_nothing(tmp_path, damage):
    model, path = network(), tmp_path / "s.safetensors"
    optimizer = OPTIMIZERS["momentum"](list(model.parameters()))
    take_steps(model, optimizer, 1)
    save_training_state(path, optimizer, rng_states())
    tensors, metadata = read_checkpoint(path)
    state = json.loads(metadata["training_state"])
    damage(state)
    save_checkpoint(path, tensors, {"training_state": json.dumps(state)})
    before = repr(optimizer.state_dict())
    assert str(path) in error_of(load_training_state, path, optimizer)
    assert repr(optimizer.state_dict()) == before
