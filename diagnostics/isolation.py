"""What keeps the observer from changing anything: a model is measured inside ``quiet`` and comes out as it went in.

Weights are used detached and buffers cloned (``State``); random number streams, train/eval flags and global
numerical switches are put back.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diagnostics.errors import NonFiniteError

#: Dropout draws the same mask at every measurement, so that spectra differ because weights do.
_MASK_SEED = 0


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` wrappers."""
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

    Random number streams are forked and train/eval flags restored. Autocast, TF32 and the fused attention
    kernels, which either lose digits or have no second derivative rule, are off inside.

    Args:
        model: The unwrapped module.
        batch_mode: ``sample`` puts every module in eval mode, so that batch norm uses its running statistics;
            ``batch`` leaves the flags as they are.
    """
    flags = {module: module.training for module in model.modules()}
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=sorted(device.index for device in devices)))
        stack.enter_context(_full_precision())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for kind in {"cpu", *(device.type for device in devices)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        try:
            if batch_mode == "sample":
                for module in flags:
                    module.training = False
            yield
        finally:
            for module, training in flags.items():
                module.training = training


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.mha.set_fastpath_enabled(fastpath)


def seed_masks() -> None:
    """Start the forked random streams anew; called before every forward pass of a measurement."""
    torch.manual_seed(_MASK_SEED)


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
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            require_finite(tensor.detach(), name)
            self._tensors[tensor] = _for_convolution(convert(tensor.detach(), dtype))

    def of(self, module: nn.Module, replaced: Mapping[nn.Parameter, Tensor] | None = None) -> dict[str, Tensor]:
        """What ``functional_call`` needs for one module of the model, by name and by every alias.

        Buffers are cloned at each call, as a forward pass may update them in place.

        Args:
            module: The model or one of its modules.
            replaced: Tensors to use in place of some parameters.
        """
        weights = {name: self[parameter] for name, parameter in module.named_parameters(remove_duplicate=False)}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if replaced and parameter in replaced:
                weights[name] = replaced[parameter]
        for name, buffer in module.named_buffers(remove_duplicate=False):
            weights[name] = self[buffer].clone()
        return weights

    def __getitem__(self, tensor: Tensor) -> Tensor:
        return self._tensors[tensor]


def convert(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in ``dtype`` if it is floating, itself otherwise."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def require_finite(tensor: Tensor, name: str) -> None:
    """Raise ``NonFiniteError`` when a floating tensor holds NaN or infinity."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise NonFiniteError(
            f"{name} holds {bad} NaN or infinite of {tensor.numel()} values; "
            "measure an earlier step, or find out where the run diverged"
        )


def _for_convolution(weight: Tensor) -> Tensor:
    # Convolutions' backward, where the time goes, is about twice as fast with weights laid out channels last.
    is_kernel = weight.dim() == 4 and weight.is_floating_point()
    return weight.contiguous(memory_format=torch.channels_last) if is_kernel else weight
