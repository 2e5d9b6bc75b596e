"""``python -m models``: list the networks, their arms, parameter counts and options."""

import inspect
import textwrap
from typing import get_args

import torch

from skip_conditioning.models.registry import arms, build_model, default_arm, model_names, model_options


def parameter_count(name: str) -> int:
    """Number of parameters of a network with its default options, counted without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(name).parameters())


def describe_option(option: inspect.Parameter) -> str:
    """An option with its default, and its choices if it has a few: ``stem=cifar (cifar|imagenet)``."""
    choices = [c for part in (option.annotation, *get_args(option.annotation)) for c in get_args(part)]
    names = [c for c in choices if isinstance(c, str)]
    optional = ["None"] if type(None) in choices else []
    return f"{option.name}={option.default}" + (f" ({'|'.join(optional + names)})" if names else "")


def wrap(row: str, indent: int) -> list[str]:
    """A row of a table as lines, all but the first indented to its last column."""
    return textwrap.wrap(row, 100, subsequent_indent=" " * indent, break_on_hyphens=False)


def listing() -> str:
    """The whole list, aligned, as printed."""
    names = model_names()
    width = max(len(name) for name in names)
    lines = [f"{'model':{width}}  {'parameters':>10}  arms (* default)"]
    for name in names:
        marked = ", ".join(f"{arm}*" if arm == default_arm(name) else arm for arm in arms(name))
        lines += wrap(f"{name:{width}}  {parameter_count(name):>10,}  {marked}", width + 14)
    lines += ["", f"{'model':{width}}  options=default (choices)"]
    for name in names:
        options = ", ".join(describe_option(option) for option in model_options(name).values()) or "none"
        lines += wrap(f"{name:{width}}  {options}", width + 2)
    return "\n".join(lines)


if __name__ == "__main__":
    print(listing())
