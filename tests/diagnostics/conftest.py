"""The networks to measure, and an oracle made of plain autograd on a deep copy."""

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from tests.diagnostics.sample_networks import CASES, Case
from tests.processes import run_forked

Oracle = Callable[..., Tensor]


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=[case for case in CASES if "kernel" in case.maps], ids=lambda case: case.id)
def kernel_case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="session")
def make() -> Callable[[str], tuple[nn.Module, Tensor]]:
    """The network and probe of a case by its id."""
    by_id = {case.id: case for case in CASES}
    return lambda name: by_id[name].make()


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """A dense Jacobian from plain autograd, a row at a time."""

    def jacobian(model: nn.Module, x: Tensor, map: str, layer: str | None, batch_mode: str = "batch") -> Tensor:
        if batch_mode == "sample":
            model = copy.deepcopy(model).eval()
            return torch.stack([jacobian(model, one, map, layer) for one in x.split(1)])
        rows = _plain_jacobian(copy.deepcopy(model), x.clone(), map, layer)
        return rows @ rows.T if map == "kernel" else rows

    return jacobian


def _plain_jacobian(model: nn.Module, x: Tensor, map: str, layer: str | None) -> Tensor:
    name, _, number = (layer or "").partition("#")
    module = model if layer in (None, "total") else model.get_submodule(name)
    wanted, calls, seen = int(number or 1), 0, {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if map == "tail" or calls != wanted:
            return None
        value = args[0] if args else kwargs["values"]
        point = value.detach().clone().requires_grad_(map == "layer")
        seen.update({"point": point} if map == "layer" else {})
        cut = point.clone()
        args = tuple(cut if arg is value else arg for arg in args)
        return args, {key: cut if arg is value else arg for key, arg in kwargs.items()}

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        if calls != wanted:
            return None
        value = output[0] if isinstance(output, tuple) else output
        if map in ("layer", "param"):
            seen["value"] = value.clone()
        if map != "tail":
            return None
        seen["point"] = value.detach().clone().requires_grad_()
        cut = seen["point"].clone()
        return (cut, *output[1:]) if isinstance(output, tuple) else cut

    if map in ("layer", "tail", "param"):
        module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
        module.register_forward_hook(after)
    if map == "network":
        seen["point"] = x.requires_grad_()
        x = x.clone()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    logits = model(x)
    logits = logits["logits"] if isinstance(logits, dict) else logits[0] if isinstance(logits, tuple) else logits
    value = seen["value"] if map in ("layer", "param") else logits
    points = [seen["point"]] if "point" in seen else [p for p in module.parameters() if p.requires_grad]
    rows = [
        torch.autograd.grad(entry, points, retain_graph=True, allow_unused=True, materialize_grads=True)
        for entry in value.flatten()
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """Small matrices are faster on one thread, and tests should not fight over the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def agree_in_two_processes(tmp_path: Path) -> Callable[..., None]:
    """Runs a program in two processes; it gets its rank and the file to meet through."""

    def run(program: str) -> None:
        imports = ("torch._dynamo", "skip_conditioning.diagnostics.measure")
        arguments = [[str(rank), str(tmp_path / "meeting")] for rank in range(2)]
        for code, output, errors in run_forked(program, arguments, tmp_path, imports=imports):
            assert (code, output.strip()[-10:]) == (0, "both agree"), output + errors

    return run
