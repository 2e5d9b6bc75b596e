"""A network's trainable parameters in units: a tangent kernel is a sum over them, each computed by a rule."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from skip_conditioning.diagnostics.errors import InputError, LayerCallError, UnsupportedModelError
from skip_conditioning.diagnostics.networks.layer_names import default_layers, select_layers, split_call
from skip_conditioning.diagnostics.networks.maps import TOTAL


@dataclass(frozen=True, eq=False)
class Unit:
    """Trainable parameters whose share of the kernel is computed as a whole.

    Attributes:
        name: Dotted name of the module whose weight and bias they are, or of a single parameter.
        parameters: The parameters, in the model's order.
        owners: Names of the modules that hold them.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    owners: tuple[str, ...]

    def holds(self, parameter: nn.Parameter | None) -> bool:
        """Whether a parameter is one of them."""
        return any(member is parameter for member in self.parameters)

    def within(self, layer: str) -> bool:
        """Whether one of the owners is a layer or lies in it."""
        return any(owner == layer or owner.startswith(f"{layer}.") for owner in self.owners)


def units_of(model: nn.Module) -> list[Unit]:
    """Every trainable parameter in exactly one unit: a module's own weight and bias in one, any other by itself.

    Raises:
        UnsupportedModelError: A trainable parameter is complex.
    """
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.requires_grad:
                owners.setdefault(parameter, []).append(name)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter in owners:
        if parameter.is_complex():
            raise UnsupportedModelError(
                f"parameter {names[parameter]!r} is complex, a tangent kernel is real; hold its real and imaginary "
                "parts in two parameters, or freeze it"
            )
    units = []
    for name, module in model.named_modules():
        trainable = dict.fromkeys(parameter for parameter in module._parameters.values() if parameter in owners)
        own = tuple(parameter for parameter in trainable if owners[parameter] == [name])
        if name and own and set(module._parameters) <= {"weight", "bias"}:
            units.append(Unit(name, own, (name,)))
        else:
            units += [Unit(names[parameter], (parameter,), (name,)) for parameter in own]
        tied = [parameter for parameter in trainable if len(owners[parameter]) > 1 and owners[parameter][0] == name]
        units += [Unit(names[parameter], (parameter,), tuple(owners[parameter])) for parameter in tied]
    return units


def blocks_of(model: nn.Module, layers: Sequence[str] | str | None, units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """The units of each block, by the block's name.

    Args:
        model: The unwrapped module.
        layers: Names or globs; None takes the blocks of the network, and each unit outside them as a block of its own:
            every unit is then in exactly one block.
        units: All units of the model.

    Raises:
        UnknownLayerError: A name that is no module.
        LayerCallError: A layer named in full has no trainable parameters; those that only a glob matches are left out.
        InputError: The model has no trainable parameters.
    """
    if not units:
        raise InputError(f"{type(model).__name__} has no trainable parameters; unfreeze those to be measured")
    if layers is None:
        return _partition(model, units)
    listed = [layers] if isinstance(layers, str) else list(layers)
    named = [layer for layer in listed if layer != TOTAL]
    only_total = listed and not named
    chosen = {} if only_total else dict.fromkeys(split_call(layer)[0] for layer in select_layers(model, named))
    blocks = {layer: [unit for unit in units if unit.within(layer)] for layer in chosen}
    for layer, members in blocks.items():
        if not members and (layer in named or not any(blocks.values())):
            raise LayerCallError(f"layer {layer!r} has no trainable parameters; choose one that has, or unfreeze it")
    return {layer: members for layer, members in blocks.items() if members}


def _partition(model: nn.Module, units: Sequence[Unit]) -> dict[str, list[Unit]]:
    blocks: dict[str, list[Unit]] = {layer: [] for layer in default_layers(model)}
    rest: dict[str, list[Unit]] = {}
    for unit in units:
        block = next((layer for layer in blocks if unit.within(layer)), None)
        (blocks[block] if block else rest.setdefault(unit.name, [])).append(unit)
    return {name: members for name, members in (blocks | rest).items() if members}
