"""What a tangent kernel is summed over: a network's trainable parameters, in units that a rule can speak for."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from skip_conditioning.diagnostics.errors import InputError, LayerCallError, UnsupportedModelError
from skip_conditioning.diagnostics.networks.capture import default_layers, select_layers, split_call
from skip_conditioning.diagnostics.networks.maps import TOTAL


@dataclass(frozen=True, eq=False)
class Unit:
    """Trainable parameters whose share of the kernel is computed together.

    Attributes:
        name: Dotted name of the module whose weight and bias they are, or of a single parameter.
        parameters: In the model's order.
        owners: Names of the modules that hold them.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    owners: tuple[str, ...]

    def holds(self, parameter: nn.Parameter | None) -> bool:
        """Whether a parameter is one of them."""
        return any(one is parameter for one in self.parameters)

    def within(self, layer: str) -> bool:
        """Whether one of the owners is a layer or lies in it."""
        return any(owner == layer or owner.startswith(f"{layer}.") for owner in self.owners)


def units_of(model: nn.Module) -> list[Unit]:
    """Every trainable parameter in exactly one unit: a module's own weight and bias together, any other by itself.

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
        held = dict.fromkeys(parameter for parameter in module._parameters.values() if parameter in owners)
        own = tuple(parameter for parameter in held if owners[parameter] == [name])
        if name and own and set(module._parameters) <= {"weight", "bias"}:
            units.append(Unit(name, own, (name,)))
        else:
            units += [Unit(names[one], (one,), (name,)) for one in own]
        tied = [parameter for parameter in held if len(owners[parameter]) > 1 and owners[parameter][0] == name]
        units += [Unit(names[one], (one,), tuple(owners[one])) for one in tied]
    return units


def blocks_of(model: nn.Module, layers: Sequence[str] | str | None, units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """The units of each block, by the block's name.

    Args:
        model: The unwrapped module.
        layers: Names or globs; None takes the blocks of the network and, each by itself, whatever lies outside them:
            every unit is then in exactly one block.
        units: All of the model's.

    Raises:
        UnknownLayerError: A name that is no module.
        LayerCallError: A named layer has no trainable parameters; those that a glob meets are left out.
        InputError: The model has none at all.
    """
    if not units:
        raise InputError(f"{type(model).__name__} has no trainable parameters; unfreeze those to be measured")
    if layers is None:
        return _partition(model, units)
    asked = [layers] if isinstance(layers, str) else list(layers)
    named = [layer for layer in asked if layer != TOTAL]
    chosen = dict.fromkeys(split_call(layer)[0] for layer in select_layers(model, named)) if named or not asked else {}
    blocks = {layer: [unit for unit in units if unit.within(layer)] for layer in chosen}
    for layer, held in blocks.items():
        if not held and (layer in named or not any(blocks.values())):
            raise LayerCallError(f"layer {layer!r} has no trainable parameters; choose one that has, or unfreeze it")
    return {layer: held for layer, held in blocks.items() if held}


def _partition(model: nn.Module, units: Sequence[Unit]) -> dict[str, list[Unit]]:
    blocks: dict[str, list[Unit]] = {layer: [] for layer in default_layers(model)}
    rest: dict[str, list[Unit]] = {}
    for unit in units:
        home = next((layer for layer in blocks if unit.within(layer)), None)
        (blocks[home] if home else rest.setdefault(unit.name, [])).append(unit)
    return {name: held for name, held in (blocks | rest).items() if held}
