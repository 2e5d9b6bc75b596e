"""How every measurement begins: the model unwrapped and ``quiet``, the probe and the weights in one precision."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.networks.capture import run_model
from skip_conditioning.diagnostics.networks.isolation import State, quiet, unwrap
from skip_conditioning.diagnostics.networks.map_building import build_maps
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.diagnostics.networks.recording import Recording

#: Outputs that differ by no more than this share are the same, whatever the precision.
_SAME = 1e-2


@dataclass(frozen=True, eq=False)
class ProbedModel:
    """A model at a probe, in the precision of the measurement; to be used inside ``measuring``.

    Attributes:
        model: The unwrapped module.
        probe: On its device and in that precision.
        state: Its weights and buffers, likewise.
        batch_mode: ``batch`` or ``sample``.
        dtype: The precision; None for the model's own.
        original: The probe before the conversion; ``in_dtype`` converts this.
        note: What a reader of its spectra should know of the precision.
        sample: Index of the only sample in the probe, for one of ``parts`` in ``sample`` mode; else None.
    """

    model: nn.Module
    probe: Probe
    state: State
    batch_mode: str
    dtype: torch.dtype | None
    original: Probe
    note: str = ""
    sample: int | None = None

    def maps(self, name: str, layers: Sequence[str] | str | None = None) -> list[Map]:
        """The maps of the chosen layers; as ``map_building.build_maps``."""
        maps = build_maps(self.model, self.state, self.probe, name, layers, one_sample=self.sample is not None)
        return [replace(item, note="; ".join(filter(None, (item.note, self.note)))) for item in maps]

    def recording(self) -> Recording:
        """A differentiable forward pass, through which cotangents can be pulled back."""
        return Recording(self.model, self.state, self.probe)

    def logits(self, replaced: Mapping[nn.Parameter, Tensor] | None = None) -> Tensor:
        """The outputs that count, in autograd's graph; ``replaced`` has tensors to use in place of some parameters."""
        return self.probe.outputs_of(self.returned(replaced))

    def returned(self, replaced: Mapping[nn.Parameter, Tensor] | None = None) -> Any:
        """What the model returns, likewise."""
        return run_model(self.model, self.state, self.probe, replaced)

    def parts(self) -> "list[ProbedModel]":
        """The parts that are measured separately: the whole probe in ``batch`` mode, each sample in ``sample`` mode."""
        return [self] if self.batch_mode == "batch" else self.samples()

    def samples(self) -> "list[ProbedModel]":
        """The model at each sample of the probe.

        Raises:
            InputError: A part of the probe has the batch's length and does not belong to the samples.
        """
        self._require_samples()
        pairs = zip(self.probe.split(), self.original.split(), strict=True)
        return [
            replace(self, probe=probe, original=original, sample=index) for index, (probe, original) in enumerate(pairs)
        ]

    def _require_samples(self) -> None:
        """Check that the first and the last sample alone have the outputs that they have in the batch.

        Only for several inputs: a tensor of positions that happens to be as long as the batch would be sliced too.
        """
        if len(self.probe.tensors) == 1 or self.batch_mode != "sample":
            return
        with torch.no_grad():
            whole = self.logits()
            for index, probe in ((0, self.probe.split()[0]), (-1, self.probe.split()[-1])):
                alone = replace(self, probe=probe).logits()
                together = whole[index : index + 1 or None] if whole.dim() else whole
                apart = torch.linalg.vector_norm((alone - together).double()) if alone.shape == together.shape else None
                if apart is None or apart > _SAME * torch.linalg.vector_norm(together.double()):
                    raise InputError(
                        f"a sample of the probe {self.probe.description()} has other outputs by itself than in the "
                        "batch: a part as long as the batch may not belong to the samples, or the model joins them; "
                        "measure batch_mode='batch', or give that part in forward=lambda model, inputs: ..."
                    )

    def at(self, probe: Probe) -> "ProbedModel":
        """The model at another probe, in the same precision."""
        return replace(self, probe=probe.on(self.model, self.dtype), original=probe)

    def in_dtype(self, dtype: torch.dtype) -> "ProbedModel":
        """The same in another precision."""
        probe = self.original.on(self.model, dtype)
        return replace(self, probe=probe, state=State(self.model, dtype), dtype=dtype)

    def snapshot(self) -> "ProbedModel":
        """The same with weights and buffers in memory of their own, so that later training does not change them."""
        return replace(self, state=self.state.snapshot())


@contextlib.contextmanager
def measuring(
    model: nn.Module, probe: Any, *, batch_mode: str = "batch", dtype: torch.dtype | None = None
) -> Iterator[ProbedModel]:
    """Measure inside, change nothing outside: the model at a probe, while it is ``quiet``.

    Args:
        model: Any module, wrapped or not.
        probe: A ``Probe``, or what ``Probe.of`` takes.
        batch_mode: ``batch`` leaves the train/eval flags as they are, ``sample`` puts the model in eval mode.
        dtype: Precision of the measurement; None keeps the model's own, and float32 where all of it is half precision.

    Raises:
        InputError: The model is no module, or the probe has no samples or cannot be read.
        NonFiniteError: The probe, a weight or a buffer holds NaN or infinity.
        UnsupportedModelError: The model is scripted or traced, or a part of it is.
    """
    module = unwrap(model)
    original, note = Probe.of(probe, module), ""
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    if dtype is None and kinds and kinds <= {torch.float16, torch.bfloat16}:
        dtype, note = torch.float32, f"{str(min(kinds, key=str)).removeprefix('torch.')} weights, measured in float32"
    own = original.on(module, dtype)
    with quiet(module, batch_mode=batch_mode):
        yield ProbedModel(module, own, State(module, dtype), batch_mode, dtype, original, note)
