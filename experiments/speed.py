"""How fast each run trained: ``skip-conditioning speed DIR`` prints the table and writes ``DIR/speed.parquet``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from skip_conditioning.experiments.config.command_line import parse_options, run_command
from skip_conditioning.experiments.records.speed import SPEED, write_speed


@dataclass(frozen=True)
class Options:
    """Print how fast each run trained, fastest first, and write DIR/speed.parquet."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """An experiment, or one run."""

    loss_threshold: float | None = None
    """Training loss to reach; None for the one that each run was configured with."""

    loss_window: int | None = None
    """Number of logged steps over which the loss is averaged; None for the one that each run was configured with."""


def print_speed(options: Options) -> None:
    """Write the speed table and print it, fastest run first."""
    table = write_speed(options.directory, loss_threshold=options.loss_threshold, loss_window=options.loss_window)
    print(table.sort_values("speed_rank", kind="stable").to_string(index=False, float_format="{:.4g}".format))
    print(f"written to {options.directory / SPEED}")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 for bad input."""
    return run_command(print_speed, lambda: parse_options(Options, "skip-conditioning speed", args))


if __name__ == "__main__":
    sys.exit(main())
