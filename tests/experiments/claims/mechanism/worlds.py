"""Worlds in which it is known whether conditioning, the skip or the gradient norm drives speed, as a claim's inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.mechanism.design import CONDITIONING, Design, Kind
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs, RateSweep
from skip_conditioning.experiments.claims.verdict.rate_sweep import root_two_grid
from tests.experiments.claims.worlds import tables_of

#: Logarithm of the effective rank by arm, and whether it has a skip: as they were measured on a residual MLP.
ARMS: Mapping[str, tuple[float, bool]] = {
    "chain": (5.08, False),
    "residual": (5.88, True),
    "chain-orthogonal": (5.42, False),
    "chain-dirac": (4.61, False),
    "chain-looks-linear": (6.37, False),
    "rescaled": (5.33, True),
    "rank-deficient": (5.14, True),
    "orthogonal": (5.97, True),
    "gain-0.25": (5.1, True),
    "gain-0.5": (5.17, True),
    "gain-2": (6.23, True),
    "residual-orthogonal": (5.94, True),
    "residual-dirac": (5.83, True),
    "residual-looks-linear": (6.12, True),
}
_RANKS = np.array([rank for rank, _ in ARMS.values()])
DESIGN = Design(
    "chain",
    "residual",
    dict.fromkeys(list(ARMS)[2:], Kind.OTHER_SKIP),
    skips=tuple(arm for arm, (_, has_skip) in ARMS.items() if has_skip),
    rivals=("grad_norm", "sharpness"),
)
RATES = root_two_grid(0.1, 0.4)
SWEEP = RateSweep("chain", RATES, 2)
NAME = "world"


def standardised(rank: np.ndarray | float) -> np.ndarray:
    """An effective rank's logarithm in standard deviations over the arms."""
    return np.asarray((rank - _RANKS.mean()) / _RANKS.std())


@dataclass(frozen=True)
class MechanismWorld:
    """What makes a run slow.

    Attributes:
        through: Slowness from the standardised effective rank.
        skip: Of having a skip.
        gradient: Per standard deviation of the gradient norm, which goes with the effective rank by −0.7.
        unexplained: Standard deviation between arms that nothing measured explains.
        noise: Of a run.
        tails: Degrees of freedom of Student's t; 0 for a normal distribution.
        unequal: Whether arms differ in their noise.
        diverging: Share of the runs of each arm that diverge.
        seeds: Standard deviation of what all arms of a trial share.
    """

    through: Callable[[np.ndarray], np.ndarray] = lambda z: 0 * z
    skip: float = 0.0
    gradient: float = 0.0
    unexplained: float = 0.1
    noise: float = 0.1
    tails: int = 0
    unequal: bool = False
    diverging: Mapping[str, float] = field(default_factory=dict)
    seeds: float = 0.2

    def inputs(self, trials: int, seed: int, directory: Path) -> ClaimInputs:
        """The tables of the runs, of pilot runs with their best rate in the middle of the grid, and initial states."""
        rng = np.random.default_rng(seed)
        arm_own = self.unexplained * rng.normal(size=len(ARMS))
        gradients = -0.7 * standardised(_RANKS) + 0.7 * rng.normal(size=len(ARMS))
        sharp = -0.6 * standardised(_RANKS) + 0.8 * rng.normal(size=len(ARMS))
        loud = rng.uniform(0.3, 3, len(ARMS)) if self.unequal else np.ones(len(ARMS))
        together, states, slowness = self.seeds * rng.normal(size=trials), [], {}
        for position, (arm, (rank, has_skip)) in enumerate(ARMS.items()):
            ranks = rank + 0.04 * rng.normal(size=trials)
            norms = gradients[position] + 0.1 * rng.normal(size=trials)
            own = rng.standard_t(self.tails, trials) if self.tails else rng.normal(size=trials)
            level = self.through(standardised(ranks)) + self.skip * has_skip + self.gradient * norms
            slowness[arm] = level + arm_own[position] + together + self.noise * loud[position] * own
            slowness[arm][rng.random(trials) < self.diverging.get(arm, 0)] = np.inf
            states.append(_states(arm, ranks, norms, sharp[position] + 0.1 * rng.normal(size=trials)))
        typical = {
            arm: np.array([np.median(values[np.isfinite(values)])] * SWEEP.trials) for arm, values in slowness.items()
        }
        pilots = _joined(
            [tables_of({arm: v + 0.3 * abs(i - 2) for arm, v in typical.items()}, lr=lr) for i, lr in enumerate(RATES)]
        )
        runs = tables_of(slowness, lr=RATES[2])
        return ClaimInputs({NAME: runs}, directory, pilots={NAME: pilots}, initial_states={NAME: pd.concat(states)})


def _states(arm: str, ranks: np.ndarray, norms: np.ndarray, sharp: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame({"arm": arm, "trial": np.arange(len(ranks)), "grad_norm": np.exp(norms)})
    others = {name: np.exp(np.random.default_rng(len(arm)).normal(size=len(ranks))) for name in CONDITIONING}
    return frame.assign(sharpness=np.exp(sharp), **others).assign(effective_rank=np.exp(ranks))


def _joined(tables: list[Experiment]) -> Experiment:
    names = ("runs", "metrics", "spectra", "skipped")
    return Experiment(
        **{name: pd.concat([getattr(each, name) for each in tables], ignore_index=True) for name in names}
    )


#: By name: a world, and whether conditioning is the cause.
WORLDS: Mapping[str, tuple[MechanismWorld, bool]] = {
    "mechanism true, linear": (MechanismWorld(through=lambda z: -0.5 * z), True),
    "mechanism true, threshold": (MechanismWorld(through=lambda z: -1.0 * (z > 0.2)), True),
    "mechanism true, saturating": (MechanismWorld(through=lambda z: -1.2 * np.tanh(z + 1)), True),
    "mechanism true, steep": (MechanismWorld(through=lambda z: -1.5 * z), True),
    "heavy tails": (MechanismWorld(through=lambda z: -0.5 * z, tails=2), True),
    "half of two arms diverging": (
        MechanismWorld(through=lambda z: -0.5 * z, diverging={"chain": 0.5, "chain-dirac": 0.5}), True,
    ),
    "unequal variances": (MechanismWorld(through=lambda z: -0.5 * z, unequal=True), True),
    "correlated seeds": (MechanismWorld(through=lambda z: -0.5 * z, seeds=1.0), True),
    "another path: the skip": (MechanismWorld(skip=-0.6), False),
    "gradient norm as the cause": (MechanismWorld(gradient=0.5), False),
    "no effect": (MechanismWorld(), False),
    "reversed": (MechanismWorld(through=lambda z: 0.5 * z), False),
}  # fmt: skip
