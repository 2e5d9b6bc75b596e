"""Worlds of known truth, as the tables of an experiment: how fast each arm is, and how much runs vary, is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.tables import Experiment, empty_frame, spectra_frame

#: Loss at the start, and steps of a run whose slowness is 0 to a tenth of it.
_START, _STEPS = 2.3, 20


@dataclass(frozen=True)
class World:
    """Runs whose loss falls exponentially, each by a rate of its own.

    Attributes:
        slowness: Logarithm of the time scale by arm; the effect of an arm over another is their difference.
        noise: Standard deviation of a run's own part, or by arm.
        shared: Of the part that all arms of a trial share.
        tails: Degrees of freedom of Student's t, 0 for a normal distribution.
        diverging: Share of runs that diverge, by arm.
        length: Steps of a run.
    """

    slowness: Mapping[str, float]
    noise: float | Mapping[str, float] = 0.1
    shared: float = 0.3
    tails: int = 0
    diverging: Mapping[str, float] = field(default_factory=dict)
    length: int = 80

    def draw(self, trials: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Logarithms of the time scales by arm, shape ``(trials,)`` each; +inf for a run that diverged."""
        together = self.shared * rng.normal(size=trials)
        values = {}
        for arm, level in self.slowness.items():
            spread = self.noise if isinstance(self.noise, float) else self.noise[arm]
            own = rng.standard_t(self.tails, trials) if self.tails else rng.normal(size=trials)
            values[arm] = level + together + spread * own
            values[arm][rng.random(trials) < self.diverging.get(arm, 0)] = np.inf
        return values

    def tables(self, trials: int, seed: int, lr: float = 0.1) -> Experiment:
        """The tables of an experiment with all arms in every trial."""
        return tables_of(self.draw(trials, np.random.default_rng(seed)), length=self.length, lr=lr)


def tables_of(slowness: Mapping[str, np.ndarray], *, length: int = 80, lr: float = 0.1) -> Experiment:
    """The tables of runs with these logarithms of time scales, by arm and trial; +inf diverges.

    Args:
        slowness: Shape ``(trials,)`` for each arm.
        length: Steps of a run.
        lr: Learning rate of all.
    """
    runs, metrics = [], []
    steps = np.arange(length + 1)
    for arm, values in slowness.items():
        for trial, value in enumerate(values):
            run_id, diverged = f"{arm}-lr{lr:g}-trial{trial:02d}", bool(np.isposinf(value))
            runs.append({"run_id": run_id, "arm": arm, "trial": trial, "lr": lr, "seed": trial})
            runs[-1]["status"] = "diverged" if diverged else "finished"
            losses = _START * 0.1 ** (steps / (_STEPS * np.exp(min(value, 50))))
            losses = np.array([_START, np.nan]) if diverged else losses
            metrics.append(pd.DataFrame({"run_id": run_id, "step": steps[: len(losses)], "loss": losses}))
    frame = pd.concat(metrics, ignore_index=True).assign(split="train", grad_norm=1.0)
    return Experiment(pd.DataFrame(runs), frame, spectra_frame([]), empty_frame("skipped"))
