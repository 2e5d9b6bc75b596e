"""The runs of an experiment: every arm at every learning rate in every trial."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostics.errors import InputError
from experiments.batches import derive_seed
from experiments.config import TrainConfig

_CONFIG = "config.json"


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
        short = f"{self.lr:g}"
        return f"{self.arm}-lr{short if float(short) == self.lr else repr(self.lr)}-trial{self.trial:02d}"


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
    if not is_begun(runs, cell):
        return []
    return [cell if name == cell.run_id else _recorded_cell(runs / name) for name in _together(runs / cell.run_id)]


def is_begun(runs: Path, cell: Cell) -> bool:
    """Whether a run is recorded, and so are all that it is to be trained together with: no group is trained before.

    Args:
        runs: The directory of all runs.
        cell: The run.

    Raises:
        InputError: What is recorded of it is damaged.
    """
    return all((runs / name / _CONFIG).exists() for name in (cell.run_id, *_together(runs / cell.run_id)))


def _together(directory: Path) -> list[str]:
    return (_read(directory).get("together") or "").splitlines()


def _recorded_cell(directory: Path) -> Cell:
    recorded = _read(directory)
    try:
        return Cell(*(recorded[name] for name in ("arm", "lr", "trial", "seed")))
    except KeyError as error:
        raise InputError(f"{directory / _CONFIG} does not say {error}; start anew with another --out") from error


def _read(directory: Path) -> dict[str, Any]:
    path = directory / _CONFIG
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); start anew with another --out") from error
