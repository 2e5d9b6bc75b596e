"""The probe: a fixed batch of any kind, how the model is called on it, and which of its outputs count."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.networks.copies import copied
from skip_conditioning.diagnostics.networks.isolation import convert, device_of, require_finite
from skip_conditioning.diagnostics.networks.output_choice import IGNORED, choose_output, restrict
from skip_conditioning.diagnostics.networks.signatures import TARGET_NAMES, missing_or_unknown, pair_means

#: ``(output, batch) -> loss`` or one of ``LOSSES``; a loss module of PyTorch is called as ``(output, targets)``.
Loss = str | Callable[[Any, Any], Tensor] | nn.Module
LOSSES = ("cross_entropy", "mse", "bce", "causal_lm")


class Call(TypedDict, total=False):
    """How a model is called, and what counts of what it returns: optional arguments of ``Probe``."""

    forward: Callable[[nn.Module, Any], Any] | None
    output: str | int | Callable[[Any], Tensor] | None
    loss: Loss | None
    ignore_index: int


class Reading(Call, total=False):
    """How a batch is read: the optional arguments of ``Probe``, which every function that takes a probe takes too."""

    outputs: Any


@dataclass(frozen=True, eq=False)
class Probe:
    """A fixed batch, how the model is called on it, and which of its outputs count.

    Functions that take a probe also take what it is made of: inputs, or a pair ``(inputs, targets)``. It is needed
    where that would be ambiguous.

    Attributes:
        inputs: A tensor, shape ``(N, *input_shape)``; a tuple or list of positional inputs; a dictionary of keyword
            inputs, as a tokenizer returns it; or an object that the forward pass takes. Its tensors of length N belong
            to the samples and are sliced together; the others are shared by all.
        targets: What the loss compares the outputs with; those in a dictionary of inputs (``labels``) by default.
        forward: ``(model, inputs) -> output``, where that is not the model's own call.
        output: Which part of what the model returns counts: a key, attribute or index, or a function of it. By default
            the tensor itself, ``logits``, or the first real tensor that is no scalar.
        outputs: Which entries of that tensor, ``(N, ..., K)``, count: a slice, an index or indices of the last
            dimension; ``last_token``, the last position that ``attention_mask`` leaves; ``targets``, those that
            the class indices point to; a mask, shape ``(N, ...)``, with as many entries for each sample; or a function.
        loss: ``cross_entropy``, ``mse``, ``bce`` (with logits), ``causal_lm`` (each position predicts the next token),
            a loss module of PyTorch, or a function ``(output, batch)`` of what the model returns and of the inputs, or
            ``(inputs, targets)``. By default the model's own where it returns one from the labels; else cross-entropy
            for class indices, the mean square for real targets.
        ignore_index: The class index that the losses pass over.
        target_name: The key of targets that were in a dictionary of inputs, for a forward pass that does not take them.
    """

    inputs: Any
    targets: Any = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    output: str | int | Callable[[Any], Tensor] | None = None
    outputs: Any = None
    loss: Loss | None = None
    ignore_index: int = IGNORED
    target_name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.inputs, Mapping):
            object.__setattr__(self, "inputs", dict(self.inputs))
        if not any(tensor.dim() > 0 and tensor.numel() > 0 for tensor in self.tensors):
            raise InputError(
                "the probe must be a tensor of shape (N, *input_shape), or a tuple or dictionary of tensors, with at "
                f"least one sample; it is {_described(self.inputs)}"
            )
        targets = list(_tensors_in(self.targets))
        if targets and targets[0].dim() > 0 and len(targets[0]) != len(self) and not _is_flattened(self, targets[0]):
            raise InputError(
                f"the probe's targets do not fit the inputs: {len(targets[0])} of them for {len(self)} samples; give "
                "one for each sample"
            )
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise InputError(f"unknown loss {self.loss!r}; known are {', '.join(LOSSES)}, or give a function")

    @classmethod
    def of(cls, batch: Any, model: nn.Module, targets: Any = None, **reading: Any) -> "Probe":
        """A probe from what a user has: a probe already, inputs, or a pair ``(inputs, targets)``.

        Args:
            batch: The batch.
            model: The unwrapped module; what its forward pass takes tells two inputs from inputs and targets.
            targets: Given apart; then a tuple or list holds positional inputs only.
            reading: Attributes of ``Probe``.

        Raises:
            InputError: The batch can be read in two ways, lacks an argument that the forward pass needs or has one that
                it does not take, or holds no samples.
        """
        unknown = sorted(set(reading) - set(Reading.__annotations__))
        if unknown:
            raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
        chosen = {name: value for name, value in reading.items() if value is not None}
        if isinstance(batch, Probe):
            return replace(batch, **chosen, **({} if targets is None else {"targets": targets}))
        given, inputs = targets is not None, batch
        if not given and type(batch) in (tuple, list):
            inputs, targets = pair_means(batch, model, has_forward="forward" in chosen)
        if isinstance(inputs, Mapping) and "forward" not in chosen:
            keywords = dict(inputs)
            inputs, name = missing_or_unknown(keywords, model)
            if name and targets is None:
                targets, chosen["target_name"] = keywords[name], name
        if isinstance(inputs, Mapping) and targets is None:
            targets = next((inputs[name] for name in TARGET_NAMES if inputs.get(name) is not None), None)
        return cls(inputs, targets, **chosen)

    def like(self, batch: Any, model: nn.Module) -> "Probe":
        """Another batch, read as this one is."""
        if isinstance(batch, Probe):
            return batch
        other = Probe.of(batch, model, forward=self.forward)
        return replace(self, inputs=other.inputs, targets=other.targets)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the inputs, in order."""
        return list(_tensors_in(self.inputs))

    @property
    def first(self) -> Tensor:
        """The first tensor that has samples."""
        return next(tensor for tensor in self.tensors if tensor.dim() > 0)

    def __len__(self) -> int:
        return len(self.first)

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        return self.first.device

    @property
    def batch(self) -> Any:
        """What a loss function gets: the inputs, or ``(inputs, targets)`` where these are apart from them."""
        if self.target_name:
            return {**self.inputs, self.target_name: self.targets}
        held = isinstance(self.inputs, dict) and any(self.inputs.get(name) is self.targets for name in TARGET_NAMES)
        return self.inputs if held or self.targets is None else (self.inputs, self.targets)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the model's call; with ``forward``, the inputs are the only one."""
        if self.forward is None and isinstance(self.inputs, dict):
            return (), self.inputs
        is_listed = self.forward is None and type(self.inputs) in (tuple, list)
        return (tuple(self.inputs) if is_listed else (self.inputs,)), {}

    @property
    def differentiable(self) -> list[int]:
        """Which of ``tensors`` are real inputs with a derivative: no masks, and nothing infinite."""
        masks = {id(value) for name, value in self._named() if "mask" in name}
        return [
            index
            for index, tensor in enumerate(self.tensors)
            if tensor.is_floating_point() and id(tensor) not in masks and _is_finite(tensor)
        ]

    def on(self, model: nn.Module, dtype: torch.dtype | None) -> "Probe":
        """The probe on a model's device, what is floating in the measurement's precision.

        Raises:
            NonFiniteError: The probe holds NaN, or its first tensor infinity; others may be masks.
        """
        for index, tensor in enumerate(self.tensors):
            require_finite(tensor, "the probe", or_infinite=index > 0)
        device = device_of(model, self.first)
        if device.type == "meta":
            raise InputError("the weights are on the device 'meta' and have no values; move the model to a real device")
        with torch.inference_mode(False):

            def moved(tensor: Tensor) -> Tensor:
                converted = convert(tensor.detach().to(device), dtype)
                return converted.clone() if converted.is_inference() else converted  # autograd takes no others

            return self.mapped(moved)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Probe":
        """The same with every tensor of the inputs and the targets changed, each once."""
        copies: dict[int, Any] = {}
        inputs = copied(self.inputs, copies, change)
        return replace(self, inputs=inputs, targets=copied(self.targets, copies, change))

    def with_tensors(self, replacements: Mapping[int, Tensor]) -> "Probe":
        """The same with some of ``tensors`` replaced, by their index."""
        by_id = {id(tensor): replacements[index] for index, tensor in enumerate(self.tensors) if index in replacements}
        return replace(self, inputs=copied(self.inputs, {}, lambda tensor: by_id.get(id(tensor), tensor)))

    def split(self) -> "list[Probe]":
        """A probe of each sample: tensors of the batch's length are sliced, others shared."""
        samples = len(self)

        def part(index: int) -> Probe:
            def sliced(tensor: Tensor) -> Tensor:
                if tensor.dim() == 0 or len(tensor) != samples:
                    return tensor
                if tensor.layout is not torch.strided:
                    raise InputError("a sparse part of the probe has no samples to slice; measure batch_mode='batch'")
                return tensor[index : index + 1]

            mask = self.outputs
            is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool
            return replace(self.mapped(sliced), outputs=mask[index : index + 1] if is_mask else mask)

        return [part(index) for index in range(samples)]

    def output_of(self, returned: Any) -> Tensor:
        """The tensor that counts of what the model returned, all entries of it."""
        return choose_output(returned, self.output)

    def outputs_of(self, returned: Any) -> Tensor:
        """The entries that count of what the model returned; samples first."""
        output = self.output_of(returned)
        if self.outputs is None:
            return output
        mask = self.inputs.get("attention_mask") if isinstance(self.inputs, dict) else None
        return restrict(output, self.outputs, self.targets, self.first, mask, self.ignore_index)

    def description(self) -> str:
        """Shapes and types of the inputs, for messages."""
        if isinstance(self.inputs, Tensor):
            return f"of shape {tuple(self.inputs.shape)} and {_dtype(self.inputs)}"
        return "with " + ", ".join(f"{name} {_brief(value)}" for name, value in self._named())

    def _named(self) -> Iterator[tuple[str, Any]]:
        if isinstance(self.inputs, dict):
            yield from ((str(name), value) for name, value in self.inputs.items())
        elif type(self.inputs) in (tuple, list):
            yield from ((f"input {index}", value) for index, value in enumerate(self.inputs))
        else:
            yield "input", self.inputs


def _is_flattened(probe: Probe, targets: Tensor) -> bool:
    """Whether targets may be those of all positions of all samples in a row."""
    return targets.dim() == 1 and len(targets) % len(probe) == 0 and len(targets) > 0


def _is_finite(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and bool(torch.isfinite(tensor).all())


def _tensors_in(value: Any) -> Iterator[Tensor]:
    tensors: list[Tensor] = []

    def collected(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    copied(value, {}, collected)
    return iter(tensors)


def _brief(value: Any) -> str:
    return f"{tuple(value.shape)} {_dtype(value)}" if isinstance(value, Tensor) else _described(value)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Sequence | Mapping) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
