"""Measuring without changing: a model is measured inside ``quiet`` and comes out as it went in.

Weights are used detached and buffers cloned (``State``); random number streams, global numerical switches and whatever
else a forward pass changes (``python_state``) are put back.
"""

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError, UnsupportedModelError
from skip_conditioning.diagnostics.networks.numerics import exact_numerics
from skip_conditioning.diagnostics.networks.python_state import held, state_of
from skip_conditioning.diagnostics.networks.sharded import hooks_without_sharding, require_measurable, whole

#: Dropout draws the same mask at every measurement, so that spectra differ because weights do.
_MASK_SEED = 0


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside the wrappers of ``torch.compile``, data parallelism and averaged weights.

    Raises:
        InputError: It is no module.
        UnsupportedModelError: It is scripted or traced, or a part of it is; or it is wrapped by FSDP's first version.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UnsupportedModelError(
            "modules of TorchScript take no weights from outside; measure the module that was scripted or traced"
        )
    require_measurable(model)
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
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

    Random number streams are forked, and what a forward pass changes is put back, as by ``python_state.held``; numbers
    are computed as in ``exact_numerics``.

    Args:
        model: The unwrapped module.
        batch_mode: ``sample`` puts every module in eval mode, so that batch norm uses its running statistics;
            ``batch`` leaves the flags as they are.
    """
    devices = [tensor.device for tensor in (*model.parameters(), *model.buffers())]
    with _forked_streams(devices), exact_numerics(devices), held(model) as state:
        for module, buffers in buffer_copies(model).items():
            state.set_attribute(module, "_buffers", buffers)
            if batch_mode == "sample":
                state.set_attribute(module, "training", False)
        for module in model.modules():
            for name, hooks in hooks_without_sharding(module).items():
                state.set_attribute(module, name, hooks)
            # The same gradients, but sparse ones have no place in a Jacobian.
            if getattr(module, "sparse", False) is True:
                state.set_attribute(module, "sparse", False)
            # accelerate's mixed precision replaces the forward pass by one inside autocast.
            if "_original_forward" in vars(module) and "forward" in vars(module):
                state.set_attribute(module, "forward", vars(module)["_original_forward"])
        yield


def buffer_copies(model: nn.Module) -> dict[nn.Module, dict[str, Tensor | None]]:
    """Tables of copies of a model's buffers, by module, to take the place of its own.

    A gradient checkpoint runs a part of the model again in the backward pass. The copies that ``State`` gives to a
    forward pass are no longer in place by then, and the model's own buffers would be written into.
    """
    copies: dict[Tensor, Tensor] = {}
    return {
        module: {
            name: buffer if buffer is None else copies.setdefault(buffer, buffer.detach().clone())
            for name, buffer in module._buffers.items()
        }
        for module in model.modules()
        if isinstance(module._buffers, dict)
    }


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
            value = whole(tensor)
            require_finite(value, name)
            layout = torch.channels_last if tensor in kernels else torch.preserve_format
            weight = convert(value, dtype).to(memory_format=layout)
            # Autograd does not take tensors made in inference mode.
            self._tensors[tensor] = weight.clone() if tensor in shortened or weight.is_inference() else weight
        for name, buffer in model.named_buffers():
            # An infinite buffer may be a mask; divergence shows in the values of the maps.
            require_finite(buffer, name, or_infinite=True)
            self._tensors[buffer] = convert(buffer.detach(), dtype)
        self.devices = [tensor.device for tensor in self._tensors]
        self._private = shortened
        #: Whether each call gets copies of the weights, as a forward pass writes into them; None before the first one.
        self.copies_weights: bool | None = None
        self._backward_changes: bool | None = None  # not known yet
        self._tables = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]

    def snapshot(self) -> "State":
        """The same in memory of its own, so that later training does not change it."""
        return self.moved(torch.clone)

    def in_dtype(self, dtype: torch.dtype) -> "State":
        """The same, everything floating converted."""
        return self.moved(lambda tensor: convert(tensor, dtype))

    def moved(self, change: Callable[[Tensor], Tensor]) -> "State":
        """The same with every tensor changed."""
        changed = copy.copy(self)
        changed._tensors = {tensor: change(value) for tensor, value in self._tensors.items()}
        return changed

    def of(self, module: nn.Module, replaced: Mapping[nn.Parameter, Tensor] | None = None) -> dict[str, Tensor]:
        """What ``functional_call`` needs for one module of the model: all its tensors, each under every name.

        Buffers are cloned at each call, as a forward pass may update them in place; weights where one does.

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
                weight = self._known(parameter, prefix + name) if replacement is None else replacement
                weights[prefix + name] = _clone_in_graph(weight) if self.copies_weights else weight
            for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False):
                weights[prefix + name] = self._known(buffer, prefix + name).clone()
        return weights

    def _known(self, tensor: Tensor, name: str) -> Tensor:
        if tensor not in self._tensors:
            raise InputError(f"{name} is made by the forward pass; run the model once before it is measured")
        return self._tensors[tensor]

    def is_written(self, parameter: nn.Parameter) -> bool:
        """Whether a forward pass writes into a weight, as far as is known yet."""
        return bool(self.copies_weights) or parameter in self._private

    def watched(self, replaced: Mapping[nn.Parameter, Tensor] | None = None) -> list[Tensor]:
        """The weights that no forward pass may write into unnoticed, and what replaces some of them."""
        weights = [tensor for tensor in self._tensors if isinstance(tensor, nn.Parameter)]
        return [*(self[weight] for weight in weights if weight not in self._private), *(replaced or {}).values()]

    def __getitem__(self, tensor: Tensor) -> Tensor:
        return self._tensors[tensor]

    @contextlib.contextmanager
    def installed(self, replaced: Mapping[nn.Parameter, Tensor] | None = None) -> Iterator[None]:
        """Inside, the modules hold these weights and copies of these buffers instead of their own: for backward passes.

        Hooks of a backward pass may change the Python side of the model. Whether they do is seen at the first one of a
        measurement; if so, it is put back after each that is made when the measurement is over.

        Args:
            replaced: Tensors to hold in place of some parameters.
        """
        model = self._tables[0][0]
        under_way = state_of(model)
        if under_way is None:
            with held(model) if self._backward_changes else contextlib.nullcontext() as python:
                if python is not None:
                    python.put_in_place()
                with self._swapped(replaced):
                    yield
            return
        if self._backward_changes is None:
            under_way.put_in_place()
        with self._swapped(replaced):
            yield
        if self._backward_changes is None:
            self._backward_changes = under_way.now(model) is not under_way

    @contextlib.contextmanager
    def _swapped(self, replaced: Mapping[nn.Parameter, Tensor] | None) -> Iterator[None]:
        weights: dict[Tensor, Tensor] = self._tensors | dict((replaced or {}).items())
        own = [(module, module._parameters, module._buffers) for module, _, _ in self._tables]
        try:
            for module, parameters, buffers in self._tables:
                vars(module)["_parameters"] = {
                    name: None if tensor is None else weights[tensor] for name, tensor in parameters.items()
                }
                vars(module)["_buffers"] = {
                    name: None if tensor is None else self[tensor].clone() for name, tensor in buffers.items()
                }
            yield
        finally:
            for module, parameters, buffers in own:
                vars(module)["_parameters"], vars(module)["_buffers"] = parameters, buffers

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


def _clone_in_graph(weight: Tensor) -> Tensor:
    """A copy of a weight that it depends on also where a part of the pass alone is differentiated."""
    with torch.enable_grad():
        return weight.clone()


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
    if tensor.is_meta:
        raise InputError(f"{name} is on the device 'meta' and has no values; move it to a real device first")
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
