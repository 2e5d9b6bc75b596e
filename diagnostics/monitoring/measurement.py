"""What is to be measured while training: of which map and layers, and at which steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from skip_conditioning.diagnostics.monitoring.schedule import Schedule, as_schedule


@dataclass(frozen=True)
class Measurement:
    """What to measure, and when.

    Attributes:
        map: One of ``maps.MAPS``.
        layers: Names or globs; None takes the blocks.
        batch_mode: ``batch`` or ``sample``.
        schedule: Steps at which it is due; None takes the monitor's.
    """

    map: str
    layers: Sequence[str] | str | None = None
    batch_mode: str = "batch"
    schedule: Schedule | int | None = None

    def skipped(self, reason: str, seconds: float | None) -> dict[str, Any]:
        """Columns of the table ``skipped``, for a measurement that was not made or failed.

        Args:
            reason: Why.
            seconds: What it would take, or took; None where that is not known.
        """
        layers = [self.layers] if isinstance(self.layers, str) else self.layers or ["(default)"]
        return {
            "map": self.map,
            "layers": ", ".join(layers),
            "batch_mode": self.batch_mode,
            "reason": reason,
            "estimated_seconds": seconds,
        }


def scheduled(item: str | Measurement, layers: Sequence[str] | str | None, schedule: Schedule | int) -> Measurement:
    """A measurement with its schedule.

    Args:
        item: A map's name, or a measurement, with a schedule or without.
        layers: Layers of a map that is given by its name.
        schedule: That of a map's name or a measurement without one.
    """
    if isinstance(item, str):
        item = Measurement(item, layers)
    chosen = as_schedule(item.schedule if item.schedule is not None else schedule)
    return replace(item, schedule=chosen)
