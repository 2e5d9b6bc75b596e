"""Families of arms tuned to equal conditioning.

An arm of a family has a dose in its name, such as ``gain-0.8``. For each of some targets the dose is sought at which
the geometric mean of the effective rank over tuning trials, whose seeds are in no comparison, is the target; and a
factor of the logits at which ‖J‖_F is that of the first family. The doses found are constants of the claim that
compares them (``paper.matched_conditioning``), so that they are registered with it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.measure import spectra
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.data.batches import derive_seed
from skip_conditioning.experiments.data.training_data import open_data
from skip_conditioning.experiments.processes.machine import choose_device, one_thread
from skip_conditioning.experiments.processes.ranks import Ranks
from skip_conditioning.experiments.training.runs import Run, RunFactory

#: Number of the first tuning trial, beyond those of any comparison.
_FIRST_TRIAL: Final = 100_000
#: How near the effective rank comes to the target, as a logarithm, and digits of a dose.
_NEAR, _DIGITS, _MOST_STEPS = 0.004, 4, 25


@dataclass(frozen=True)
class MatchedArm:
    """An arm of a family at one target.

    Attributes:
        family: Name of the family.
        target: Effective rank sought.
        arm: The arm with its dose, such as ``gain-0.8``.
        achieved: Geometric mean of the effective rank over the tuning trials.
        norm: Geometric mean of ‖J‖_F over them.
    """

    family: str
    target: float
    arm: str
    achieved: float
    norm: float


class Tuner:
    """Seeks doses on the networks of an experiment at their initialisation, on its first training batch.

    Args:
        config: The experiment; its arms and learning rates do not matter.
        trials: Number of tuning trials.
    """

    def __init__(self, config: TrainConfig, trials: int) -> None:
        device = choose_device(config.optimisation.device)
        data = open_data(config, device, Ranks())
        self.factory = RunFactory(config, data, data.probe(torch.arange(1)), device, Ranks())
        self.data, self.trials, self.seed = data, trials, config.optimisation.seed

    def measure(self, arm: str) -> tuple[float, float]:
        """Geometric means of the effective rank and of ‖J‖_F over the tuning trials."""
        logs = []
        for trial in range(_FIRST_TRIAL, _FIRST_TRIAL + self.trials):
            run = Run(arm, 0.1, trial, derive_seed(self.seed, trial))
            network = self.factory.initial_network(run)
            x, _ = self.data.batches(run.seed).at(0)
            layer = next(name for name, _ in network.named_children())
            (spectrum,) = spectra(network, x, map="tail", layers=[layer], method="exact").values()
            norm = spectrum.sigma_rms * math.sqrt(min(spectrum.rows, spectrum.cols))
            logs.append((math.log(spectrum.effective_rank), math.log(norm)))
        rank, norm = np.exp(np.mean(logs, axis=0))
        return float(rank), float(norm)

    def tune(self, family: str, target: float, between: tuple[float, float]) -> MatchedArm:
        """The arm of a family with a target effective rank.

        Args:
            family: All of an arm's name but its dose.
            target: Effective rank.
            between: Doses between which it grows with the dose, and the target lies.

        Raises:
            InputError: The target does not lie between those of the two doses.
        """
        low, high = between
        ends = [math.log(self.measure(f"{family}-{dose:g}")[0] / target) for dose in between]
        if ends[0] > 0 or ends[1] < 0:
            reach = " to ".join(f"{target * math.exp(end):.0f}" for end in ends)
            raise InputError(
                f"{family} reaches effective ranks from {reach} between doses {low:g} and {high:g}, not {target:g}"
            )
        for step in range(_MOST_STEPS):
            # Regula falsi, with a bisection every third time, so that a bend of the curve cannot hold it up.
            share = 0.5 if step % 3 == 2 else -ends[0] / (ends[1] - ends[0])
            dose = round(low + share * (high - low), _DIGITS)
            rank, norm = self.measure(f"{family}-{dose:g}")
            error = math.log(rank / target)
            if abs(error) < _NEAR or high - low < 10**-_DIGITS:
                return MatchedArm(family, target, f"{family}-{dose:g}", rank, norm)
            low, high = (low, dose) if error > 0 else (dose, high)
            ends = [ends[0], error] if error > 0 else [error, ends[1]]
        raise InputError(f"no dose of {family} between {low:g} and {high:g} has an effective rank of {target:g}")


def matched_arms(
    config: TrainConfig, families: Mapping[str, tuple[float, float]], targets: Sequence[float], trials: int
) -> list[MatchedArm]:
    """The arms of all families at all targets.

    Args:
        config: The experiment.
        families: Doses between which each is sought, by family.
        targets: Effective ranks.
        trials: Number of tuning trials.

    Raises:
        InputError: A family does not reach a target.
    """
    with one_thread():
        tuner = Tuner(config, trials)
        return [tuner.tune(family, target, between) for family, between in families.items() for target in targets]
