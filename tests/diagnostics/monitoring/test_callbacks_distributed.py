"""Trainers in two processes: the first one measures and writes, and both train as without a callback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skip_conditioning import read_experiment

ROOT = Path(__file__).parents[3]

#: What each of two processes runs: which trainer, and the folder for everything.
PROGRAM = """
import os
import sys
from pathlib import Path

import torch

from skip_conditioning.callbacks import HuggingFaceCallback, LightningCallback
from tests.diagnostics.monitoring.test_callbacks import (
    ALWAYS, BATCH, PROBE, assert_same, hf_trainer, lightning_data, lightning_module, lightning_trainer, seed,
    state_after,
)

torch.set_num_threads(1)
trainer_name, folder = sys.argv[1], Path(sys.argv[2])
states = []
# The first run starts the group of processes, which draws random numbers.
for name in ("first", "without", "with"):
    seed()
    if trainer_name == "lightning":
        import lightning.pytorch as package

        callbacks = [LightningCallback(PROBE, folder / "run", **ALWAYS)] if name == "with" else []
        trainer = lightning_trainer(package, folder / name, callbacks, devices=2, strategy="ddp")
        module = lightning_module(package)
        trainer.fit(module, lightning_data())
        states.append(state_after(module, *trainer.optimizers))
    else:
        callbacks = [HuggingFaceCallback(BATCH, folder / "run", **ALWAYS)] if name == "with" else []
        trainer = hf_trainer(folder / name, callbacks, ddp_backend="gloo")
        trainer.train()
        states.append(state_after(trainer.model, trainer.optimizer))
    if callbacks:
        measured = callbacks[0].monitor.latest
        assert bool(measured) == (os.environ["RANK"] == "0")
assert torch.distributed.get_world_size() == 2
assert_same(*states[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["lightning", "hugging face"])
def test_the_first_process_measures_and_both_train_alike(trainer, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command, environment = [*launch, program, trainer, tmp_path], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    tables = read_experiment(tmp_path / "run")
    assert sorted(set(tables.spectra.step)) == [0, 1, 2, 3, 4]
    train = tables.metrics[tables.metrics.split == "train"]
    assert sorted(train.step) == [0, 1, 2, 3]
    assert not tables.spectra.duplicated(["step", "layer"]).any()
