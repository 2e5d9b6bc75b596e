"""What came of an experiment, on one screen: conditioning and speed per arm and learning rate, and where things are."""

from pathlib import Path

import pandas as pd

from diagnostics.tables import read_experiment


def summary_table(directory: Path) -> pd.DataFrame:
    """One row per learning rate and arm, medians over trials.

    Columns: ``runs``; ``diverged`` and ``never reached`` (the loss threshold) among them; ``steps to loss ≤ …``
    (of a run that never got there, all its steps: a lower bound); ``final loss``; and of the first spectrum
    measured of the first layer: ``κ at start`` (``≥`` where some σ_min is not resolved), ``σ mean at start``.
    """
    tables = read_experiment(directory)
    speed = pd.read_parquet(directory / "speed.parquet")
    frame = tables.runs.merge(speed.drop(columns="loss_threshold"), on="run_id")
    frame = frame.merge(_first_spectra(tables.spectra), on="run_id", how="left")
    rows = []
    for (lr, arm), group in frame.groupby(["lr", "arm"], sort=False):
        row = {
            "lr": f"{lr:g}",
            "arm": arm,
            "runs": len(group),
            "diverged": int(group["diverged"].sum()),
            "never reached": int((group["censored"] & ~group["diverged"]).sum()),
            f"steps to loss ≤ {group['loss_threshold'].iloc[0]:g}": f"{group['steps_to_threshold'].median():g}",
            "final loss": f"{group['final_loss'].median():.3g}",
        }
        measured = group.dropna(subset="condition_number")
        if len(measured):
            bound = "" if measured["resolved"].all() else "≥"
            row |= {
                "κ at start": f"{bound}{measured['condition_number'].median():.3g}",
                "σ mean at start": f"{measured['sigma_mean'].median():.3g}",
            }
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["lr", "arm"], key=lambda column: column.map(_order(frame)), kind="stable")


def print_summary(directory: Path) -> None:
    """Print the table and where everything is."""
    tables = read_experiment(directory)
    print(f"\n{summary_table(directory).to_string(index=False)}\n")
    if "diagnostics_share" in tables.runs and len(tables.spectra):
        share = tables.runs["diagnostics_share"].median()
        print(f"diagnostics took {share:.1%} of the training time (median run)")
    if len(tables.skipped):
        print(f"{len(tables.skipped)} scheduled measurements were skipped; why: the tables in runs/*/skipped")
    print(f"tables and checkpoints: {directory / 'runs'}, speed: {directory / 'speed.parquet'}")


def _first_spectra(spectra: pd.DataFrame) -> pd.DataFrame:
    """The first spectrum of each run, of the layer listed first when several were measured at once."""
    return spectra.sort_values("step", kind="stable").drop_duplicates("run_id")[
        ["run_id", "map", "layer", "condition_number", "sigma_mean", "resolved"]
    ]


def _order(frame: pd.DataFrame) -> dict[str, int]:
    """Learning rates by size, arms as they were listed."""
    rates = [f"{lr:g}" for lr in sorted(frame["lr"].unique())]
    return {name: index for index, name in enumerate([*rates, *frame["arm"].unique()])}
