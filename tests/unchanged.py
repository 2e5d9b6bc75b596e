"""That nothing changes: parameters, buffers, gradients, flags, hooks, random streams and switches, bit for bit."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def nothing_changes(model: nn.Module | None = None, x: Tensor | None = None) -> Iterator[None]:
    """What runs within leaves the process, the model and its probe as they were."""
    model = nn.Module() if model is None else model
    before = snapshot(model, x)
    yield
    after = snapshot(model, x)
    assert not [key for key in before if not same(before[key], after[key])]


def snapshot(model: nn.Module, x: Tensor | None = None) -> dict[str, Any]:
    """Everything of a model, its probe and the process that has to stay, in a form that ``same`` compares."""
    backends = torch.backends
    return {
        "tensors": {
            name: (tensor.detach().clone(), tensor.requires_grad, tensor._version, id(tensor))
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        },
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "probe": None if x is None else (x.detach().clone(), x.requires_grad, x.grad),
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [len(vars(module)[kind]) for kind in sorted(vars(module)) if kind.endswith("_hooks")]
            for name, module in model.named_modules()
        },
        "random": (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),
        "modes": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch._C._functorch.maybe_get_level(torch.zeros(())),
            torch._C._functorch.peek_interpreter_stack(),
        ),
        "threads": torch.get_num_threads(),
        "switches": (
            backends.mha.get_fastpath_enabled(),
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
            _precision(),
        ),
    }


def _precision() -> Any:
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    mkldnn, cudnn = backends.mkldnn, backends.cudnn
    operators = (backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    return backends.fp32_precision, *(operator.fp32_precision for operator in operators)


def same(a: Any, b: Any) -> bool:
    """Whether two snapshots are the same, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
