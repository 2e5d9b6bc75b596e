"""The figures of a claim, drawn into its folder at every judgement."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.figures.drawing.saving import save
from skip_conditioning.figures.loss_curves import loss_curves
from skip_conditioning.figures.singular_value_histograms import singular_value_histograms

#: The figures of an experiment of ``skip-conditioning train``: what draws each, by name.
EXPERIMENT_FIGURES: Final[Mapping[str, Callable[[Experiment], Figure]]] = {
    "loss_curves": loss_curves,
    "singular_value_histograms": singular_value_histograms,
}


def draw_figures(directory: Path, makers: Mapping[str, Callable[[], Figure]]) -> tuple[Path, ...]:
    """Draw and save figures; those for which the tables hold too little are left out.

    Args:
        directory: Where they are saved.
        makers: What draws each, by the name of its file.

    Returns:
        The SVG files.

    Raises:
        InputError: They cannot be written.
    """
    paths: list[Path] = []
    for name, make in makers.items():
        try:
            figure = make()
        except InputError:  # spectra that do not fit into one histogram, say: no reason to withhold a verdict
            continue
        paths += save(figure, directory / name, ["svg"])
    return tuple(paths)


def in_order_of(arms: Sequence[str], tables: Experiment) -> Experiment:
    """The tables with their runs in the order of the arms, which figures follow."""
    positions = tables.runs["arm"].map({arm: position for position, arm in enumerate(arms)})
    return replace(tables, runs=tables.runs.loc[positions.sort_values(kind="stable").index].reset_index(drop=True))
