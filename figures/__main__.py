"""Draw the figures of an experiment: ``skip-conditioning figures DIRECTORY``."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.figure import Figure

from skip_conditioning.command_line import in_one_line, with_plain_ends
from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, read_experiment
from skip_conditioning.figures.bounds_along_training import bounds_along_training
from skip_conditioning.figures.conditioning_heat_map import conditioning_heat_map
from skip_conditioning.figures.conditioning_vs_speed import conditioning_vs_speed
from skip_conditioning.figures.drawing.saving import NothingToDrawError, save
from skip_conditioning.figures.drawing.selection import check_measure, check_option, in_listed_order, read_speed
from skip_conditioning.figures.drawing.singular_values import SCALES
from skip_conditioning.figures.drawing.style import BATCH_MODES, MAPS
from skip_conditioning.figures.loss_curves import loss_curves
from skip_conditioning.figures.random_matrices import random_matrices
from skip_conditioning.figures.singular_value_histograms import singular_value_histograms
from skip_conditioning.figures.singular_value_ridges import singular_value_ridges


@dataclass(frozen=True)
class Options:
    """Draw the figures of an experiment, or of one run, as PNG and SVG.

    Figures: conditioning_vs_speed, loss_curves, singular_value_histograms, singular_value_ridges (density of the
    singular values of each layer over training), conditioning_heat_map, mean_sigma_map (the same for the mean singular
    value), bounds_along_training (of runs trained with --bounds), random_matrices. A figure for which the tables do
    not suffice is skipped, and the reason printed.

    Attributes:
        directory: Folder of an experiment or of one run, as training writes it.
        out: Folder to write to; by default DIRECTORY/figures.
        only: Names of the figures to draw; by default all.
        map: Derivative whose spectra are shown: tail (∂logits/∂(output of a layer)), layer, network, param or
            kernel.
        layer: Layer in conditioning_vs_speed and singular_value_histograms, by default the first measured; in
            singular_value_ridges the only layer shown, by default all.
        measure: Column of the spectra table in conditioning_vs_speed and conditioning_heat_map, or sigma_q10
            for the 10 % quantile of the singular values.
        batch_mode: Batch mode of the spectra, batch or sample; by default batch where it was measured.
        steps: In conditioning_vs_speed, average over this many of the first measured steps; 1 is initialisation.
        speed_measure: Column of speed.parquet in conditioning_vs_speed; smaller values must mean faster.
        split: Split whose loss is shown.
        lr: Learning rate in figures of singular values, bounds and heat maps; by default the largest at which no run
            diverged.
        trial: Trial in heat maps, by default the average over all; in bounds_along_training by default the first.
        histogram_steps: In singular_value_histograms, average over this many of the first measured steps.
        bins: Number of bins of singular_value_histograms.
        range: Ends of these bins; by default those of the data, or 0 and 6, as in the paper, for paper-mnist.
        scale: Scale of these bins and of singular_value_ridges: linear, log, or auto, which is log where the values
            span orders of magnitude.
        ridge_steps: In singular_value_ridges, how many of the measured steps to show at most.
    """

    directory: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    only: tuple[str, ...] = ()
    map: str = "tail"
    layer: str | None = None
    measure: str = "condition_number"
    batch_mode: str | None = None
    steps: int = 1
    speed_measure: str = "steps_to_threshold"
    split: str = "train"
    lr: float | None = None
    trial: int | None = None
    histogram_steps: int = 10
    bins: int = 32
    range: tuple[float, float] | None = None
    scale: str = "auto"
    ridge_steps: int = 6


def figure_makers(experiment: Experiment, options: Options) -> dict[str, Callable[[], Figure]]:
    """A function that draws it, for each name of a figure."""
    o = options

    def heat_map(measure: str) -> Figure:
        return conditioning_heat_map(
            experiment, measure=measure, lr=o.lr, trial=o.trial, split=o.split, map=o.map, batch_mode=o.batch_mode
        )

    return {
        "conditioning_vs_speed": lambda: conditioning_vs_speed(
            experiment, read_speed(o.directory), layer=o.layer, measure=o.measure, steps=o.steps,
            speed_measure=o.speed_measure, map=o.map, batch_mode=o.batch_mode,
        ),
        "loss_curves": lambda: loss_curves(experiment, split=o.split),
        "singular_value_histograms": lambda: singular_value_histograms(
            experiment, layer=o.layer, steps=o.histogram_steps, bins=o.bins, range=o.range,
            scale=o.scale, lr=o.lr, map=o.map, batch_mode=o.batch_mode,
        ),
        "singular_value_ridges": lambda: singular_value_ridges(
            experiment, layer=o.layer, steps=o.ridge_steps, scale=o.scale, lr=o.lr, map=o.map, batch_mode=o.batch_mode,
        ),
        "conditioning_heat_map": lambda: heat_map(o.measure),
        "mean_sigma_map": lambda: heat_map("sigma_mean"),
        "bounds_along_training": lambda: bounds_along_training(experiment, lr=o.lr, trial=o.trial),
        "random_matrices": random_matrices,
    }  # fmt: skip


def draw(options: Options) -> None:
    """Draw and write figures, and print their paths; why a figure is skipped goes to stderr.

    Raises:
        InputError: Bad input, or a figure named by ``only`` cannot be drawn.
    """
    experiment = in_listed_order(read_experiment(options.directory), options.directory)
    makers = figure_makers(experiment, options)
    check_measure(options.measure)
    check_option("map", options.map, MAPS)
    check_option("batch mode", options.batch_mode or BATCH_MODES[0], BATCH_MODES)
    check_option("scale", options.scale, SCALES)
    for name in options.only:
        check_option("figure", name, makers)
    out = options.out or options.directory / "figures"
    figures = {}
    # Bounds are logged on request only: without them nothing is said to be skipped.
    has_bounds = experiment.metrics["pl_ceiling"].notna().any()
    default = [name for name in makers if name != "bounds_along_training" or has_bounds]
    for name in options.only or default:
        try:
            figures[name] = makers[name]()
        except NothingToDrawError as reason:
            if options.only:
                raise
            print(f"skipped {name}: {reason}", file=sys.stderr)
    # After all are drawn, so that a bad option leaves nothing half-written.
    for name, figure in figures.items():
        for path in save(figure, out / name):
            print(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code, 2 for bad input."""
    try:
        draw(in_one_line(lambda: tyro.cli(Options, prog="skip-conditioning figures", args=arguments), arguments))
    except InputError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(with_plain_ends(main))
