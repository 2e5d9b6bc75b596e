"""A forward pass kept for many backward ones: what every layer was given, and the derivative of what it returned."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from diagnostics.capture import first_tensor, logits_of, run
from diagnostics.errors import NonFiniteError, UnsupportedModelError
from diagnostics.isolation import State


@dataclass(frozen=True)
class Use:
    """One call of one layer.

    Attributes:
        input: The first tensor it was given, detached.
        output_shape: Shape of the tensor it returned.
        edge: Where that tensor's cotangent arrives; it holds also if the tensor was changed in place afterwards.
    """

    input: Tensor
    output_shape: torch.Size
    edge: GradientEdge


class Recording:
    """A differentiable forward pass of a model on a batch, to be pulled back through as often as one likes.

    Args:
        model: The unwrapped module; to be used inside ``isolation.quiet``.
        state: Its weights and buffers.
        x: Inputs, shape ``(N, *input_shape)``.
        layers: Modules whose calls are watched.

    Attributes:
        logits: Shape ``(N, O)``: what the model returned, flattened per sample.
        output_shape: Its shape before.
        uses: The calls of each watched module, in order.
        leaves: The trainable parameters' stand-ins in the graph.
        widest: Entries of the largest tensor that a layer returned; memory is planned by it.

    Raises:
        UnsupportedModelError: The output has no dimension of samples, or is not differentiable.
        NonFiniteError: The output holds NaN or infinity.
    """

    def __init__(self, model: nn.Module, state: State, x: Tensor, layers: Sequence[nn.Module] = ()) -> None:
        self.uses: dict[nn.Module, list[Use]] = {layer: [] for layer in layers}
        self.widest = x.numel()
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.leaves = {parameter: state[parameter].detach().requires_grad_() for parameter in trainable}
        handles = [
            # First, so that a hook of the user's own that changes the output comes after.
            layer.register_forward_hook(self._watch, prepend=True, with_kwargs=True)
            for layer in model.modules()
            if layer in self.uses or not any(True for _ in layer.children())
        ]
        try:
            with torch.enable_grad():
                output = logits_of(run(model, state, (x,), replaced=self.leaves))
        finally:
            for handle in handles:
                handle.remove()
        if output.dim() == 0 or len(output) != len(x):
            raise UnsupportedModelError(
                f"the model returns a tensor of shape {tuple(output.shape)} for {len(x)} samples; a tangent kernel "
                "needs outputs (N, O): return one row of outputs for each sample"
            )
        if not output.requires_grad:
            raise UnsupportedModelError(
                "the model's output does not depend on any trainable parameter; unfreeze one, or do not detach it"
            )
        if not bool(torch.isfinite(output.detach()).all()):
            raise NonFiniteError("the model's output holds NaN or infinite values; measure an earlier step")
        self.output_shape = output.shape
        self.logits = output.reshape(len(x), -1)

    def gradients(self, cotangent: Tensor) -> dict[nn.Parameter, Tensor]:
        """``Jᵀ v`` by autograd for one cotangent ``(N, O)``; parameters that the logits do not depend on are left out."""
        found = self._grad(cotangent, list(self.leaves.values()), batched=False)
        return {one: part for one, part in zip(self.leaves, found, strict=True) if part is not None}

    def pull_back(self, cotangents: Tensor, targets: Sequence[Use | Tensor]) -> list[Tensor]:
        """Pull cotangents of the logits back, several at a time.

        Args:
            cotangents: Shape ``(rows, N, O)``.
            targets: Calls, for the cotangent of what they returned, or leaves.

        Returns:
            For each target a tensor of shape ``(rows, *its shape)``; zeros where the logits do not depend on it.
        """
        rows, batched = len(cotangents), len(cotangents) > 1
        places = [target.edge if isinstance(target, Use) else target for target in targets]
        found = self._grad(cotangents if batched else cotangents[0], places, batched)
        shapes = [target.output_shape if isinstance(target, Use) else target.shape for target in targets]
        return [
            self.logits.new_zeros(rows, *shape) if part is None else part.reshape(rows, *shape)
            for part, shape in zip(found, shapes, strict=True)
        ]

    def _grad(
        self, cotangents: Tensor, places: Sequence[Tensor | GradientEdge], batched: bool
    ) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            self.logits, places, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )

    def _watch(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:  # type: ignore[type-arg]
        given, returned = first_tensor((*args, *kwargs.values())), first_tensor(output)
        self.widest = max(self.widest, 0 if returned is None else returned.numel())
        if module in self.uses and given is not None and returned is not None and returned.requires_grad:
            self.uses[module].append(Use(given.detach(), returned.shape, get_gradient_edge(returned)))
