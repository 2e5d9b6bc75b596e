"""The layers that names stand for: modules by names and globs, their calls and outputs, and the default blocks."""

import fnmatch
from collections.abc import Sequence

from torch import nn
from torch.nn.utils import parametrize

from skip_conditioning.diagnostics.errors import InputError, UnknownLayerError, near_matches


def split_call(layer: str) -> tuple[str, int | None]:
    """``"rnn.cell#2"`` → ``("rnn.cell", 2)``; without a number, the call is None. An output's index is left out."""
    name, mark, number = layer.partition(":")[0].rpartition("#")
    if not mark:
        return number, None
    if not number.isdecimal() or int(number) < 1:
        raise UnknownLayerError(f"layer {layer!r}: the call after '#' must be a number from 1, as in '{name}#1'")
    return name, int(number)


def output_index(layer: str) -> int | None:
    """``"rnn:1"`` → 1: which of the floating tensors that the module returns is meant; None for all that count."""
    name, mark, number = layer.partition(":")
    if mark and not number.isdecimal():
        raise UnknownLayerError(f"layer {layer!r}: the output after ':' must be a number from 0, as in '{name}:0'")
    return int(number) if mark else None


def select_layers(model: nn.Module, patterns: Sequence[str] | str | None) -> list[str]:
    """Module names that the names and globs stand for, in the model's order; None gives ``default_layers``.

    ``blocks.*`` stands for the children of ``blocks``, not for their children.

    Raises:
        UnknownLayerError: A name is no module, or a glob matches none; near matches are offered.
    """
    if patterns is None:
        return default_layers(model)
    names = [name for name, _ in model.named_modules() if name]
    chosen: list[str] = []
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, Sequence) or not all(isinstance(pattern, str) for pattern in listed):
        raise InputError(f"layers must be names or globs, such as ['blocks.*']; they are {patterns!r}")
    for pattern in listed:
        name, _ = split_call(pattern)
        matches = [name] if name in names else [module for module in names if _matches(module, name)]
        if not matches:
            shown = ", ".join([*names[:12], *(["…"] if len(names) > 12 else [])]) or "none"
            hint = near_matches(name, names) or f" It has {shown}."
            raise UnknownLayerError(f"layer {pattern!r} is no module of {type(model).__name__}.{hint}")
        output_index(pattern)
        chosen += [match + pattern[len(name) :] for match in matches]
    if not chosen:
        raise InputError("layers is empty; name at least one layer, or leave it out for the default blocks")
    return list(dict.fromkeys(chosen))


def _matches(name: str, pattern: str) -> bool:
    """Whether a name matches a glob; as in paths, ``*`` does not match the dots between parts."""
    parts, globs = name.split("."), pattern.split(".")
    return len(parts) == len(globs) and all(map(fnmatch.fnmatchcase, parts, globs))


def default_layers(model: nn.Module) -> list[str]:
    """The blocks of a network: its children that hold parameters, with lists and stages of blocks opened.

    Where there are none of these, the only child, or the largest of several that has some within, is opened instead:
    a wrapper, or the body of a network with a head.
    """
    blocks: list[str] = []

    def open_up(module: nn.Module, prefix: str, *, is_list: bool) -> None:
        children = _blocks_in(module)
        opened = [child for child in children.values() if _is_list(child)]
        if not opened and children:
            largest = max(children.values(), key=lambda child: sum(p.numel() for p in child.parameters()))
            is_wrapper = len(children) == 1 and bool(_blocks_in(largest))
            # The entries of a list are blocks, but for a sequence that is the only one.
            is_body = is_wrapper and type(largest) is nn.Sequential
            opened = [largest] if is_body or (not is_list and (is_wrapper or _holds_list(largest))) else []
        for name, child in children.items():
            if child in opened:
                open_up(child, f"{prefix}{name}.", is_list=_is_list(child))
            else:
                blocks.append(f"{prefix}{name}")

    open_up(model, "", is_list=False)
    return blocks


def _blocks_in(module: nn.Module) -> dict[str, nn.Module]:
    """A module's children that hold parameters; those of its parametrisations are its own."""
    own = {"parametrizations"} if parametrize.is_parametrized(module) else set()
    children = {name: child for name, child in module.named_children() if name not in own}
    return {name: child for name, child in children.items() if any(True for _ in child.parameters())}


def _holds_list(module: nn.Module) -> bool:
    return any(_is_list(child) or _holds_list(child) for child in _blocks_in(module).values())


def _is_list(module: nn.Module) -> bool:
    """Whether a module is a list, which is never called itself, or a sequence of modules with children: a stage."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return True
    return type(module) is nn.Sequential and any(map(_blocks_in, module.children()))
