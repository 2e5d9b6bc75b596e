"""``skip-conditioning models``: list the networks, their arms, parameter counts and options."""

import argparse
import inspect
import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn, get_args

import torch

from skip_conditioning.models.registry import arms, build_model, default_arm, model_names, model_options


def parameter_count(name: str) -> int:
    """Number of parameters of a network with its default options, counted without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(name).parameters())


def describe_option(option: inspect.Parameter) -> str:
    """An option with its default and, where it is one of several names, these: ``stem=cifar (cifar|imagenet)``."""
    choices = [c for part in (option.annotation, *get_args(option.annotation)) for c in get_args(part)]
    names = [c for c in choices if isinstance(c, str)]
    optional = ["None"] if type(None) in choices else []
    return f"{option.name}={option.default}" + (f" ({'|'.join(optional + names)})" if names else "")


def wrap(row: str, indent: int) -> list[str]:
    """A row of a table, in lines of 100 characters; all but the first are indented."""
    return textwrap.wrap(row, 100, subsequent_indent=" " * indent, break_on_hyphens=False)


def listing() -> str:
    """The text that the command prints."""
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


class _Parser(argparse.ArgumentParser):
    """A parser that refuses bad input in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


def main(args: Sequence[str] | None = None) -> int:
    """Print the list; returns the exit code.

    Raises:
        SystemExit: ``--help`` (code 0), or an argument that does not exist (code 2).
    """
    description = "List the networks: their arms, parameter counts, and options with their defaults."
    _Parser(prog="skip-conditioning models", description=description).parse_args(args)
    print(listing())
    return 0


if __name__ == "__main__":
    sys.exit(main())
