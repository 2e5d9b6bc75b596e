"""Initial states against plain autograd in float64, and as a table of an experiment."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.presets import preset
from skip_conditioning.experiments.training.initial_states import (
    INITIAL_STATES,
    initial_state,
    measure_initial_states,
    read_initial_states,
)
from skip_conditioning.models import build_model


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    options = {"depth": 2, "width": 8, "in_features": 12, "num_classes": 4, "normaliser": "batch", "activation": "tanh"}
    return build_model("residual-mlp", arm="residual", **options).double().train()


def test_a_state_is_what_autograd_says(network):
    torch.manual_seed(1)
    x, y = torch.randn(6, 12, dtype=torch.float64), torch.randint(4, (6,))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = initial_state(network, x, y)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    parameters = dict(network.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}

    def logits(*values):
        named = dict(zip(parameters, values, strict=True))
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        return torch.func.functional_call(network, named | copies, (x,))

    values = tuple(parameter.detach() for parameter in parameters.values())
    gradients = torch.autograd.functional.jacobian(lambda *v: cross_entropy(logits(*v), y), values)
    norms = np.array([float(gradient.norm()) for gradient in gradients])
    assert state.grad_norm == pytest.approx(np.linalg.norm(norms))
    parts = (state.grad_norm_first, state.grad_norm_middle, state.grad_norm_last)
    assert np.linalg.norm(parts) == pytest.approx(state.grad_norm)
    sizes = [value.numel() for value in values]
    hessian = torch.autograd.functional.hessian(lambda *v: cross_entropy(logits(*v), y), values)
    whole = torch.cat(
        [
            torch.cat([b.reshape(m, n) for b, n in zip(row, sizes, strict=True)], 1)
            for row, m in zip(hessian, sizes, strict=True)
        ]
    )
    assert state.sharpness == pytest.approx(float(torch.linalg.eigvalsh(whole).abs().max()), rel=1e-3)
    J = torch.cat([j.reshape(24, -1) for j in torch.autograd.functional.jacobian(logits, values)], 1)
    eigenvalues = torch.linalg.eigvalsh(J @ J.T)
    assert state.kernel_norm == pytest.approx(float(eigenvalues[-1]))
    p = logits(*values).softmax(1)
    S = torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p)) / 6
    own = torch.linalg.eigvalsh(J.T @ S @ J).flip(0)[: 6 * 3]
    assert state.gauss_newton_condition_number == pytest.approx(float(own[0] / own[-1]), rel=1e-6)
    features = network.stem(x).detach()
    tail = torch.autograd.functional.jacobian(lambda h: network.head(network.blocks(h)), features).reshape(24, -1)
    singular = torch.linalg.svdvals(tail)
    assert state.jacobian_norm == pytest.approx(float(tail.norm()))
    assert state.isometry_cosine == pytest.approx(float(singular.mean() / singular.square().mean().sqrt()))


@pytest.fixture
def config(tmp_path):
    return preset(
        "interventions", arms=("chain", "gain-0.5"), trials=2, lr=(0.1, 0.2), subset=12, steps=2, out=tmp_path,
        model_options=("depth=2", "width=8", "normaliser=batch"), device="cpu",
    )  # fmt: skip


def test_every_arm_and_trial_has_a_row_whatever_the_rates_and_rows_are_kept(config, tmp_path):
    measure_initial_states(config, tmp_path, 1)
    table = read_initial_states(tmp_path)
    assert table[["arm", "trial"]].values.tolist() == [["chain", 0], ["chain", 1], ["gain-0.5", 0], ["gain-0.5", 1]]
    measure_initial_states(config.changed(trials=3), tmp_path, 1)
    more = read_initial_states(tmp_path)
    assert len(more) == 6
    pd.testing.assert_frame_equal(more[more["trial"] < 2].reset_index(drop=True), table)
    (tmp_path / INITIAL_STATES).write_bytes(b"no table")
    with pytest.raises(InputError, match=r"initial_states.parquet cannot be read as a table .*remove it"):
        read_initial_states(tmp_path)


@pytest.mark.slow
def test_several_processes_measure_the_same(config, tmp_path):
    measure_initial_states(config, tmp_path, 1)
    alone = read_initial_states(tmp_path)
    (tmp_path / INITIAL_STATES).unlink()
    measure_initial_states(config, tmp_path, 2)
    pd.testing.assert_frame_equal(read_initial_states(tmp_path).drop(columns="seconds"), alone.drop(columns="seconds"))
