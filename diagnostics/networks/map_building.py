"""Which maps are measured: those of the chosen layers, from one forward pass, with what their witnesses need."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, LayerCallError, UnsupportedModelError
from skip_conditioning.diagnostics.networks.capture import ForwardPass, forward_pass, name_each_call, named_call
from skip_conditioning.diagnostics.networks.isolation import State
from skip_conditioning.diagnostics.networks.layer_names import select_layers, split_call
from skip_conditioning.diagnostics.networks.maps import (
    TOTAL,
    Map,
    kernel_map,
    layer_map,
    network_map,
    param_map,
    tail_map,
)
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.diagnostics.networks.reference import Reference, References


def build_maps(
    model: nn.Module,
    state: State,
    probe: Probe,
    name: str,
    layers: Sequence[str] | str | None,
    *,
    one_sample: bool = False,
) -> list[Map]:
    """The maps of the chosen layers, from one forward pass on the probe.

    To be called, and its results used, inside ``isolation.quiet``.

    Args:
        model: The unwrapped module.
        state: Its weights and buffers, in the precision of the measurement.
        probe: In the precision of the measurement, as ``Probe.on`` returns it.
        name: One of ``MAPS``.
        layers: Names, globs or None for the default blocks.
        one_sample: Whether the outputs must be those of a single sample.

    Raises:
        UnknownLayerError: A name that is no module.
        LayerCallError: A layer never called, or called more than once with no call named.
        UnsupportedModelError: A map whose input or output is no real tensor.
    """
    if name == "network":
        forward = forward_pass(model, state, probe, [])
        if one_sample:
            _require_one_row(probe.outputs_of(forward.output))
        return _referenced(model, state, probe, [network_map(model, state, probe, forward)], forward)
    chosen, with_total = _choose(model, name, layers)
    forward = forward_pass(model, state, probe, [split_call(layer)[0] for layer in chosen])
    if one_sample:
        _require_one_row(probe.outputs_of(forward.output))
    if layers is None and name != "kernel":
        chosen = name_each_call(chosen, forward.calls)
    build = {"layer": layer_map, "tail": tail_map, "param": param_map, "kernel": kernel_map}[name]
    maps = []
    for layer in chosen:
        try:
            maps.append(build(model, state, probe, layer, forward))
        except (LayerCallError, UnsupportedModelError):
            # Default blocks for which the map does not exist (an unused one, an embedding) are left out.
            if layers is not None:
                raise
    if layers is None and name == "tail":
        # After the last block nothing follows: its tail is the identity.
        maps = [item for item in maps if named_call(item.layer, forward).ended < len(forward.sizes)]
    if with_total:
        maps.append(kernel_map(model, state, probe, TOTAL, forward))
    if not maps:
        raise InputError(f"{type(model).__name__} has no blocks with a {name} map; name the layers to measure")
    return _referenced(model, state, probe, maps, forward)


def _require_one_row(rows: Tensor) -> None:
    """Raise ``UnsupportedModelError`` where a single sample has the outputs of several."""
    if rows.dim() > 0 and len(rows) != 1:
        raise UnsupportedModelError(
            f"the model returns outputs of shape {tuple(rows.shape)} for one sample, as if it held a whole batch of "
            "other inputs; measure batch_mode='batch', or hold none of them"
        )


def _referenced(model: nn.Module, state: State, probe: Probe, maps: list[Map], forward: ForwardPass) -> list[Map]:
    """The maps, with what their backward passes and their witnesses need, and a note of narrower precisions."""
    narrow = forward.narrower(maps[0].point.dtype)
    note = f"the network computes some of it in {', '.join(narrow)}" if narrow else ""
    targets = [item.target for item in maps if item.target is not None]
    references = References(model, state, probe, maps[0].name, targets)
    pairs = zip(maps, targets, strict=True)
    return [
        replace(
            item,
            installed=state.installed,
            reference=Reference(references, target),
            note="; ".join(filter(None, (item.note, note))),
        )
        for item, target in pairs
    ]


def _choose(model: nn.Module, name: str, layers: Sequence[str] | str | None) -> tuple[list[str], bool]:
    """The modules to measure, and whether the whole tangent kernel is measured too."""
    if layers is None:
        blocks = select_layers(model, None)
        return blocks, name == "kernel"
    listed = [layers] if isinstance(layers, str) else list(layers)
    modules = [layer for layer in listed if layer != TOTAL or name != "kernel"]
    only_total = listed and not modules
    return ([] if only_total else select_layers(model, modules)), name == "kernel" and TOTAL in listed
