"""The runs of an experiment: every arm at every learning rate in every trial."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostics.errors import InputError
from experiments.batches import derive_seed
from experiments.config import TrainConfig


@dataclass(frozen=True)
class Cell:
    """One run: an arm at a learning rate in a trial.

    Attributes:
        seed: The trial's; all its arms and learning rates share initialisation and data order.
    """

    arm: str
    lr: float
    trial: int
    seed: int

    @property
    def run_id(self) -> str:
        """Name of the run and of its directory."""
        return f"{self.arm}-lr{self.lr:g}-trial{self.trial:02d}"


def all_cells(config: TrainConfig) -> Iterator[Cell]:
    """Every run, the arms of a trial next to each other."""
    for trial in range(config.trials):
        for lr in config.lr:
            for arm in config.arms:
                yield Cell(arm, lr, trial, derive_seed(config.seed, trial))


def recorded_group(runs: Path, cell: Cell) -> list[Cell]:
    """The runs that one was begun to be trained together with, itself among them; empty if it was alone or not begun.

    Args:
        runs: The directory of all runs.
        cell: The run.

    Raises:
        InputError: What is recorded of one of them is damaged.
    """
    names = _read(runs / cell.run_id).get("together") or ""
    return [cell if name == cell.run_id else _recorded_cell(runs / name) for name in names.splitlines()]


def _recorded_cell(directory: Path) -> Cell:
    recorded = _read(directory)
    try:
        return Cell(*(recorded[name] for name in ("arm", "lr", "trial", "seed")))
    except KeyError as error:
        raise InputError(f"{directory / 'config.json'} does not say {error}; start anew with another --out") from error


def _read(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); start anew with another --out") from error
