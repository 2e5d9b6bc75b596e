"""Numerics of a measurement: what loses digits or derivatives is turned off."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def exact_numerics(devices: Sequence[torch.device]) -> Iterator[None]:
    """Inside, autocast, TF32, fused attention and compiled code, which lose digits or derivatives, are turned off."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_full_precision())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for kind in {"cpu", *(device.type for device in devices)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with _no_tf32() if hasattr(torch.backends, "fp32_precision") else _no_tf32_before_torch_2_9():
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    operators = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    # Only reduced precisions are touched: the older switches raise an error once a user has used these.
    reduced = {operator: operator.fp32_precision for operator in operators}
    reduced = {operator: precision for operator, precision in reduced.items() if precision not in ("ieee", "none")}
    try:
        for operator in reduced:
            operator.fp32_precision = "ieee"
        yield
    finally:
        for operator, precision in reduced.items():
            operator.fp32_precision = precision


@contextlib.contextmanager
def _no_tf32_before_torch_2_9() -> Iterator[None]:
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
