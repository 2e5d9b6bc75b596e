"""A forward pass that shows which modules are called, with what, how often, and what they return."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from skip_conditioning.diagnostics.errors import (
    InputError,
    LayerCallError,
)
from skip_conditioning.diagnostics.networks import python_state
from skip_conditioning.diagnostics.networks.copies import CapturedArguments, copied
from skip_conditioning.diagnostics.networks.isolation import State, restore_streams, save_streams, seed_streams
from skip_conditioning.diagnostics.networks.layer_names import split_call
from skip_conditioning.diagnostics.networks.outputs import first_tensor, floating_tensors
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.diagnostics.networks.python_state import PythonState
from skip_conditioning.diagnostics.networks.tensor_sizes import DependentSizes
from skip_conditioning.diagnostics.networks.weight_writes import WeightWriteError, weights_unwritten


@dataclass(frozen=True)
class Moment:
    """What a module's call depends on besides its arguments, its weights and its buffers.

    Attributes:
        streams: The random streams, so that dropout draws the same mask again.
        python: The Python side of the model; None if it is not being measured.
        autocast: Kinds of devices for which the forward pass itself had turned autocast on, and to which precision.
    """

    streams: tuple[Any, ...]
    python: PythonState | None
    autocast: tuple[tuple[str, torch.dtype], ...]


@dataclass(frozen=True)
class Call:
    """One call of one module during a forward pass.

    Attributes:
        number: Which call of the module it was, from 1.
        args: Copies of the positional arguments, with all that is in them.
        kwargs: Keyword arguments, likewise.
        moment: What else the call depends on, so that it can be repeated.
        output: The first tensor that it returned, detached and cloned; None if it returned none.
        outputs: The floating tensors that it returned, likewise.
        in_place: Whether the first is an input that the module changed.
        began: How many of ``ForwardPass.sizes`` were made before the call.
        ended: How many were made before it returned.
    """

    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    moment: "Moment"
    output: Tensor | None
    outputs: tuple[Tensor, ...]
    in_place: bool
    began: int
    ended: int


@dataclass(frozen=True)
class ForwardPass:
    """What a forward pass showed.

    Attributes:
        calls: Every call of the watched modules, in order, by module name.
        output: The model's output.
        sizes: Entries of each tensor made on the way that depends on the input, in order; memory is planned by them.
        dtypes: Those of these tensors.
    """

    calls: dict[str, list[Call]]
    output: Any
    sizes: list[int]
    dtypes: set[torch.dtype]

    def narrower(self, dtype: torch.dtype) -> list[str]:
        """The precisions among them that are coarser than one."""
        real = (kind for kind in self.dtypes if kind.is_floating_point)
        coarser = [kind for kind in real if torch.finfo(kind).eps > torch.finfo(dtype).eps]
        return sorted(str(kind).removeprefix("torch.") for kind in coarser)

    def widest(self, first: int = 0, last: int | None = None) -> int:
        """Entries of the largest of these tensors, from the ``first`` to before the ``last``; 0 if there is none."""
        return max(self.sizes[first:last], default=0)


def run_model(
    model: nn.Module,
    state: State,
    probe: Probe,
    replaced: Mapping[nn.Parameter, Tensor] | None = None,
    restart: Callable[[], None] = lambda: None,
) -> Any:
    """What the model returns at the probe; arguments as for ``run``."""
    args, kwargs = probe.arguments
    return run(model, state, args, kwargs, replaced, restart=restart, forward=probe.forward)


class _Called(nn.Module):
    """A model that a function of the user's calls."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self._call = model, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self.model, *args, **kwargs)


def run(
    module: nn.Module,
    state: State,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    replaced: Mapping[nn.Parameter, Tensor] | None = None,
    moment: Moment | None = None,
    restart: Callable[[], None] = lambda: None,
    forward: Callable[..., Any] | None = None,
) -> Any:
    """Call the model, or one of its modules, so that the result is a function of the arguments.

    Weights are those of ``state``, buffers copies of its own; random streams are seeded, and the Python side of the
    model is what it was when the measurement began, unless ``moment`` gives others. The first call with a state is
    watched: where it writes into weights, it begins anew with copies of them.

    Args:
        module: The model, or one of its modules.
        state: Weights and buffers of the model.
        args: Positional arguments.
        kwargs: Keyword arguments.
        replaced: Tensors to use in place of some parameters.
        moment: When a captured call was made, to repeat it.
        restart: Called before the call begins anew, so that hooks forget what they saw.
        forward: Called with the module and the arguments, instead of the module itself.
    """
    called = module if forward is None else _Called(module, forward)
    python = python_state.state_of(module) if moment is None else moment.python

    def call() -> Any:
        if python is not None:
            python.put_in_place(copy_hidden=bool(state.copies_weights))
        if moment is None:
            seed_streams(state.devices)
        else:
            restore_streams(moment.streams, state.devices)
        # Copied, so that a module that works in place writes neither into the probe nor into a captured input.
        own_args, keywords = copied((args, dict(kwargs or {})), {})
        # The state has tied weights under all their names, so nothing is left to tie.
        with contextlib.ExitStack() as stack:
            stack.enter_context(state.row_major_outputs())
            stack.enter_context(_RowMajorDropout())
            for kind, dtype in () if moment is None else moment.autocast:
                stack.enter_context(torch.autocast(kind, dtype))
            return torch.func.functional_call(called, state.of(called, replaced), own_args, keywords, tie_weights=False)

    if state.copies_weights is not None:
        return call()
    try:
        with weights_unwritten([*state.watched(replaced), *(python.hidden if python else ())]):
            output = call()
        state.copies_weights = False
    except WeightWriteError:
        state.copies_weights = True
        restart()
        output = call()
    return output


