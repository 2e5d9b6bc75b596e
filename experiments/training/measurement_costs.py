"""What the measurements of a run cost: seconds each time, and the rows that they write."""

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from skip_conditioning.diagnostics.monitoring.measurement import Measurement, scheduled
from skip_conditioning.diagnostics.monitoring.monitor import SpectrumMonitor
from skip_conditioning.diagnostics.monitoring.schedule import as_schedule, log_spaced
from skip_conditioning.diagnostics.monitoring.time_budget import forecast
from skip_conditioning.diagnostics.support.memory import GIB
from skip_conditioning.diagnostics.tables import SKIPPED, SPECTRA
from skip_conditioning.experiments.config.train_config import measurements, spectra_dtype
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.experiments.training.timing import read_rows, timed
from skip_conditioning.experiments.training.trainer import Trainer

#: A measurement is made if its forecast is no longer than this, in seconds; otherwise the forecast stands.
_MEASURED_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class MeasurementCost:
    """What one measurement of a run costs.

    Attributes:
        map: What is measured, or ``bounds``.
        seconds: Each time.
        is_forecast: Whether these are a forecast, because measuring would take too long.
        due: Steps at which it is due.
        spectra: Rows that it writes each time; none if it was not made.
        skipped: The row that it writes where it exceeds ``max_overhead``.
    """

    map: str
    seconds: float
    is_forecast: bool
    due: list[int]
    spectra: pa.Table
    skipped: pa.Table


def measurement_costs(runner: Runner, trainer: Trainer) -> list[MeasurementCost]:
    """The cost of everything that is measured in a run: each measurement is made twice, and the second is timed.

    Args:
        runner: Of the experiment.
        trainer: Of the run, which has taken a few steps.
    """
    bounds: list[Measurement | None] = [None] if runner.config.diagnostics.bounds else []
    return [
        _cost(runner, trainer, measurement, trainer.directory / str(number))
        for number, measurement in enumerate([*bounds, *measurements(runner.config)])
    ]


def _cost(runner: Runner, trainer: Trainer, measurement: Measurement | None, directory: Path) -> MeasurementCost:
    """The cost of a measurement, or of the bounds; a monitor writes to the directory."""
    model, probe, dtype = trainer.model, runner.probe, spectra_dtype(runner.config)
    named = scheduled(measurement or Measurement("bounds"), None, log_spaced())
    schedule = as_schedule(named.schedule)  # type: ignore[arg-type]
    due = [step for step in range(trainer.total_steps + 1) if schedule(step)]
    seconds = 0.0
    if measurement is not None:
        seconds = forecast(model, probe[0], measurement, method="auto", tolerance=None, dtype=dtype, memory_budget=GIB)
    too_long = seconds > _MEASURED_SECONDS
    spectra = SPECTRA.empty_table()
    if not too_long:
        maps = () if measurement is None else (replace(measurement, schedule=1),)
        monitor = SpectrumMonitor(
            model, probe, directory, maps=maps, schedule=1, max_overhead=None, dtype=dtype, bounds=measurement is None
        )
        monitor.step(0)
        _, seconds = timed(lambda: monitor.step(1), runner.device)
        monitor.close()
        spectra = read_rows(directory / "spectra").filter(pc.field("step") == 0)
    reason = f"would exceed max_overhead={runner.config.diagnostics.max_overhead}"
    row = {"run_id": trainer.directory.name, "step": 0} | named.skipped(reason, seconds)
    return MeasurementCost(named.map, seconds, too_long, due, spectra, pa.Table.from_pylist([row], schema=SKIPPED))
