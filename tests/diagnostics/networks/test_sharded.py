"""Weights in shards of two processes: the numbers of one process, and the training of a run without diagnostics."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import UnsupportedModelError
from skip_conditioning.diagnostics.measure import spectra
from tests.processes import run_forked

PROGRAM = """
import sys, warnings
from pathlib import Path
import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from skip_conditioning import SpectrumMonitor, read_experiment, spectra

torch.set_num_threads(1)
warnings.simplefilter("ignore")
rank, meeting = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
folder = Path(meeting).parent


def network():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), inner, nn.Linear(6, 3))


def equal(left, right):
    assert list(left) == list(right)
    for name in right:
        np.testing.assert_allclose(left[name].values, right[name].values, rtol=1e-9, atol=1e-12)


whole, sharded = network(), network()
mesh = init_device_mesh("cpu", (2,))
for module in (sharded[3], sharded):
    fully_shard(module, mesh=mesh)
x, y = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])
for map in ("layer", "tail", "network", "param", "kernel"):
    for group in (None, distributed.group.WORLD):
        expected = spectra(whole, x, map=map, dtype=torch.float64)
        equal(spectra(sharded, x, map=map, dtype=torch.float64, group=group), expected)


def trained(model, watch=lambda step, loss: None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        loss = nn.functional.cross_entropy(model(x), y)
        watch(step, loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


with SpectrumMonitor(sharded, (x, y), folder / "run", schedule=1, max_overhead=None) as monitor:
    trained(sharded, lambda step, loss: monitor.step(step, loss=loss))
trained(whole)
for left, right in zip(sharded.parameters(), whole.parameters(), strict=True):
    torch.testing.assert_close(left.full_tensor(), right)
if rank == 0:
    tables = read_experiment(folder / "run")
    assert not len(tables.skipped) and set(tables.spectra["step"]) == {0, 1, 2}
distributed.barrier()
distributed.destroy_process_group()
"""


def test_shards_are_gathered_for_every_map_and_training_is_the_same(tmp_path: Path) -> None:
    results = run_forked(PROGRAM, [[str(rank), str(tmp_path / "meeting")] for rank in range(2)], tmp_path)
    assert [code for code, _, _ in results] == [0, 0], results


def test_the_first_version_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type("FullyShardedDataParallel", (nn.Sequential,), {"__module__": "torch.distributed.fsdp.wrapper"})
    with pytest.raises(UnsupportedModelError, match=r"'1'|1 is wrapped by FullyShardedDataParallel.*fully_shard"):
        spectra(nn.Sequential(nn.Linear(3, 3), kind(nn.Linear(3, 3))), torch.randn(2, 3))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile])
def test_wrappers_are_looked_through(wrap: type) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = wrap(model)
    assert [*spectra(wrapped, x)] == [*spectra(model, x)] == ["0", "2"]
