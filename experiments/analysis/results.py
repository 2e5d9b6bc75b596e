"""What comes of an analysis: a table on disk, figures, and a printed summary."""

import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.tables import (
    RUN_COLUMNS,
    SCHEMAS,
    SPECTRA,
    Experiment,
    TableWriter,
    empty_frame,
    read_experiment,
    spectra_frame,
)
from skip_conditioning.experiments.analysis.targets import Target
from skip_conditioning.figures import (
    NothingToDrawError,
    conditioning_heat_map,
    save,
    singular_value_histograms,
    singular_value_ridges,
)

_LOG = logging.getLogger(__name__)


def write_spectra(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Write rows of spectra to ``out/spectra``, in place of those of an earlier analysis."""
    if (out / "spectra").exists():
        shutil.rmtree(out / "spectra")
    table = TableWriter(out / "spectra", SPECTRA)
    for row in rows:
        table.append(row)
    table.flush()


def analysed_tables(targets: Sequence[Target], rows: Sequence[dict[str, Any]]) -> Experiment:
    """The tables of the runs that the checkpoints belong to, with the spectra of the analysis.

    Args:
        targets: The checkpoints; of a foreign one only its name is known.
        rows: Of the spectra table.
    """
    directories = dict.fromkeys(target.directory for target in targets if not target.is_foreign)
    names = [{"run_id": target.run["run_id"]} for target in targets if target.is_foreign]
    foreign = Experiment(pd.DataFrame(names, columns=RUN_COLUMNS), *(empty_frame(name) for name in SCHEMAS))
    experiments = [read_experiment(directory) for directory in directories] or [foreign]
    joined = {
        field.name: pd.concat([getattr(experiment, field.name) for experiment in experiments], ignore_index=True)
        for field in dataclasses.fields(Experiment)
    }
    return Experiment(**joined | {"spectra": spectra_frame(rows)})


def draw_spectra(tables: Experiment, out: Path) -> list[Path]:
    """Draw the figures of each map into a folder and return their files; what has nothing to show is logged."""
    makers: dict[str, Callable[..., Figure]] = {
        "singular_value_histograms": singular_value_histograms,
        "singular_value_ridges": singular_value_ridges,
        "conditioning_heat_map": conditioning_heat_map,
        "mean_sigma_map": functools.partial(conditioning_heat_map, measure="sigma_mean"),
    }
    paths: list[Path] = []
    for name in tables.spectra["map"].unique():
        for figure, draw in makers.items():
            try:
                paths += save(draw(tables, map=name), out / f"{figure}_{name}")
            except NothingToDrawError as reason:
                _LOG.warning("skipped %s of %s: %s", figure, name, reason)
    return paths


def layer_step_table(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Layer × step: σ_max, σ_min, mean σ and κ, medians over trials and samples.

    ``±`` is the standard error of an estimate. ``≤`` marks a smallest singular value, and ``≥`` a condition number,
    that is only a bound in some of them.

    Args:
        frame: Spectra, columns of ``tables.SPECTRA``.
        runs: Columns ``run_id`` and, of experiments, ``arm`` and ``lr``.
    """
    groups = [name for name in ("lr", "arm") if name in runs and runs[name].notna().any()]
    keys = [*groups, "map", "layer", "step"]
    joined = frame.merge(runs[["run_id", *groups]], on="run_id")
    table = joined.groupby(keys, sort=False, dropna=False).agg(
        sigma_max=("sigma_max", "median"),
        sigma_min=("sigma_min", "median"),
        mean=("sigma_mean", "median"),
        error=("sigma_mean_se", "median"),
        kappa=("condition_number", "median"),
        resolved=("resolved", "all"),
        spectra=("resolved", "size"),
    )
    table = table.reset_index()
    bound = table.pop("resolved").map({True: ("", ""), False: ("≤", "≥")})
    table["sigma_min"] = [f"{mark}{value:.3g}" for (mark, _), value in zip(bound, table["sigma_min"], strict=True)]
    table["kappa"] = [f"{mark}{value:.3g}" for (_, mark), value in zip(bound, table["kappa"], strict=True)]
    for name in ("sigma_max", "mean"):
        table[name] = table[name].map("{:.3g}".format)
    errors = table.pop("error").map("{:.1g}".format)
    table["mean"] += [f" ±{error}" if error != "nan" else "" for error in errors]
    return table.rename(columns={"sigma_max": "σ max", "sigma_min": "σ min", "mean": "σ mean", "kappa": "κ"})
