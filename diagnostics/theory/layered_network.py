"""A network as a chain of layers, ``F = f_L ∘ … ∘ f_1``: the multilayer parameterised system of MacDonald et al. 2023.

The network is cut at the outputs of some modules. A layer of the chain is everything between two cuts, whatever modules
or functions it consists of; its output depends on the output of the layer before and on parameters of its own, and on
nothing else. Whether that is so is read off the graph of one forward pass.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import UnsupportedModelError
from skip_conditioning.diagnostics.networks.capture import Call, forward_pass, name_each_call, named_call, run_model
from skip_conditioning.diagnostics.networks.layer_names import select_layers, split_call
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.networks.measuring import ProbedModel
from skip_conditioning.diagnostics.networks.outputs import first_tensor, with_tensors

#: Name of the last layer of a chain whose logits are computed behind the last module that was named.
LOGITS = "logits"

Hook = Callable[[Tensor], Tensor]


class _Reached(BaseException):
    """The output at which an evaluation stops; no ``except Exception`` of a model's own catches it."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


@dataclass(frozen=True)
class NetworkLayer:
    """One layer ``f_l`` of a network, at its actual input and parameters.

    Attributes:
        name: The module at whose output it ends, or ``logits``.
        first: Whether its input is the data.
        input: Its input, detached, shape ``(N, …)``; the probe for the first.
        parameters: Its trainable parameters as one vector, shape ``(p_l,)``.
        trainable: The same as the model's own, in that order.
        output_shape: Shape of its output, samples first.
        widest: Entries of the largest tensor made within it; memory is planned by it.
        function: ``f_l(parameters, input)``, differentiable by ``torch.func`` in both; to be called inside
            ``isolation.quiet``.
    """

    name: str
    first: bool
    input: Tensor
    parameters: Tensor
    trainable: tuple[nn.Parameter, ...]
    output_shape: torch.Size
    widest: int
    function: Callable[[Tensor, Tensor], Tensor]

    @property
    def jacobian(self) -> Map:
        """``Jf_l``, the derivative in the input, ``(N·d_l, N·d_{l−1})``; not for a first layer of integer inputs."""
        return self._map("layer", lambda point: self.function(self.parameters, point), self.input)

    @property
    def parameter(self) -> Map:
        """``Df_l``, the derivative in the parameters, ``(N·d_l, p_l)``."""
        return self._map("param", lambda point: self.function(point, self.input), self.parameters)

    def _map(self, name: str, function: Callable[[Tensor], Tensor], point: Tensor) -> Map:
        return Map(name, self.name, function, point, self.output_shape, max(self.widest, point.numel()))


