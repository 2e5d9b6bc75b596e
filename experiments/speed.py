"""How fast each run trained: ``skip-conditioning speed DIR`` prints the table and writes ``DIR/speed.parquet``.

In every measure less is faster. A run that diverged counts as slower than all others and stays in the table: its
measures that would be infinite are NaN, ``diverged`` says why, and ``speed_rank`` puts it last. Rank statistics
should use ``speed_rank``, which every run has.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tyro

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import read_experiment, write_parquet
from skip_conditioning.experiments.config.command_line import parse_options, run_command

SPEED = "speed.parquet"
AT_STEPS = (2, 5, 10, 20)
_COLUMNS = (
    *("loss_threshold", "steps_to_threshold", "censored", "diverged", "auc_log_loss"),
    *(f"loss_at_step_{step}" for step in AT_STEPS),
    "final_loss",
)
# Cross-entropy underflows to 0 on a learnt batch; its logarithm is taken of no less than this.
_SMALLEST_LOSS = float(np.finfo(np.float32).tiny)


def speed_table(
    runs: pd.DataFrame,
    metrics: pd.DataFrame,
    *,
    loss_threshold: float | None = None,
    loss_window: int | None = None,
) -> pd.DataFrame:
    r"""Speed measures of all runs, from their training losses.

    A run has *diverged* when its status says so or one of its training losses is NaN or infinite. Else it is
    *censored* when its loss never came down to the threshold while it ran.

    Args:
        runs: The runs table, columns ``run_id`` and ``status`` at least.
        metrics: The metrics table, columns ``run_id, step, split, loss`` at least; rows of split ``train`` count,
            and of several rows for one step (a resumed run) the last.
        loss_threshold: Loss to reach; by default each run's own, from the column ``loss_threshold`` of ``runs``, and
            for runs without one the lowest loss that every run reached which did not diverge.
        loss_window: Number of last logged steps over which every loss below is averaged, but not that in the area; by
            default each run's own number, from the column ``loss_window`` of ``runs``, or 1 without that column. 1,
            the loss itself, is right for full-batch runs; mini-batch losses need more, or noise reaches the threshold.

    Returns:
        One row per run, in the order of ``runs``:

        - ``run_id``, ``loss_threshold``, ``censored``, ``diverged``;
        - ``steps_to_threshold``: first step with a loss at or below the threshold. For censored and diverged
          runs, both marked ``censored``, the steps run, which the answer exceeds; 0 if nothing was logged;
        - ``auc_log_loss``: area under :math:`\log(\text{loss})` over steps (trapezia), divided by the steps it
          spans: the mean log-loss, comparable between runs of equal length. NaN if diverged or nothing logged;
        - ``loss_at_step_k`` for each k of ``AT_STEPS``: NaN if step k was not logged, or not before the run diverged;
        - ``final_loss``: NaN if diverged or nothing logged;
        - ``speed_rank``: 1 is the fastest. By steps to the threshold, then all censored, then all diverged runs;
          equals share their mean rank.

    Raises:
        InputError: A run has no threshold and none has a loss, or the threshold or the window given is out of range.
    """
    windows = _windows(runs, loss_window)
    train = metrics[metrics["split"] == "train"].drop_duplicates(["run_id", "step"], keep="last")
    losses = {str(run_id): rows.set_index("step")["loss"].sort_index() for run_id, rows in train.groupby("run_id")}
    nothing = pd.Series(dtype=float, index=pd.Index([], dtype=int))
    smoothed = [
        _running_mean(losses.get(run_id, nothing), window)
        for run_id, window in zip(runs["run_id"].astype(str), windows, strict=True)
    ]
    thresholds = _thresholds(runs, loss_threshold, smoothed)
    rows = [
        _run_speed(losses.get(run_id, nothing), threshold, status == "diverged", window)
        for run_id, status, threshold, window in zip(
            runs["run_id"].astype(str), runs["status"], thresholds, windows, strict=True
        )
    ]
    table = pd.DataFrame(rows, columns=_COLUMNS)
    table.insert(0, "run_id", runs["run_id"].to_numpy())
    return table.assign(speed_rank=_speed_rank(table))


def _thresholds(runs: pd.DataFrame, loss_threshold: float | None, losses: Iterable[pd.Series]) -> np.ndarray:
    """The loss that each run has to reach; ``losses`` are those of the runs, averaged as they are to be compared."""
    if loss_threshold is not None:
        if not np.isfinite(loss_threshold):
            raise InputError(f"the loss threshold is {loss_threshold}; it must be a finite number")
        return np.full(len(runs), float(loss_threshold))
    thresholds = _numbers(runs, "loss_threshold")
    if thresholds.isna().any():
        reached = [series.min() for series in losses if len(series) and np.isfinite(series).all()]
        if not reached:
            run_id = runs.loc[thresholds.isna(), "run_id"].iloc[0]
            raise InputError(f"run {run_id!r} was configured without a loss_threshold; give --loss-threshold")
        thresholds = thresholds.fillna(max(reached))
    return thresholds.to_numpy()


def _windows(runs: pd.DataFrame, loss_window: int | None) -> list[int]:
    """Number of logged steps over which the losses of each run are averaged."""
    if loss_window is not None and loss_window < 1:
        raise InputError(f"the loss window is {loss_window}; it must be at least 1")
    configured = _numbers(runs, "loss_window").fillna(1).astype(int)
    return configured.tolist() if loss_window is None else [loss_window] * len(runs)


def _numbers(runs: pd.DataFrame, column: str) -> pd.Series:
    missing = pd.Series(np.nan, index=runs.index)
    return pd.to_numeric(runs.get(column, missing), errors="coerce").astype(float)


def _run_speed(losses: pd.Series, threshold: float, status_diverged: bool, loss_window: int) -> dict[str, Any]:
    """Measures of one run from its losses, indexed by step."""
    bad = ~np.isfinite(losses.to_numpy(dtype=float))
    diverged = bool(status_diverged or bad.any())
    finite = losses[: int(bad.argmax())] if bad.any() else losses
    smoothed = _running_mean(finite, loss_window)
    below = smoothed.index[smoothed <= threshold]
    reached = not diverged and len(below) > 0
    measured = not diverged and len(losses) > 0
    return {
        "loss_threshold": threshold,
        "steps_to_threshold": int(below[0]) if reached else int(losses.index.max()) if len(losses) else 0,
        "censored": not reached,
        "diverged": diverged,
        "auc_log_loss": _mean_log_loss(finite) if measured else np.nan,
        **{f"loss_at_step_{step}": float(smoothed.get(step, np.nan)) for step in AT_STEPS},
        "final_loss": float(finite.iloc[-loss_window:].mean()) if measured else np.nan,
    }


def _running_mean(losses: pd.Series, loss_window: int) -> pd.Series:
    """Mean of the last ``loss_window`` losses, from the first step with so many."""
    if len(losses) < loss_window:
        return losses.iloc[:0]
    # Not pandas' rolling sum, which drags the rounding errors of huge early losses along.
    means = np.lib.stride_tricks.sliding_window_view(losses.to_numpy(dtype=float), loss_window).mean(axis=-1)
    return pd.Series(means, index=losses.index[loss_window - 1 :])


def _mean_log_loss(losses: pd.Series) -> float:
    steps = losses.index.to_numpy(dtype=float)
    log_losses = np.log(losses.to_numpy(dtype=float).clip(min=_SMALLEST_LOSS))
    if len(losses) == 1:
        return float(log_losses[0])
    return float(np.trapezoid(log_losses, steps) / (steps[-1] - steps[0]))


def _speed_rank(table: pd.DataFrame) -> pd.Series:
    slowness = table["steps_to_threshold"].astype(float).mask(table["censored"], np.inf)
    beyond = slowness[np.isfinite(slowness)].max() if np.isfinite(slowness).any() else 0.0
    return slowness.mask(table["censored"], beyond + 1).mask(table["diverged"], beyond + 2).rank(method="average")


def write_speed(
    directory: Path, *, loss_threshold: float | None = None, loss_window: int | None = None
) -> pd.DataFrame:
    """Write the speed table of an experiment, or of one run, to its ``speed.parquet``.

    Args:
        directory: An experiment or a run.
        loss_threshold: As for :func:`speed_table`.
        loss_window: As for :func:`speed_table`.

    Returns:
        The table, as :func:`speed_table` returns it.

    Raises:
        InputError: The tables cannot be read, are not what they should be, or cannot be written.
    """
    tables = read_experiment(directory)
    table = speed_table(tables.runs, tables.metrics, loss_threshold=loss_threshold, loss_window=loss_window)
    write_parquet(pa.Table.from_pandas(table, preserve_index=False), directory / SPEED)
    return table


@dataclass(frozen=True)
class Options:
    """Print how fast each run trained, fastest first, and write DIR/speed.parquet."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """An experiment, a folder of runs, or one run."""

    loss_threshold: float | None = None
    """Training loss to reach; None for the one that each run was configured with, or the lowest that all reached."""

    loss_window: int | None = None
    """Number of logged steps over which the loss is averaged; None for the one that each run was configured with."""


def print_speed(options: Options) -> None:
    """Write the speed table and print it, fastest run first."""
    table = write_speed(options.directory, loss_threshold=options.loss_threshold, loss_window=options.loss_window)
    print(table.sort_values("speed_rank", kind="stable").to_string(index=False, float_format="{:.4g}".format))
    print(f"written to {options.directory / SPEED}")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 for bad input."""
    return run_command(print_speed, lambda: parse_options(Options, "skip-conditioning speed", args))


if __name__ == "__main__":
    sys.exit(main())
