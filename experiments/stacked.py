"""Several networks of one structure as a single vmapped one, each still there as a module of its own.

Parameters and buffers are held in stacked tensors, of which those of the networks become views: what training does to
the stack is seen through each network at once, by whoever measures, evaluates or saves it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap


class StackedNetwork:
    """Networks whose forward passes are one.

    Args:
        networks: Of the same structure (see ``same_structure``), all on one device and in train mode; their parameters
            and buffers become views of the stacks.
        groups: A number for each network, equal for those whose parameters are to be stacked in the same tensors, such
            as those of one learning rate; networks of a group come one after another.

    Attributes:
        parameters: For each group, in order, the stacked parameters by name, shape ``(networks in it, *shape)``.
        buffers: The stacked buffers of all networks by name.
    """

    def __init__(self, networks: Sequence[nn.Module], groups: Sequence[int]) -> None:
        self.networks = list(networks)
        self.parameters: list[dict[str, Tensor]] = []
        self._places: list[dict[nn.Parameter, tuple[Tensor, int]]] = [{} for _ in networks]
        for group in dict.fromkeys(groups):
            chosen = [row for row, one in enumerate(groups) if one == group]
            stacked, _ = stack_module_state([self.networks[row] for row in chosen])
            self.parameters.append(dict(stacked))
            for place, row in enumerate(chosen):
                for name, parameter in self.networks[row].named_parameters():
                    parameter.data = stacked[name].detach()[place]
                    self._places[row][parameter] = (stacked[name], place)
        self.buffers = dict(stack_module_state(self.networks)[1])
        for row, network in enumerate(self.networks):
            views = {name: stack[row] for name, stack in self.buffers.items()}
            for slot, name in _slots(network).items():
                if name in views:
                    owner, _, last = slot.rpartition(".")
                    network.get_submodule(owner)._buffers[last] = views[name]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs ``(T, N, …)`` of T networks for inputs ``(T, N, …)``; buffers are updated like those of each."""
        parts = self.parameters
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts[1:] else parts[0]

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return apply_with(self.networks[0], parameters | buffers, inputs)

        outputs: Tensor = vmap(one, randomness="error")(whole, self.buffers, inputs)
        return outputs

    def places(self, row: int) -> Mapping[nn.Parameter, tuple[Tensor, int]]:
        """For each parameter of a network the stack that it is in, and its place there."""
        return self._places[row]

    def norms(self) -> Tensor:
        """The norm of each network's gradient, shape ``(T,)``, float64."""
        squares = []
        for part in self.parameters:
            gradients = [stack.grad for stack in part.values() if stack.grad is not None]
            norms = torch.stack([gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients])
            squares.append(norms.double().square().sum(0))
        return torch.cat(squares).sqrt()

    def divide_gradients(self, divisors: Tensor) -> None:
        """Divide each network's gradient by a number of its own, shape ``(T,)``."""
        networks = [len(next(iter(part.values()))) for part in self.parameters]
        for part, own in zip(self.parameters, divisors.split(networks), strict=True):
            for stack in part.values():
                if stack.grad is not None:
                    stack.grad.div_(own.to(stack.dtype).view(-1, *[1] * (stack.dim() - 1)))


def apply_with(network: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """A network's output with other parameters and buffers in its place; buffers among them are updated.

    Unlike ``functional_call`` alone this leaves networks as they were of which a module has several names, and updates
    also those buffers that the forward pass replaces rather than changes.

    Args:
        network: Stays as it is.
        tensors: As by ``named_parameters()`` and ``named_buffers()``, not necessarily all.
        inputs: Of the forward pass.
    """
    names = {slot: name for slot, name in _slots(network).items() if name in tensors}
    state = {slot: tensors[name] for slot, name in names.items()}
    output: Tensor = functional_call(network, state, (inputs,), tie_weights=False)
    for slot, name in names.items():
        if state[slot] is not tensors[name]:
            tensors[name].copy_(state[slot])
    return output


def same_structure(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks compute the same function of their parameters and buffers, as far as can be seen.

    Their modules have the same names in the same order, classes, plain attributes and shapes, and share the same.
    """
    one, other = dict(first.named_modules()), dict(second.named_modules())
    alike = list(one) == list(other) and all(_alike(one[name], other[name]) for name in one)
    return alike and _shared(first) == _shared(second)


def _alike(first: nn.Module, second: nn.Module) -> bool:
    if type(first) is not type(second):
        return False
    for kind in ("_parameters", "_buffers"):
        one, other = vars(first)[kind], vars(second)[kind]
        if [(name, _form(tensor)) for name, tensor in one.items()] != [(n, _form(t)) for n, t in other.items()]:
            return False
    return unchanged([_plain(first)], [_plain(second)])


def attributes(network: nn.Module) -> list[dict[str, Any]]:
    """What each module has besides parameters, buffers and modules, as it is now."""
    return [_plain(module) for module in network.modules()]


def unchanged(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    """Whether attributes of the same network are the same objects, or equal ones."""
    try:
        return bool(before == after)
    except (RuntimeError, ValueError):  # other tensors or arrays among them
        return False


def _slots(network: nn.Module) -> dict[str, str]:
    """Each module's every parameter and buffer, with the name that ``named_parameters()`` has for it.

    A module of several names is there once, a tensor that several modules share is there for each of them.
    """
    names = {
        id(tensor): name for named in (network.named_parameters, network.named_buffers) for name, tensor in named()
    }
    return {
        f"{prefix}.{name}".lstrip("."): names[id(tensor)]
        for prefix, module in network.named_modules()
        for name, tensor in (*vars(module)["_parameters"].items(), *vars(module)["_buffers"].items())
        if tensor is not None
    }


def _shared(network: nn.Module) -> list[list[tuple[str, str]]]:
    """The names of all modules, parameters and buffers, each with the first name of the same object."""
    found = []
    for named in (network.named_modules, network.named_parameters, network.named_buffers):
        firsts: dict[int, str] = {}
        found.append([(name, firsts.setdefault(id(one), name)) for name, one in named(remove_duplicate=False)])
    return found


def _form(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in ("_parameters", "_buffers", "_modules")}
