"""Measuring without changing: a model is measured inside ``quiet`` and comes out as it went in.

Weights are used detached and buffers cloned (``State``); random number streams, the modules' attributes (train/eval
flags among them) and global numerical switches are put back.
"""

import contextlib
import copy
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError, UnsupportedModelError

#: Dropout draws the same mask at every measurement, so that spectra differ because weights do.
_MASK_SEED = 0


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` wrappers.

    Raises:
        InputError: It is no module.
        UnsupportedModelError: It is scripted or traced, or a part of it is.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UnsupportedModelError(
            "modules of TorchScript take no weights from outside; measure the module that was scripted or traced"
        )
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, wrappers):
            model = model.module
        else:
            return model


def device_of(model: nn.Module, otherwise: Tensor) -> torch.device:
    """Where the model's first parameter or buffer lives, or another tensor when it has none."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), otherwise.device)


@contextlib.contextmanager
def quiet(model: nn.Module, *, batch_mode: str) -> Iterator[None]:
    """Measure inside, change nothing outside.

    Random number streams are forked and the modules' attributes restored (a forward pass may set some); numbers are
    computed as in ``exact_numerics``.

    Args:
        model: The unwrapped module.
        batch_mode: ``sample`` puts every module in eval mode, so that batch norm uses its running statistics;
            ``batch`` leaves the flags as they are.
    """
    attributes = {module: dict(vars(module)) for module in model.modules()}
    devices = [tensor.device for tensor in (*model.parameters(), *model.buffers())]
    with _forked_streams(devices), exact_numerics(devices):
        try:
            stand_in_for_buffers(model)
            if batch_mode == "sample":
                for module in attributes:
                    module.training = False
            yield
        finally:
            for module, before in attributes.items():
                vars(module).clear()
                vars(module).update(before)


def stand_in_for_buffers(model: nn.Module) -> None:
    """Give the model copies of its buffers.

    A gradient checkpoint runs a part of the model again in the backward pass. The copies that ``State`` gives to a
    forward pass are no longer in place by then, and the model's own buffers would be written into.
    """
    copies: dict[Tensor, Tensor] = {}
    for module in model.modules():
        if isinstance(module._buffers, dict):
            vars(module)["_buffers"] = {
                name: buffer if buffer is None else copies.setdefault(buffer, buffer.detach().clone())
                for name, buffer in module._buffers.items()
            }


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


def seed_streams(devices: Sequence[torch.device]) -> None:
    """Seed the random streams; called before every forward pass of a measurement.

    Args:
        devices: Where the weights live; ``torch.manual_seed`` would also seed devices whose streams are not restored.
    """
    random.seed(_MASK_SEED)
    np.random.seed(_MASK_SEED)
    torch.default_generator.manual_seed(_MASK_SEED)
    for index in _cuda_indices(devices):
        torch.cuda.default_generators[index].manual_seed(_MASK_SEED)


def save_streams(devices: Sequence[torch.device]) -> tuple[Any, ...]:
    """The state of every random stream that a forward pass can draw from; for ``restore_streams``."""
    on_devices = [torch.cuda.get_rng_state(index) for index in _cuda_indices(devices)]
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), on_devices


def restore_streams(streams: tuple[Any, ...], devices: Sequence[torch.device]) -> None:
    """Restore the random streams that ``save_streams`` returned."""
    python, legacy_numpy, cpu, on_devices = streams
    random.setstate(python)
    np.random.set_state(legacy_numpy)
    torch.set_rng_state(cpu)
    for index, state in zip(_cuda_indices(devices), on_devices, strict=True):
        torch.cuda.set_rng_state(state, index)


def _cuda_indices(devices: Sequence[torch.device]) -> list[int]:
    return sorted({device.index for device in devices if device.type == "cuda"})


@contextlib.contextmanager
def _forked_streams(devices: Sequence[torch.device]) -> Iterator[None]:
    streams = save_streams(devices)
    try:
        yield
    finally:
        restore_streams(streams, devices)


class State:
    """Detached weights and buffers of a model, in the precision of the measurement.

    Args:
        model: The unwrapped module.
        dtype: Precision for everything floating; None keeps the model's own.

    Raises:
        NonFiniteError: A weight or buffer holds NaN or infinity.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self._tensors: dict[Tensor, Tensor] = {}
        self._narrow = [module for module in model.modules() if _is_narrow(module)]
        kernels = {module.weight for module in self._narrow}
        # With ``max_norm``, a forward pass shortens the rows of the weight that it looks up.
        shortened = {module.weight for module in _embeddings(model) if module.max_norm is not None}
        for name, tensor in model.named_parameters():
            if nn.parameter.is_lazy(tensor):
                raise InputError(f"{name} has no shape yet; run the model once before it is measured")
            require_finite(tensor.detach(), name)
            layout = torch.channels_last if tensor in kernels else torch.preserve_format
            weight = convert(tensor.detach(), dtype).to(memory_format=layout)
            # Autograd does not take tensors made in inference mode.
            self._tensors[tensor] = weight.clone() if tensor in shortened or weight.is_inference() else weight
        for name, buffer in model.named_buffers():
            # An infinite buffer may be a mask; divergence shows in the values of the maps.
            require_finite(buffer, name, or_infinite=True)
            self._tensors[buffer] = convert(buffer.detach(), dtype)
        self.devices = [tensor.device for tensor in self._tensors]

    def snapshot(self) -> "State":
        """The same in memory of its own, so that later training does not change it."""
        copied = copy.copy(self)
        copied._tensors = {tensor: value.clone() for tensor, value in self._tensors.items()}
        return copied

    def of(self, module: nn.Module, replaced: Mapping[nn.Parameter, Tensor] | None = None) -> dict[str, Tensor]:
        """What ``functional_call`` needs for one module of the model: all its tensors, each under every name.

        Buffers are cloned at each call, as a forward pass may update them in place.

        Args:
            module: The model or one of its modules.
            replaced: Tensors to use in place of some parameters.
        """
        weights: dict[str, Tensor] = {}
        # Each module under one of its names only: ``functional_call`` would put a second one's weights back wrongly.
        for path, part in module.named_modules():
            prefix = f"{path}." if path else ""
            for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
                replacement = (replaced or {}).get(parameter)
                weights[prefix + name] = self[parameter] if replacement is None else replacement
            for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False):
                weights[prefix + name] = self[buffer].clone()
        return weights

    def __getitem__(self, tensor: Tensor) -> Tensor:
        return self._tensors[tensor]

    @contextlib.contextmanager
    def row_major_outputs(self) -> Iterator[None]:
        """Inside, convolutions with channels-last weights do not hand that layout on.

        On a CPU, batch norm of a channels-last tensor sums naively in float32: with 32 images of 112×112 pixels its
        output is off by 1e-4, where that of a row-major tensor is off by 1e-6.
        """
        handles = [conv.register_forward_hook(lambda _, args, output: output.contiguous()) for conv in self._narrow]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _embeddings(model: nn.Module) -> list[nn.Embedding | nn.EmbeddingBag]:
    return [module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]


def _is_narrow(module: nn.Module) -> bool:
    """Whether a convolution's backward is much faster with its weights laid out channels last.

    On a CPU it is about twice as fast for numbers of channels that are no multiples of 16, which oneDNN would pad to
    blocks of 16; for multiples of 16 it makes no difference.
    """
    if type(module) is not nn.Conv2d or module.weight.device.type != "cpu":
        return False
    return any(channels % 16 for channels in module.weight.shape[:2])


def convert(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in ``dtype`` if it is floating, itself otherwise."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def require_finite(tensor: Tensor, name: str, *, or_infinite: bool = False) -> None:
    """Raise ``NonFiniteError`` when a floating tensor holds NaN or, unless allowed, infinity."""
    # A finite sum, which takes a single pass, proves it; a sum may overflow, so otherwise the entries decide.
    if tensor.dtype in (torch.float32, torch.float64) and math.isfinite(tensor.sum().item()):
        return
    allowed = ~torch.isnan(tensor) if or_infinite else torch.isfinite(tensor)
    if not bool(allowed.all()):
        count = int((~allowed).sum())
        raise NonFiniteError(
            f"{name} holds {count} NaN or infinite of {tensor.numel()} values; "
            "measure an earlier step, or find out where the run diverged"
        )
