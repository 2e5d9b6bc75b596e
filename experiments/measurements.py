"""What an experiment measures while it trains: the preset's measurements, as the options change them."""

from dataclasses import replace

import torch

from diagnostics.monitor import Measurement
from diagnostics.schedule import log_spaced, until
from experiments.config import TrainConfig


def measurements(config: TrainConfig) -> tuple[Measurement, ...]:
    """The measurements of each run; none without diagnostics."""
    chosen = config.measurements if config.diagnostics else ()
    if config.layers is not None:
        chosen = tuple(replace(one, layers=config.layers) for one in chosen)
    last = config.measure_until
    if last is not None:
        chosen = tuple(replace(one, schedule=until(last, one.schedule or log_spaced())) for one in chosen)
    return chosen


def spectra_dtype(config: TrainConfig) -> torch.dtype | None:
    """Precision of the Jacobians by the option ``--spectra-dtype``; None for the model's own."""
    return torch.float64 if config.spectra_dtype == "float64" else None