class LayeredNetwork:
    """The layers of a network, from the data to the logits.

    To be built, and its functions called, inside ``isolation.quiet``.

    Args:
        probed: The model at the probe.
        layers: Modules to cut behind, names or globs; None takes the blocks (of a single module, none).

    Attributes:
        layers: The layers, in order.
        logits: The network's outputs, detached.
        probe: The probe; its first tensor is the data, others are constants.

    Raises:
        UnknownLayerError: A name that is no module.
        LayerCallError: A layer never called, or several times with no call named.
        UnsupportedModelError: The layers do not form a chain, or share parameters.
    """

    def __init__(self, probed: ProbedModel, layers: Sequence[str] | str | None = None) -> None:
        self._model, self._state, self.probe = probed.model, probed.state, probed.probe
        cuts = self._cuts(layers)
        for name, call in cuts.items():
            _real(name, call)
        names = [*cuts, LOGITS]
        if cuts and list(cuts.values())[-1].ended == self._tensors_made:
            names.pop()  # nothing happens behind the last module
        owners = self._require_chain(names)
        self.layers: list[NetworkLayer] = []
        for index, name in enumerate(names):
            before, last = names[index - 1] if index else None, index == len(names) - 1
            output = self.logits if last else _real(name, cuts[name])
            began = cuts[before].ended if before else 0
            ended = cuts[name].ended if name in cuts and not last else None
            self.layers.append(
                NetworkLayer(
                    name=name,
                    first=before is None,
                    input=self.probe.first if before is None else _real(before, cuts[before]),
                    parameters=_flat([self._state[parameter] for parameter in owners[name]], self.logits),
                    trainable=tuple(owners[name]),
                    output_shape=output.shape,
                    widest=max(self._sizes(began, ended), output.numel()),
                    function=self._function(before, None if last else name, owners[name]),
                )
            )

    def whole(self, parameters: Sequence[nn.Parameter]) -> Map:
        """The network as a function of some of its parameters, ``(N·O, p)``, by autograd through all of it."""
        sizes = [parameter.numel() for parameter in parameters]

        def function(point: Tensor) -> Tensor:
            replaced = self._replaced(parameters, point.split(sizes))
            return self.probe.outputs_of(run_model(self._model, self._state, self.probe, replaced))

        point = _flat([self._state[parameter] for parameter in parameters], self.logits)
        widest = max(self._sizes(), point.numel())
        return Map("param", LOGITS, function, point, self.logits.shape, widest)

    def _outputs(self, data: Tensor, replaced: Mapping[nn.Parameter, Tensor]) -> Tensor:
        """The outputs with other data and parameters."""
        index = next(index for index, tensor in enumerate(self.probe.tensors) if tensor is self.probe.first)
        probe = self.probe.with_tensors({index: data})
        return probe.outputs_of(run_model(self._model, self._state, probe, replaced))

    def _replaced(self, parameters: Sequence[nn.Parameter], pieces: Sequence[Tensor]) -> dict[nn.Parameter, Tensor]:
        return {
            parameter: piece.view(parameter.shape).to(self._state[parameter].dtype)
            for parameter, piece in zip(parameters, pieces, strict=True)
        }

    def _cuts(self, layers: Sequence[str] | str | None) -> dict[str, Call]:
        """The calls behind which the network is cut, in the order in which they return."""
        chosen = select_layers(self._model, layers)
        forward = forward_pass(self._model, self._state, self.probe, [split_call(layer)[0] for layer in chosen])
        self._sizes, self._tensors_made = forward.widest, len(forward.sizes)
        self.logits = self.probe.outputs_of(forward.output).detach()
        if self.logits.dim() == 0 or len(self.logits) != len(self.probe):
            raise UnsupportedModelError(
                f"the model returns a tensor of shape {tuple(self.logits.shape)} for {len(self.probe)} samples; return "
                "one row of outputs for each sample"
            )
        if layers is None:
            chosen = [layer for layer in name_each_call(chosen, forward.calls) if forward.calls[split_call(layer)[0]]]
        calls = {layer: named_call(layer, forward) for layer in chosen}
        return dict(sorted(calls.items(), key=lambda item: item[1].ended))

    def _require_chain(self, names: Sequence[str]) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters of every layer, once each is known to depend on nothing but them and the one before.

        All cuts are made at once: each output is replaced by a tensor without history, and what the next output
        depends on is read off the graph.
        """
        weights = {
            parameter: self._state[parameter].detach().requires_grad_()
            for parameter in self._model.parameters()
            if parameter.requires_grad
        }
        data = self.probe.first.detach()
        data = data.requires_grad_() if data.is_floating_point() else data
        sources: dict[str, Tensor] = {"the input": data}
        outputs: dict[str, Tensor] = {}

        def cut(name: str) -> Hook:
            def replace(output: Tensor) -> Tensor:
                outputs[name] = output
                sources[name] = output.detach().clone().requires_grad_()
                return sources[name].clone()

            return replace

        last = names[-1]
        with _hooked(self._model, {name: cut(name) for name in names[:-1]}):
            outputs[last] = self._outputs(data, weights)
        owners: dict[str, list[nn.Parameter]] = {}
        for name, before in zip(names, ["the input", *names], strict=False):
            used = _dependencies(outputs[name], [*sources.values(), *weights.values()])
            around = [source for source, tensor in sources.items() if tensor in used and source != before]
            if around:
                raise UnsupportedModelError(
                    f"the layers are no chain: the output of {name!r} depends on {around[0]!r} around {before!r}, as "
                    "by a skip over it; name blocks that contain their skips"
                )
            owners[name] = [parameter for parameter, tensor in weights.items() if tensor in used]
        self._require_own_parameters(owners)
        return owners

    def _require_own_parameters(self, owners: Mapping[str, Sequence[nn.Parameter]]) -> None:
        names = {parameter: name for name, parameter in self._model.named_parameters()}
        user: dict[nn.Parameter, str] = {}
        for layer, parameters in owners.items():
            for parameter in parameters:
                if user.setdefault(parameter, layer) != layer:
                    raise UnsupportedModelError(
                        f"{names[parameter]!r} is used by both {user[parameter]!r} and {layer!r}; the layers of a "
                        "chain have parameters of their own: name a block that contains both"
                    )

    def _function(
        self, before: str | None, end: str | None, owned: Sequence[nn.Parameter]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The function from one cut to another; the layers before the first cut run again, as a constant."""
        sizes = [parameter.numel() for parameter in owned]

        def function(parameters: Tensor, point: Tensor) -> Tensor:
            replaced = self._replaced(owned, parameters.split(sizes) if sizes else [])
            hooks: dict[str, Hook] = {}
            if before is not None:
                hooks[before] = lambda output: point.clone()
            if end is not None:
                hooks[end] = _stop
            try:
                with _hooked(self._model, hooks):
                    return self._outputs(point if before is None else self.probe.first, replaced)
            except _Reached as reached:
                return reached.value

        return function


@contextlib.contextmanager
def _hooked(model: nn.Module, actions: Mapping[str, Hook]) -> Iterator[None]:
    """Inside, the first tensor that each named call returns goes through its action."""
    handles = [_hook(model, layer, action) for layer, action in actions.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(model: nn.Module, layer: str, action: Hook) -> torch.utils.hooks.RemovableHandle:
    name, number = split_call(layer)
    calls = 0

    def after(module: nn.Module, args: object, output: object) -> object:
        nonlocal calls
        calls += 1
        tensor = first_tensor(output)
        if calls != (number or 1) or tensor is None:
            return None
        return with_tensors(output, lambda part: action(part) if part is tensor else part)

    return model.get_submodule(name).register_forward_hook(after)


def _stop(output: Tensor) -> Tensor:
    raise _Reached(output)


def _dependencies(output: Tensor, tensors: Sequence[Tensor]) -> set[Tensor]:
    """Those of some leaves that a tensor depends on."""
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    if not output.requires_grad:
        return set()
    try:
        gradients = torch.autograd.grad(output.sum(), leaves, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedModelError(
            f"the network cannot be taken apart ({reason}); turn gradient checkpointing off if that is it"
        ) from error
    return {leaf for leaf, gradient in zip(leaves, gradients, strict=True) if gradient is not None}


def _flat(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]) if tensors else like.new_zeros(0)


def _real(layer: str, call: Call) -> Tensor:
    if call.output is None or not call.output.is_floating_point():
        raise UnsupportedModelError(f"layer {layer!r} returns no real tensor; name one that does")
    return call.output
