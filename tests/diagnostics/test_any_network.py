"""Networks of others, with batches of several parts: every map, in both modes, against autograd row by row."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.measure import spectra
from tests.diagnostics.networks_of_others import CASES, Case


def rows_of(output: Tensor, points: list[Tensor]) -> Tensor:
    """The Jacobian of an output in some tensors, one backward pass a row."""
    rows = []
    for entry in output.flatten():
        gradients = torch.autograd.grad(entry, points, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def floating(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else []
    return [tensor for part in parts for tensor in floating(part)]


def oracle(case: Case, map: str, inputs: Any) -> Tensor:
    """The Jacobian of a map by hooks and plain autograd."""
    case = copy.deepcopy(case)
    name, _, call = case.layer.partition("#")
    layer = case.model.get_submodule(name)
    parameters = list(layer.parameters())
    seen: dict[str, Any] = {"calls": 0}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen["calls"] += 1
        if map == "layer" and seen["calls"] == int(call or 1):
            seen["point"] = args[0].detach().clone().requires_grad_()
            return (seen["point"], *args[1:]), kwargs
        return None

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        if seen["calls"] != int(call or 1):
            return None
        tensors = floating(output)
        seen["output"] = tensors[0]
        if map != "tail":
            return None
        seen["point"] = tensors[case.part].detach().clone().requires_grad_()
        return replaced(output, tensors[case.part], seen["point"])

    layer.register_forward_pre_hook(before, with_kwargs=True)
    layer.register_forward_hook(after)
    if map == "network":
        seen["point"] = floating(inputs)[0]
        seen["point"].requires_grad_()
    try:
        with torch.enable_grad():
            outputs = case.call(inputs)
    except RuntimeError:
        if map != "layer":  # the derivative that the network takes itself is cut by the hook
            raise
    if map in ("layer", "param"):
        return rows_of(seen["output"], [seen["point"]] if map == "layer" else parameters)
    return rows_of(outputs, parameters if map == "kernel" else [seen["point"]])


def replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    if value is old:
        return new
    if isinstance(value, tuple):
        return tuple(replaced(part, old, new) for part in value)
    return value


def sample_of(inputs: Any, index: int) -> Any:
    """One sample of a batch."""
    if isinstance(inputs, Tensor):
        return inputs[index : index + 1]
    if isinstance(inputs, dict):
        return {name: sample_of(part, index) for name, part in inputs.items()}
    return tuple(sample_of(part, index) for part in inputs)


@pytest.mark.parametrize("mode", ["batch", "sample"])
@pytest.mark.parametrize("name", CASES)
def test_every_map_is_autograds_row_by_row(name: str, mode: str) -> None:
    case = CASES[name]()
    for map in ("layer", "tail", "param", "kernel", "network"):
        layers = None if map == "network" else [case.layer]
        options: dict[str, Any] = {"map": map, "layers": layers, "batch_mode": mode, "dtype": torch.float64}
        reason = case.refused.get(map) or case.refused.get(mode)
        if reason:
            with pytest.raises(InputError, match=reason):
                spectra(case.model, case.probe, **options, **case.reading)
            continue
        measured = list(spectra(case.model, case.probe, **options, **case.reading).values())
        inputs = case.inputs if mode == "batch" else sample_of(case.inputs, len(measured) - 1)
        expected = np.linalg.svd(oracle(case, map, inputs).detach().numpy(), compute_uv=False)
        if map == "kernel":
            expected = np.pad(expected**2, (0, measured[-1].rows - len(expected)))
        tolerance = 1e-12 if case.exact else 1e-6
        np.testing.assert_allclose(measured[-1].values, expected, rtol=tolerance, atol=tolerance * expected[0])
