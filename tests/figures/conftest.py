from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from skip_conditioning.diagnostics.spectrum import Spectrum
from skip_conditioning.diagnostics.tables import METRICS, SPECTRA, Experiment, TableWriter, read_experiment, write_json
from skip_conditioning.figures.drawing.selection import in_listed_order

THRESHOLD = 0.3


@dataclass(frozen=True)
class Fake:
    """A made-up experiment: better conditioned arms and larger learning rates are faster."""

    arms: tuple[str, ...] = ("chain", "residual", "modified")
    lrs: tuple[float, ...] = (0.02, 0.05, 0.1)
    trials: int = 4
    steps: tuple[int, ...] = tuple(range(0, 31, 3))
    layers: tuple[str, ...] = ("block1", "block2", "block3")
    size: int = 24
    map: str = "tail"
    #: (arm, lr, trial) of runs that diverge, of one whose loss never falls enough, and of one with a zero σ.
    diverged: tuple[tuple[str, float, int], ...] = (("residual", 0.1, 1),)
    slow: tuple[tuple[str, float, int], ...] = (("chain", 0.02, 0), ("chain", 0.02, 3))
    unresolved: tuple[tuple[str, float, int], ...] = (("chain", 0.05, 2),)
    #: (arm, trial) of runs whose spectra are known as a density only.
    densities: tuple[tuple[str, int], ...] = ()

    def write(self, directory: Path) -> Path:
        speed = []
        for rank, arm in enumerate(self.arms):
            for lr in self.lrs:
                for trial in range(self.trials):
                    speed.append(self._write_run(directory, rank, arm, lr, trial))
        pd.DataFrame(speed).to_parquet(directory / "speed.parquet")
        write_json({"network": {"arms": list(self.arms)}}, directory / "experiment.json")
        return directory

    def _write_run(self, directory: Path, rank: int, arm: str, lr: float, trial: int) -> dict:
        run_id, key = f"{arm}-lr{lr:g}-t{trial}", (arm, lr, trial)
        run = directory / "runs" / run_id
        rng = np.random.default_rng([rank, round(1000 * lr), trial])
        log_kappa = 4.5 - 1.3 * rank / max(len(self.arms) - 1, 1) + 0.25 * rng.standard_normal()
        losses = self._losses(rng, key, log_kappa, lr)
        status = "diverged" if key in self.diverged else "finished"
        metrics = TableWriter(run / "metrics", METRICS)
        for step, loss in losses.items():
            metrics.append(
                {
                    "run_id": run_id,
                    "step": step,
                    "epoch": float(step),
                    "split": "train",
                    "loss": loss,
                    "lr": lr,
                }
            )
        metrics.flush()
        spectra = TableWriter(run / "spectra", SPECTRA)
        for step in (step for step in self.steps if step in losses.index):
            for depth, layer in enumerate(self.layers):
                width = log_kappa * (1 - 0.5 * depth / len(self.layers)) * (1 + 0.2 * step / max(self.steps[-1], 1))
                values = np.sort(np.exp(np.linspace(0, -width, self.size) + 0.1 * rng.standard_normal(self.size)))[::-1]
                if key in self.unresolved and depth == 0 and step == self.steps[0]:
                    values[-1] = 0.0
                spectrum = Spectrum.of_values(
                    2 * values, (self.size, 100), torch.float32, floor=1e-4, map=self.map, layer=layer
                )
                row = spectrum.as_row()
                density = density_row(2 * values, rng) if (arm, trial) in self.densities else {}
                spectra.append({"run_id": run_id, "step": step, **row, **density})
        spectra.flush()
        config = {
            "run_id": run_id, "experiment": "fake", "dataset": "digits", "model": "paper-mnist", "arm": arm,
            "trial": trial, "seed": trial, "lr": lr, "loss_threshold": THRESHOLD,
        }  # fmt: skip
        write_json(config, run / "config.json")
        write_json({"status": status}, run / "status.json")
        return self._speed(run_id, losses, status)

    def _losses(self, rng: np.random.Generator, key: tuple, log_kappa: float, lr: float) -> pd.Series:
        last = self.steps[-1]
        steps = np.union1d(np.linspace(0, last, min(last + 1, 1000)).astype(int), self.steps)
        speed = (0.0 if key in self.slow else 14) * lr**0.5 * np.exp(-0.4 * log_kappa + 0.1 * rng.standard_normal())
        losses = 2.3 * np.exp(-30 * speed * steps / last / 4) + 0.01 + 0.02 * rng.random(len(steps))
        if key in self.diverged:
            losses = 2.3 * np.exp(12 * steps / last)
            losses, steps = losses[: len(steps) // 2], steps[: len(steps) // 2]
            losses[-1] = np.inf
        return pd.Series(losses, index=steps)

    def _speed(self, run_id: str, losses: pd.Series, status: str) -> dict:
        below = losses.index[losses <= THRESHOLD]
        return {
            "run_id": run_id,
            "loss_threshold": THRESHOLD,
            "steps_to_threshold": float(below[0]) if len(below) else float(losses.index[-1]),
            "censored": not len(below),
            "diverged": status == "diverged",
            "auc_log_loss": float(np.log(losses[np.isfinite(losses)]).mean()),
            "loss_at_step_10": losses.get(10, np.nan),
            "final_loss": losses.iloc[-1],
            "speed_rank": 1.0,
        }


def density_row(values: np.ndarray, rng: np.random.Generator, probes: int = 2, steps: int = 8) -> dict:
    """What differs in a row of the spectra table when only a quadrature of the density is known."""
    rules = [quadrature(values, steps, rng) for _ in range(probes)]
    means = [float(nodes @ weights) for nodes, weights in rules]
    nodes, weights = np.concatenate([rule[0] for rule in rules]), np.concatenate([rule[1] for rule in rules]) / probes
    order = np.argsort(-nodes)
    return {
        "values": None, "nodes": nodes[order].tolist(), "weights": weights[order].tolist(), "resolved": False,
        "sigma_mean": np.mean(means), "sigma_mean_se": np.std(means, ddof=1) / probes**0.5,
        "sigma_min": nodes.min(), "condition_number": nodes.max() / nodes.min(), "method": "lanczos",
    }  # fmt: skip


def quadrature(values: np.ndarray, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (σ) and weights that Lanczos finds from one random vector for the squares of given singular values."""
    probe = rng.standard_normal(len(values))
    krylov = np.vander(values**2 / np.max(values) ** 2, steps, increasing=True) * probe[:, None]
    basis, _ = np.linalg.qr(krylov / np.linalg.norm(krylov, axis=0))
    squares, vectors = np.linalg.eigh(basis.T @ (values[:, None] ** 2 * basis))
    return np.sqrt(np.maximum(squares, 0)), (basis.T @ probe / np.linalg.norm(probe) @ vectors) ** 2


@pytest.fixture(scope="session")
def fake_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms, three learning rates, four trials; among them diverged, censored and unresolved runs."""
    return Fake().write(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="session")
def fake_experiment(fake_directory: Path) -> Experiment:
    return in_listed_order(read_experiment(fake_directory), fake_directory)


@pytest.fixture(scope="session")
def mixed_experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Two arms, two trials at one learning rate: ``modified`` known by densities only, ``original`` in one trial."""
    densities = (("modified", 0), ("modified", 1), ("original", 1))
    fake = Fake(arms=("original", "modified"), lrs=(0.1,), trials=2, densities=densities)
    directory = fake.write(tmp_path_factory.mktemp("mixed"))
    return in_listed_order(read_experiment(directory), directory)


@pytest.fixture
def write_fake(tmp_path: Path) -> Callable[..., Path]:
    """Writes another made-up experiment, with some of its fields changed."""
    return lambda **changes: Fake(**changes).write(tmp_path / "other")
