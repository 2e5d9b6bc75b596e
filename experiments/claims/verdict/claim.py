"""What a claim is: a statement, the experiments that test it, and the rule that decides.

A claim is written down whole before anything is trained (``run.preregistration``). Its verdict follows from the tables
alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self, runtime_checkable

import pandas as pd

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.statistics.looks import FIRST_LOOK_SHARE
from skip_conditioning.experiments.claims.verdict.outcome import Judgement
from skip_conditioning.experiments.config.train_config import TrainConfig, option_values

Size = Literal["demo", "mnist", "reduced", "cifar"]

#: What is registered of looking at a verdict again.
LOOKS: Final = (
    f"the first look spends {FIRST_LOOK_SHARE:g} of the level, each later one (after --trials was raised) half of what "
    "is left"
)

#: Options of an experiment that depend on the machine, beside those of its output.
_INCIDENTAL: Final = ("data_dir", "device", "processes", "workers")


@dataclass(frozen=True)
class RateSweep:
    """Each arm's learning rate is chosen on pilot runs, before the runs that are compared are trained.

    The best rate of an arm is that at which its pilot runs take the fewest steps to the thresholds
    (``rate_sweep.best_rates``); where it is an end of the grid for any arm, nothing is decided at best rates. The runs
    that are compared are trained at their arm's best rate, and at the base arm's best, which is the same for all.

    Attributes:
        base: The arm from whose pilot runs the thresholds are taken.
        rates: The grid.
        trials: Number of pilot trials; their seeds are not those of the runs that are compared.
    """

    base: str
    rates: tuple[float, ...]
    trials: int = 3


@dataclass(frozen=True)
class Plan:
    """What is trained for a claim at one size: an experiment of ``skip-conditioning train``.

    Claims whose plans are equal but for arms and trials share one experiment, with the arms and trials of all.

    Attributes:
        config: Its options, such as ``preset("demo", arms=("chain", "residual"), trials=8, lr=(0.1,))``; where it is
            written and on which device it is trained is decided by the command.
        sweep: How each arm's learning rate is chosen; without it all are trained at those of the options.
        initial_states: What is measured of each arm's network at its initialisation, on its first training batch:
            everything, or all but the tangent kernel, which costs the most; None for nothing.
    """

    config: TrainConfig
    sweep: RateSweep | None = None
    initial_states: Literal["everything", "without kernel"] | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms compared."""
        return self.config.network.arms

    @property
    def trials(self) -> int:
        """Number of trials, each an initialisation and a data order shared by all arms."""
        return self.config.optimisation.trials

    def registered(self) -> dict[str, Any]:
        """The options that bear on results, as plain JSON values."""
        options = option_values(self.config)
        measured = [[each.map, each.layers, each.batch_mode] for each in options.pop("measurements")]
        outputs = [option.name for option in fields(self.config.output)]
        return {
            **{name: value for name, value in options.items() if name not in (*outputs, *_INCIDENTAL)},
            "measurements": measured,
            "sweep": None if self.sweep is None else asdict(self.sweep),
            "initial_states": self.initial_states,
        }


@dataclass(frozen=True)
class ClaimInputs:
    """What a claim is judged from.

    Attributes:
        experiments: The tables of each experiment, by the names of the claim's plans.
        directory: The claim's own folder, for figures and for tables of what it measures itself.
        seed: Of bootstrap samples and other random draws.
        data_dir: Folder of the data sets, for claims that measure by themselves; None without one.
        pilots: The tables of the pilot runs of plans with a sweep, by the plan's name.
        initial_states: What was measured at initialisation, a row for each arm and trial, by the plan's name.
    """

    experiments: Mapping[str, Experiment]
    directory: Path
    seed: int = 0
    data_dir: Path | None = None
    pilots: Mapping[str, Experiment] = field(default_factory=dict)
    initial_states: Mapping[str, pd.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class DecisionRule:
    """How paired comparisons are decided; all numbers are fixed beforehand (``decision``).

    Attributes:
        level: Chance that any interval of the comparisons of a claim misses the true median.
        margin: Ratios between ``1 / margin`` and ``margin`` count as no effect, or as a small one.
    """

    level: float = 0.05
    margin: float = 1.10


class Claim(Protocol):
    """A claim that can be tested; most are a ``PairedClaim``.

    Attributes:
        id: Its name on the command line.
        statement: What is claimed, in a sentence.
        source: Where it is claimed.
        predicted: What is expected if it is true, in words.
        controls: Possible confounders, and how each is held equal or varied.
    """

    id: str
    statement: str
    source: str
    predicted: str
    controls: tuple[str, ...]

    def plans(self, size: Size) -> Mapping[str, Plan]:
        """The experiments to train for it, by the names that ``judge`` reads their tables by; empty if none."""

    def registered(self, size: Size) -> dict[str, Any]:
        """All that decides the verdict, as plain JSON values: plans, statistics, thresholds."""

    def judge(self, inputs: ClaimInputs, size: Size) -> Judgement:
        """The verdict, from the tables alone."""


@runtime_checkable
class TrainedClaim(Protocol):
    """A claim decided by trained runs: its verdict may be looked at again after trials were added."""

    def at_look(self, look: int) -> Self:
        """The claim at a later look at its verdict, which spends less of the level; the first look is 1."""

    def fewest_trials(self, name: str, size: Size, rates: int) -> int:
        """The fewest trials with which every comparison in one of its experiments could be significant.

        Args:
            name: Of the plan.
            size: Of the experiments.
            rates: Number of learning rates in it.
        """
