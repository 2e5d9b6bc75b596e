"""The figures that stand beside a claim's findings, drawn into its folder again at every judgement."""

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

#: What draws the figures of an experiment of ``experiments.train``, by name.
OF_EXPERIMENT: Final[Mapping[str, Callable[[Experiment], Figure]]] = {
    "loss_curves": loss_curves,
    "singular_value_histograms": singular_value_histograms,
}


def draw(directory: Path, makers: Mapping[str, Callable[[], Figure]]) -> tuple[Path, ...]:
    """Draw some figures; those that the tables do not suffice for are left out.

    Args:
        directory: Where they go.
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
        except InputError:  # spectra that no histogram can hold side by side are no reason to withhold a verdict
            continue
        paths += save(figure, directory / name, ["svg"])
    return tuple(paths)


def in_order_of(arms: Sequence[str], tables: Experiment) -> Experiment:
    """The tables with their runs in the order of the arms, in which figures show them."""
    places = tables.runs["arm"].map({arm: place for place, arm in enumerate(arms)})
    return replace(tables, runs=tables.runs.loc[places.sort_values(kind="stable").index].reset_index(drop=True))
