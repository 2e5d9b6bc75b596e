"""How every measurement begins: the model unwrapped and ``quiet``, the probe and the weights in one precision."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.networks.capture import run
from skip_conditioning.diagnostics.networks.isolation import State, quiet, unwrap
from skip_conditioning.diagnostics.networks.map_building import build_maps
from skip_conditioning.diagnostics.networks.maps import Map, probe_input
from skip_conditioning.diagnostics.networks.outputs import logits_of
from skip_conditioning.diagnostics.networks.recording import Recording


@dataclass(frozen=True, eq=False)
class ProbedModel:
    """A model at a probe, in the precision of the measurement; to be used inside ``measuring``.

    Attributes:
        model: The unwrapped module.
        x: Probe inputs on its device and in that precision, shape ``(N, *input_shape)``.
        state: Its weights and buffers, likewise.
        batch_mode: ``batch`` or ``sample``.
        dtype: The precision; None for the model's own.
        original: The probe inputs before the conversion; ``in_dtype`` converts these.
        sample: Index of the only sample in ``x``, for one of ``parts`` in ``sample`` mode; else None.
    """

    model: nn.Module
    x: Tensor
    state: State
    batch_mode: str
    dtype: torch.dtype | None
    original: Tensor
    sample: int | None = None

    def maps(self, name: str, layers: Sequence[str] | str | None = None) -> list[Map]:
        """The maps of the chosen layers; as ``map_building.build_maps``."""
        return build_maps(self.model, self.state, self.x, name, layers, one_sample=self.sample is not None)

    def recording(self) -> Recording:
        """A differentiable forward pass, through which cotangents can be pulled back."""
        return Recording(self.model, self.state, self.x)

    def logits(self, replaced: Mapping[nn.Parameter, Tensor] | None = None) -> Tensor:
        """The model's outputs, in autograd's graph; ``replaced`` has tensors to use in place of some parameters."""
        return logits_of(run(self.model, self.state, (self.x,), replaced=replaced))

    def parts(self) -> "list[ProbedModel]":
        """The parts that are measured separately: the whole probe in ``batch`` mode, each sample in ``sample`` mode."""
        return [self] if self.batch_mode == "batch" else self.samples()

    def samples(self) -> "list[ProbedModel]":
        """The model at each sample of the probe."""
        pairs = zip(self.x.split(1), self.original.split(1), strict=True)
        return [replace(self, x=x, original=original, sample=index) for index, (x, original) in enumerate(pairs)]

    def at(self, x: Tensor) -> "ProbedModel":
        """The model at another batch, in the same precision."""
        return replace(self, x=probe_input(x, self.model, self.dtype), original=x)

    def in_dtype(self, dtype: torch.dtype) -> "ProbedModel":
        """The same in another precision."""
        x = probe_input(self.original, self.model, dtype)
        return replace(self, x=x, state=State(self.model, dtype), dtype=dtype)

    def snapshot(self) -> "ProbedModel":
        """The same with weights and buffers in memory of their own, so that later training does not change them."""
        return replace(self, state=self.state.snapshot())


@contextlib.contextmanager
def measuring(
    model: nn.Module, x: Tensor, *, batch_mode: str = "batch", dtype: torch.dtype | None = None
) -> Iterator[ProbedModel]:
    """Measure inside, change nothing outside: the model at a probe, while it is ``quiet``.

    Args:
        model: Any module, wrapped or not.
        x: Probe inputs, shape ``(N, *input_shape)``.
        batch_mode: ``batch`` leaves the train/eval flags as they are, ``sample`` puts the model in eval mode.
        dtype: Precision of the measurement; None keeps the model's own.

    Raises:
        InputError: The model is no module, or the probe no tensor with samples.
        NonFiniteError: The probe, a weight or a buffer holds NaN or infinity.
        UnsupportedModelError: The model is scripted or traced, or a part of it is.
    """
    module = unwrap(model)
    inputs = probe_input(x, module, dtype)
    with quiet(module, batch_mode=batch_mode):
        yield ProbedModel(module, inputs, State(module, dtype), batch_mode, dtype, x)
