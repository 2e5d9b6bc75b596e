"""Which files are a run's checkpoints."""

import torch

from skip_conditioning.experiments.records.checkpoints import checkpoint_path, list_checkpoints, training_state_path
from skip_conditioning.experiments.records.tensor_files import save_checkpoint
from skip_conditioning.experiments.records.training_state import save_training_state
from tests.experiments.records.examples import network


def test_list_checkpoints(tmp_path):
    assert list_checkpoints(tmp_path) == []
    for step in (20, 3, 1_234_567_890):
        save_checkpoint(checkpoint_path(tmp_path, step), {}, {})
    save_training_state(training_state_path(tmp_path, 20), torch.optim.SGD(network().parameters()), {})
    folder = tmp_path / "checkpoints"
    for leftover in (".step_000000004.safetensors.77.tmp", "step_5.safetensors.tmp", "step_x.safetensors"):
        (folder / leftover).write_bytes(b"")
    assert list_checkpoints(tmp_path) == [(step, checkpoint_path(tmp_path, step)) for step in (3, 20, 1_234_567_890)]
