"""Networks of checkpoints: of the registry by a file's word, of the user's code by the command line's alone."""

import json
import sys

import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.analysis.targets import find_targets
from skip_conditioning.experiments.records.checkpoints import checkpoint_path
from skip_conditioning.experiments.records.tensor_files import save_checkpoint

RUN = {"arm": "default", "model_options": "", "num_classes": 3, "input_shape": [1, 2, 2], "batch_norm": "train"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of a user's network, and a module that leaves a mark when it is imported or called."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath('mark').touch()\n"
        "def factory(): return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))\n"
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    save_checkpoint(checkpoint_path(tmp_path / "run", 0), model.state_dict(), {})

    def described(**changes):
        (tmp_path / "run" / "config.json").write_text(json.dumps({"model": "theirs:factory", **RUN} | changes))
        return find_targets([tmp_path / "run"], ())[0]

    return described


@pytest.mark.parametrize(
    "model", ["theirs:factory", "theirs.py:factory", "subprocess:getoutput", "../x.py:f", "nothing"]
)
def test_code_that_a_file_names_is_neither_imported_nor_called(run, tmp_path, model):
    with pytest.raises(InputError, match="give it by --model yourself"):
        run(model=model, model_options="cmd=touch\tmark").build()
    assert not (tmp_path / "mark").exists()
    assert "theirs" not in sys.modules


def test_a_factory_from_the_command_line_builds_the_runs_network(run):
    network = run().build("theirs:factory")
    assert network(torch.ones(2, 1, 2, 2)).shape == (2, 3)


@pytest.mark.parametrize(
    "changes", [{"num_classes": None}, {"num_classes": "x"}, {"input_shape": 3}, {"input_shape": [1, -2]}, {"arm": [1]}]
)
def test_a_damaged_description_is_one_line(run, changes):
    with pytest.raises(InputError, match=r"config\.json"):
        run(**changes).build("theirs:factory")
    with pytest.raises(InputError, match=r"config\.json"):
        run(model=3).build()
