"""The runs of an experiment: every arm at every learning rate in every trial."""

from collections.abc import Iterator
from dataclasses import dataclass

from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.data.batches import derive_seed


@dataclass(frozen=True)
class Run:
    """An arm at a learning rate in a trial.

    Attributes:
        arm: Variant of the model.
        lr: Learning rate at the start.
        trial: Number of the trial, from 0.
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


def all_runs(config: TrainConfig) -> Iterator[Run]:
    """Every run, the arms of a trial next to each other."""
    options = config.optimisation
    for trial in range(options.trials):
        for lr in options.lr:
            for arm in config.network.arms:
                yield Run(arm, lr, trial, derive_seed(options.seed, trial))
