"""Which runs of an experiment are trained together, as one vmapped network."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from diagnostics.errors import InputError
from experiments.cells import Cell, is_begun, recorded_group
from experiments.config import TrainConfig
from experiments.outputs import is_over
from experiments.ranks import Ranks
from experiments.together import obstacle
from experiments.training_data import HeldData, TrainingData

#: Larger networks keep a device busy one by one.
_SMALL = 1_000_000
#: Where small ones train faster together. On a CPU it depends (0.8 to 1.6 times, ``benchmarks/results``).
_FASTER_TOGETHER = frozenset({"cuda"})


def alike_arms(
    config: TrainConfig,
    data: TrainingData,
    ranks: Ranks,
    build: Mapping[str, Callable[[], nn.Module]],
    images: Tensor,
) -> dict[str, str]:
    """For each arm whose runs are to be trained together, the first arm that they can be trained together with.

    Args:
        config: The options.
        data: The experiment's.
        ranks: The processes that train it.
        build: Builds a network of each arm, with a new initialisation each time.
        images: A batch that the networks can be applied to.

    Raises:
        InputError: ``--together yes``, and it cannot be done.
    """
    if config.together == "no":
        return {}
    refusal = _refusal(config, data, ranks)
    found: dict[str, str] = {}
    for arm, make in build.items() if not refusal else ():
        network = make()
        small = sum(parameter.numel() for parameter in network.parameters()) <= _SMALL
        if config.together == "auto" and not (small and images.device.type in _FASTER_TOGETHER):
            continue
        refusal = obstacle([network, make()], images)
        if refusal:
            refusal = f"{arm}: {refusal}"
            if config.together == "yes":
                break
            continue
        found[arm] = next((one for one in found if not obstacle([build[one](), make()], images)), arm)
    if refusal and config.together == "yes":
        raise InputError(f"--together yes cannot be done ({refusal}); give --together no")
    return found


def grouped(cells: Sequence[Cell], alike: Mapping[str, str], runs: Path) -> list[list[Cell]]:
    """The runs in groups to be trained together, those of one learning rate next to each other in each.

    A group of which a run is not over is there whole, as it was begun. Runs that are over otherwise are left out.

    Args:
        cells: All runs.
        alike: As from ``alike_arms``.
        runs: The directory of all runs.
    """
    groups: list[list[Cell]] = []
    fresh: dict[str, list[Cell]] = {}
    seen: set[Cell] = set()
    for cell in cells:
        if cell in seen or is_over(runs / cell.run_id):
            continue
        group = recorded_group(runs, cell)
        if not group and cell.arm in alike and not is_begun(runs, cell):
            group = fresh.setdefault(alike[cell.arm], [])
            group.append(cell)
            if len(group) > 1:
                continue
        groups.append(group or [cell])
        seen.update(group)
    for group in fresh.values():
        group.sort(key=lambda cell: -cell.lr)
    return groups


def _refusal(config: TrainConfig, data: TrainingData, ranks: Ranks) -> str:
    if ranks.count > 1:
        return "several processes train each run"
    if config.compile:
        return "--compile is for networks one by one"
    if not isinstance(data, HeldData):
        return "the images are streamed"
    return ""