def moment_of(model: nn.Module, state: State) -> Moment:
    """What a call depends on at this moment of a forward pass of the model."""
    python = python_state.state_of(model)
    kinds = [kind for kind in ({device.type for device in state.devices} | {"cpu"}) if torch.is_autocast_enabled(kind)]
    autocast = tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds)
    return Moment(save_streams(state.devices), None if python is None else python.now(model), autocast)


class _RowMajorDropout(TorchFunctionMode):
    """Makes the input of dropout row-major: masks are drawn in the order of memory, which ``torch.func`` changes."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in _DROPOUTS and args:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


_DROPOUTS = frozenset({functional.dropout, functional.alpha_dropout, torch.dropout, torch.alpha_dropout})


@contextlib.contextmanager
def clear_forward_errors(model: nn.Module, probe: Probe) -> Iterator[None]:
    """Turn the error of a model that cannot be applied to the probe into an ``InputError`` of one line."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever a user's forward pass raises
        line = next(iter(str(error).strip().splitlines()), "")
        usual = isinstance(error, RuntimeError | TypeError | ValueError | IndexError)
        reason = line if line and usual else f"{type(error).__name__}{line and ': '}{line}"
        is_missing = isinstance(error, NotImplementedError)
        way_out = "; say how it is called: forward=lambda model, inputs: ..." if is_missing else ""
        raise InputError(
            f"{type(model).__name__} cannot be applied to a probe {probe.description()}: {reason}{way_out}"
        ) from error


def forward_pass(model: nn.Module, state: State, probe: Probe, layers: Sequence[str]) -> ForwardPass:
    """Run the model once and watch the calls of the named modules and the sizes of its tensors.

    Args:
        model: The unwrapped module.
        state: Its weights and buffers.
        probe: In the precision of the measurement.
        layers: Module names without call numbers.
    """
    calls: dict[str, list[Call]] = {layer: [] for layer in layers}
    modules = dict(model.named_modules())
    watch, captured = DependentSizes(probe.tensors), CapturedArguments()
    handles = []

    pending: list[tuple[Any, ...]] = []

    def forget() -> None:
        watch.sizes.clear()
        pending.clear()
        for listed in calls.values():
            listed.clear()

    def record(layer: str) -> None:

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            versions = {id(value): value._version for value in args if isinstance(value, Tensor)}
            began = len(watch.sizes)
            pending.append((*captured((args, kwargs)), moment_of(model, state), versions, began))

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            tensor = first_tensor(output)
            args, kwargs, moment, versions, began = pending.pop()
            in_place = tensor is not None and tensor._version > versions.get(id(tensor), tensor._version)
            value = None if tensor is None else tensor.detach().clone()
            floating = floating_tensors(output)
            outputs = tuple(
                value if value is not None and part is tensor else part.detach().clone() for part in floating
            )
            number, ended = len(calls[layer]) + 1, len(watch.sizes)
            calls[layer].append(Call(number, args, kwargs, moment, value, outputs, in_place, began, ended))

        # Before the user's own pre-hooks, so that these are not applied twice when the call is repeated.
        handles.append(modules[layer].register_forward_pre_hook(before, with_kwargs=True, prepend=True))
        handles.append(modules[layer].register_forward_hook(after, with_kwargs=True))

    try:
        for layer in calls:
            record(layer)
        with torch.no_grad(), watch, clear_forward_errors(model, probe):
            output = run_model(model, state, probe, restart=forget)
    finally:
        for handle in handles:
            handle.remove()
    return ForwardPass(calls, output, watch.sizes, watch.dtypes)


def name_each_call(layers: Sequence[str], calls: Mapping[str, list[Call]]) -> list[str]:
    """The layers, with one that is called several times as ``name#1``, ``name#2`` and so on."""
    named: list[str] = []
    for layer in layers:
        times = len(calls[layer])
        named += [layer] if times < 2 else [f"{layer}#{call}" for call in range(1, times + 1)]
    return named


def named_call(layer: str, forward: ForwardPass) -> Call:
    """The call that a layer's name stands for.

    Raises:
        LayerCallError: It is never called, less often than the named call, or several times with no call named.
    """
    name, number = split_call(layer)
    calls = forward.calls[name]
    if number is None and len(calls) > 1:
        raise LayerCallError(
            f"layer {name!r} is called {len(calls)} times in one forward pass; "
            f"say which call is meant, as '{name}#1' to '{name}#{len(calls)}'"
        )
    if calls and number is not None and number > len(calls):
        raise LayerCallError(f"layer {layer!r}: {name!r} is called only {len(calls)} time(s) in one forward pass")
    first = first_call(layer, forward)
    return first if number is None else calls[number - 1]


def first_call(layer: str, forward: ForwardPass) -> Call:
    """The first call of a layer, also if another is named.

    Raises:
        LayerCallError: It is never called.
    """
    name, _ = split_call(layer)
    if not forward.calls[name]:
        raise LayerCallError(
            f"layer {name!r} is never called in the forward pass; choose one that is, or map='kernel' if others use "
            "its weights"
        )
    return forward.calls[name][0]
