"""Worlds in which it is known what conditioning and the skip do to speed, as tables of an experiment."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from skip_conditioning.diagnostics.spectrum import Spectrum
from skip_conditioning.diagnostics.tables import Experiment, empty_frame, spectra_frame
from skip_conditioning.experiments.claims.mechanism.design import Design

LRS = (0.02, 0.1)

#: Log κ by arm.
KAPPAS = {
    "chain": 6.0,
    "residual": 3.0,
    "orthogonal chain": 2.0,
    "orthogonal residual": 1.0,
    "scaled": 6.0,
    "half": 4.5,
}
SKIPS = ("residual", "orthogonal residual", "scaled", "half")
DESIGN = Design(
    base="chain",
    skip="residual",
    interventions={
        "orthogonal chain": "better conditioning without a skip",
        "scaled": "skip without better conditioning",
        "half": "skip gain",
        "orthogonal residual": "skip and better conditioning",
    },
    doses={"chain": 0.0, "half": 0.5, "residual": 1.0},
    factorial=(("chain", "residual"), ("orthogonal chain", "orthogonal residual")),
)


@dataclass(frozen=True)
class World:
    """What makes a run slow.

    Attributes:
        through: Log-loss per unit of log κ.
        direct: Of having a skip, whatever the conditioning.
        noise: Standard deviation, or scale of heavy tails, of log-loss and of log κ.
        heavy: Whether the noise is Cauchy's.
        diverging: Arm half of whose runs diverge.
        kappas: Log κ by arm.
    """

    through: float = 0.0
    direct: float = 0.0
    noise: float = 0.05
    heavy: bool = False
    diverging: str = ""
    kappas: Mapping[str, float] = None  # type: ignore[assignment]

    def tables(self, trials: int, seed: int) -> Experiment:
        """All arms at two learning rates, of which the second is the better for all."""
        random = np.random.default_rng(seed)
        runs, metrics, spectra = [], [], []
        for trial in range(trials):
            shared = random.normal(0, 0.3)
            for arm, level in (self.kappas or KAPPAS).items():
                kappa = level + random.normal(0, self.noise)
                for lr in LRS:
                    run_id = f"{arm}-{lr:g}-{trial}"
                    error = random.standard_cauchy() if self.heavy else random.normal()
                    slow = self.through * kappa + self.direct * (arm in SKIPS) + shared + self.noise * error
                    diverged = arm == self.diverging and bool(random.integers(2))
                    runs.append(_run(run_id, arm, lr, trial, "diverged" if diverged else "finished"))
                    metrics += [_metric(run_id, step, np.exp(slow + 0.5 * (lr == LRS[0]))) for step in (0, 1)]
                    spectra.append(_spectrum(run_id, kappa))
        frames = pd.DataFrame(runs), pd.DataFrame(metrics), spectra_frame(spectra)
        return Experiment(*frames, empty_frame("skipped"))


def _run(run_id: str, arm: str, lr: float, trial: int, status: str) -> dict[str, object]:
    return {"run_id": run_id, "arm": arm, "lr": lr, "trial": trial, "status": status, "seed": trial}


def _metric(run_id: str, step: int, loss: float) -> dict[str, object]:
    return {"run_id": run_id, "step": step, "split": "train", "loss": loss, "grad_norm": 1.0 + loss % 0.1}


def _spectrum(run_id: str, log_kappa: float) -> dict[str, object]:
    values = np.exp(-np.linspace(0, max(log_kappa, 1e-3), 8))
    spectrum = Spectrum.of_values(values, (8, 8), torch.float64, floor=1e-15, map="tail", layer="stem")
    return {"run_id": run_id, "step": 0, **spectrum.as_row()}
