"""What every experiment on the theory is given, and what it gives back."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from skip_conditioning.diagnostics.tables import clear_disk_errors, write_parquet
from skip_conditioning.diagnostics.theory.statement import Statement


@dataclass(frozen=True)
class Setting:
    """How the experiments are run.

    Attributes:
        out: Directory for tables, runs and figures.
        quick: Whether to run the small version, seconds long.
        seed: Of initialisations and of the images drawn.
        data_dir: Folder of the data sets; None has the bundled digits only.
        dataset: What the networks of ``subjects`` see.
        model: A network to check in place of ours, as for ``models.build_model``; None has ours.
        model_options: Options of that network, each ``name=value``.
        samples: Images that it is checked on.
        layers: Where it is cut into a chain of layers; None takes the blocks.
    """

    out: Path
    quick: bool = False
    seed: int = 0
    data_dir: Path | None = None
    dataset: str = "digits"
    model: str | None = None
    model_options: tuple[str, ...] = ()
    samples: int = 16
    layers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Check:
    """A statement, and where it was checked.

    Attributes:
        network: What the network is, in words short enough for a table.
        statement: Both sides and the verdict.
        step: Optimiser steps taken, where it was trained.
        variant: What tells several checks of one network apart, such as where its training started.
    """

    network: str
    statement: Statement
    step: int | None = None
    variant: str = ""


#: An experiment: it writes its own tables under ``Setting.out`` and returns every statement it checked.
Experiment = Callable[[Setting], Iterable[Check]]


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as one Parquet file, whole or not at all.

    Raises:
        InputError: It cannot be written, or the disk is full.
    """
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(pa.Table.from_pandas(frame, preserve_index=False), path)
