"""A forward pass kept for many backward ones: which functions used each parameter, and on which inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from skip_conditioning.diagnostics.errors import NonFiniteError, UnsupportedModelError
from skip_conditioning.diagnostics.networks.capture import clear_forward_errors, run_model
from skip_conditioning.diagnostics.networks.isolation import State
from skip_conditioning.diagnostics.networks.probe import Probe

#: Functions whose parameter gradients have a structure worth using, and the names of their arguments in order.
SIGNATURES: dict[Callable[..., Any], tuple[str, ...]] = {
    functional.linear: ("input", "weight", "bias"),
    functional.conv1d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    functional.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    functional.conv3d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    functional.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    functional.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    functional.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    functional.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    functional.embedding: ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
}


#: Units in the last place that gradients taken together may differ by from single ones.
_UNITS = 2.0**10


@dataclass(frozen=True, eq=False)
class Use:
    """One call of a function of ``SIGNATURES`` with a trainable parameter.

    Attributes:
        function: The function.
        input: Its input, detached; samples first unless ``sample_axis`` is 1.
        weight: The trainable parameter that was its weight; None if that was none.
        bias: Likewise.
        weight_shape: Shape of its weight, trainable or not; empty without a weight.
        options: The other arguments of the call.
        output_shape: Shape of the tensor it returned, when it was returned.
        edge: Where the cotangent of that tensor arrives, also if the tensor was changed in place afterwards.
        sample_axis: Which axis of the output the samples run along; 1 for sequences that come first.
    """

    function: Callable[..., Any]
    input: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    weight_shape: torch.Size
    options: Mapping[str, Any]
    output_shape: torch.Size
    edge: GradientEdge
    sample_axis: int


class Recording:
    """A differentiable forward pass of a model on a batch, through which any number of cotangents can be pulled back.

    Args:
        model: The unwrapped module; to be used inside ``isolation.quiet``.
        state: Its weights and buffers.
        probe: In the precision of the measurement.

    Attributes:
        returned: What the model returned, in the graph.
        logits: The model's output, flattened per sample: shape ``(N, O)``.
        output_shape: Its shape before.
        uses: The calls of functions of ``SIGNATURES`` with a trainable parameter, in order.
        leaves: The trainable parameters' stand-ins in the graph, so that nothing of the model is touched.
        dtypes: Those of the real tensors on the way that depend on the parameters.
        widest: Entries of the largest of the input, the output and what those calls returned; memory is planned by it.

    Raises:
        UnsupportedModelError: The output has no dimension of samples, or is not differentiable.
        NonFiniteError: The output holds NaN or infinity.
    """

    def __init__(self, model: nn.Module, state: State, probe: Probe) -> None:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.leaves = {parameter: state[parameter].detach().requires_grad_() for parameter in trainable}
        self._called: set[nn.Module] = set()
        self._state = state
        self._batches: bool | None = None  # not known yet
        handles = [module.register_forward_pre_hook(self._note_call) for module in model.modules()]
        watch = _Watch({leaf: parameter for parameter, leaf in self.leaves.items()}, len(probe))

        def forget() -> None:
            self._called.clear()
            watch.uses.clear()

        try:
            with torch.enable_grad(), watch, clear_forward_errors(model, probe):
                self.returned = run_model(model, state, probe, self.leaves, restart=forget)
                output = probe.outputs_of(self.returned)
        finally:
            for handle in handles:
                handle.remove()
        if output.dim() == 0 or len(output) != len(probe):
            raise UnsupportedModelError(
                f"the model returns a tensor of shape {tuple(output.shape)} for {len(probe)} samples; a tangent kernel "
                "needs outputs (N, O): return one row of outputs for each sample"
            )
        if not output.requires_grad:
            raise UnsupportedModelError(
                "the model's output does not depend on any trainable parameter; unfreeze one, or do not detach it"
            )
        if not bool(torch.isfinite(output.detach()).all()):
            raise NonFiniteError("the model's output holds NaN or infinite values; measure an earlier step")
        self.dtypes = {dtype for dtype in watch.dtypes if dtype.is_floating_point}
        self.uses, self.output_shape, self.logits = watch.uses, output.shape, output.reshape(len(probe), -1)
        self.widest = max(
            [*(x.numel() for x in probe.tensors), output.numel(), *(use.output_shape.numel() for use in watch.uses)]
        )

    @property
    def eps(self) -> float:
        """Unit roundoff of the least precise tensor among them and the outputs."""
        return max(torch.finfo(dtype).eps for dtype in {self.logits.dtype, *self.dtypes})

    def calls(self, model: nn.Module, layer: str) -> bool:
        """Whether a module, or one within it, was called; true for a parameter's name."""
        modules = dict(model.named_modules())
        return layer not in modules or any(module in self._called for module in modules[layer].modules())

    def _note_call(self, module: nn.Module, args: Any) -> None:
        self._called.add(module)

    def gradients(self, cotangent: Tensor) -> dict[nn.Parameter, Tensor]:
        """``Jᵀ v`` by autograd for one cotangent ``(N, O)``, without parameters that the logits do not depend on."""
        gradients = self._grad(cotangent, [*self.leaves.values()])
        pairs = zip(self.leaves, gradients, strict=True)
        return {parameter: gradient for parameter, gradient in pairs if gradient is not None}

    def pull_back(self, cotangents: Tensor, targets: Sequence[Use | Tensor]) -> list[Tensor]:
        """Pull several cotangents of the logits back at a time.

        Args:
            cotangents: Shape ``(rows, N, O)``.
            targets: Where to: a call stands for the tensor it returned; or one of ``leaves``.

        Returns:
            For each target a tensor of shape ``(rows, *its shape)``; zeros where the logits do not depend on it.
        """
        inputs = [target.edge if isinstance(target, Use) else target for target in targets]
        gradients: list[Tensor | None] | None
        if len(cotangents) == 1:
            gradients = [None if part is None else part[None] for part in self._grad(cotangents[0], inputs)]
        else:
            gradients = None if self._batches is False else self._batched_grad(cotangents, inputs)
            if gradients is not None and self._batches is None:
                self._batches = self._is_right(gradients, cotangents, inputs)
            if gradients is None or not self._batches:
                singly = [self._grad(cotangent, inputs) for cotangent in cotangents]
                gradients = [None if rows[0] is None else torch.stack(rows) for rows in zip(*singly, strict=True)]
        shapes = [target.output_shape if isinstance(target, Use) else target.shape for target in targets]
        return [
            self.logits.new_zeros(len(cotangents), *shape) if gradient is None else gradient
            for gradient, shape in zip(gradients, shapes, strict=True)
        ]

    def _grad(self, cotangent: Tensor, inputs: Sequence[Any]) -> list[Tensor | None]:
        """Gradients at tensors and edges of the graph; None where the logits do not depend on them."""
        try:
            with self._state.installed(self.leaves):
                gradients = torch.autograd.grad(self.logits, inputs, cotangent, retain_graph=True, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UnsupportedModelError(
                f"the outputs cannot be differentiated in the parameters ({str(error).strip().splitlines()[0]}); turn "
                "gradient checkpointing off if the model uses it"
            ) from error
        return [part.to_dense() if part is not None and part.is_sparse else part for part in gradients]

    def _batched_grad(self, cotangents: Tensor, inputs: Sequence[Any]) -> list[Tensor | None]:
        """The same for several cotangents; by ``vmap``, as ``is_grads_batched`` runs convolutions one at a time."""
        reached: list[bool] = []

        def grad(cotangent: Tensor) -> list[Tensor]:
            gradients = torch.autograd.grad(self.logits, inputs, cotangent, retain_graph=True, allow_unused=True)
            reached[:] = [gradient is not None for gradient in gradients]
            return [gradient for gradient in gradients if gradient is not None]

        with self._state.installed(self.leaves):
            batched = iter(vmap(grad)(cotangents))
        return [next(batched) if is_reached else None for is_reached in reached]

    def _is_right(self, gradients: list[Tensor | None], cotangents: Tensor, inputs: Sequence[Any]) -> bool:
        """Whether batched gradients agree with a single one, of a random sum: some of vmap's rules are wrong."""
        drawn = torch.randn(len(cotangents), generator=torch.Generator().manual_seed(0))
        weights = drawn.to(cotangents)
        for batched, single in zip(gradients, self._grad(torch.tensordot(weights, cotangents, 1), inputs), strict=True):
            if batched is not None and single is not None and batched.dtype == weights.dtype:
                error = torch.linalg.vector_norm(torch.tensordot(weights, batched, 1) - single)
                size = torch.linalg.vector_norm(weights) * torch.linalg.vector_norm(batched)
                if error > _UNITS * torch.finfo(batched.dtype).eps * size:
                    return False
        return True

    def hides_parameters(self) -> bool:
        """Whether a reentrant gradient checkpoint cuts the graph: the parameters inside it would pass for unused."""
        visited, waiting = set(), [self.logits.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in visited:
                visited.add(node)
                if node.name() == "CheckpointFunctionBackward":
                    return True
                waiting += [following for following, _ in node.next_functions]
        return False


class _Watch(TorchFunctionMode):
    """Notes the calls of known functions with trainable parameters.

    Args:
        parameters: The trainable parameters, by their leaves.
        samples: Their number, N.
    """

    def __init__(self, parameters: Mapping[Tensor, nn.Parameter], samples: int) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self.dtypes: set[torch.dtype] = set()
        self._parameters, self._samples = parameters, samples

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            return self._attention(func, args, kwargs)
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and output.requires_grad:
            self.dtypes.add(output.dtype)
        if func in SIGNATURES:
            self._note(func, dict(zip(SIGNATURES[func], args, strict=False)) | kwargs, output)
        return output

    def _note(self, func: Callable[..., Any], args: dict[str, Any], output: Tensor, axis: int | None = None) -> None:
        weight, bias = self._parameter(args.get("weight")), self._parameter(args.get("bias"))
        if (weight is None and bias is None) or not output.requires_grad or not output.numel():
            return
        options = {name: value for name, value in args.items() if name not in ("input", "weight", "bias")}
        edge, shape = get_gradient_edge(output), output.shape
        if axis is None:
            axis = int(output.dim() == 3 and shape[0] != self._samples == shape[1])
        weight_shape = torch.Size() if args.get("weight") is None else args["weight"].shape
        self.uses.append(Use(func, args["input"].detach(), weight, bias, weight_shape, options, shape, edge, axis))

    def _parameter(self, tensor: Any) -> nn.Parameter | None:
        return self._parameters.get(tensor) if isinstance(tensor, Tensor) else None

    def _attention(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Self-attention with its projections as calls of ``linear``, which can be noted; other attention unchanged."""
        names = func.__code__.co_varnames[: func.__code__.co_argcount]
        named = dict(zip(names, args, strict=False)) | kwargs
        query = named["query"]
        if not (query is named["key"] is named["value"]) or named.get("use_separate_proj_weight") or query.dim() != 3:
            return func(*args, **kwargs)
        projected = self._linear(query, named["in_proj_weight"], named["in_proj_bias"])
        identity = torch.eye(query.shape[-1], dtype=projected.dtype, device=projected.device)
        parts = dict(zip(("query", "key", "value"), projected.chunk(3, dim=-1), strict=True))
        weights = dict.fromkeys(("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj_weight"), identity)
        without = dict.fromkeys(("in_proj_weight", "in_proj_bias", "out_proj_bias"))
        mixed, attention = func(**named | parts | weights | without | {"use_separate_proj_weight": True})
        return self._linear(mixed, named["out_proj_weight"], named["out_proj_bias"]), attention

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output = functional.linear(x, weight, bias)
        self._note(functional.linear, {"input": x, "weight": weight, "bias": bias}, output, axis=1)
        return output
