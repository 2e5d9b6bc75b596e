"""What every command line shares: options from dataclasses, and bad input as one line and exit code 2."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tyro

from skip_conditioning.command_line import in_one_line, with_plain_ends
from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.experiments.processes.group import is_first_process, is_to_print
from skip_conditioning.models import ModelOptionError

Options = TypeVar("Options")


def run_command(main: Callable[[Options], None], parse: Callable[[], Options]) -> int:
    """Parse the command line, run the command, and return its exit code: 0, 2 for bad input, 130 for Ctrl-C."""

    def run() -> int:
        main(parse())
        return 0

    try:
        return with_plain_ends(run)
    except (InputError, ModelOptionError) as error:
        if is_to_print(error):
            print("error:", " ".join(str(error).splitlines()), file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt as stop:
        if is_first_process():
            print("; ".join(["interrupted", *stop.args]), file=sys.stderr)
        return 130


def parse_options(kind: type[Options], prog: str, args: Sequence[str] | None) -> Options:
    """Options of one kind from the command line.

    Raises:
        InputError: An option or a value that does not exist, in one line.
    """
    return in_one_line(lambda: tyro.cli(kind, prog=prog, args=args), args)


def parse_preset(presets: Mapping[str, tuple[str, Options]], prog: str, args: Sequence[str]) -> Options:
    """Options that start from a preset, named by the first argument.

    Raises:
        InputError: The preset is missing or unknown (near matches are offered), or an option or a value does not exist.
    """
    if not args:
        raise InputError(f"name a preset: {', '.join(presets)}; or see --help")
    if not args[0].startswith("-") and args[0] not in presets:
        hint = near_matches(args[0], presets)
        raise InputError(f"unknown preset {args[0]!r}; known are {', '.join(presets)}.{hint}")
    return in_one_line(lambda: tyro.extras.overridable_config_cli(dict(presets), prog=prog, args=args), args)
