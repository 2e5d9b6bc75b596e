r"""Speed on the time axis: the steps that a run takes to each of five training losses.

The losses, or thresholds, are fixed before arms are compared, from pilot trials of one arm that are not compared: with
its loss ℓ falling from ℓ(0) to its least value, they lie at 20 to 90 % of this fall. A run reaches a threshold where
its loss, averaged geometrically over a centred window of steps, first falls to it; between two steps the loss is taken
to be linear. (A trailing window lags behind, by as many steps for a fast run as for a slow one, which shrinks every
ratio; so does an arithmetic mean, by the bend of the curve.)

The steps of a run to a threshold are an interval of logarithms: both ends are the same where it was reached, the last
step and infinity where the run ended before (it is right-censored), and infinity twice where the run diverged, as it
then counts as slower than any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.tables import Experiment

#: Shares of the fall of the base arm's loss at which the thresholds lie.
SHARES: Final = (0.2, 0.375, 0.55, 0.725, 0.9)
#: A smaller fall, relative to the loss at the start, is none.
_LEAST_FALL: Final = 0.05
#: Cross-entropy underflows to 0 on a learnt batch; its logarithm is taken of no less than this.
_SMALLEST_LOSS: Final = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Thresholds:
    """How the thresholds of an experiment are fixed.

    Attributes:
        base: The arm from whose pilot trials they are taken.
        pilots: Number of pilot trials, the first ones, which are not compared.
        shares: Of the fall of its loss.
        window: Steps over which losses are averaged, an odd number; 1 is right for full batches.
    """

    base: str
    pilots: int
    shares: tuple[float, ...] = SHARES
    window: int = 1

    def losses(self, tables: Experiment, lr: float | None) -> tuple[float, ...]:
        """The thresholds at a learning rate.

        Args:
            tables: The experiment, with its pilot trials.
            lr: Learning rate of the pilot runs; None if they have but one.

        Returns:
            As many losses as shares, the largest first; none where no pilot run learns. Runs that diverged are left
            out.
        """
        runs = tables.runs[(tables.runs["arm"] == self.base) & (tables.runs["trial"].astype(int) < self.pilots)]
        if lr is not None:
            runs = runs[np.isclose(runs["lr"].astype(float), lr, rtol=1e-9, atol=0)]
        curves = [curve for curve in training_losses(tables, runs).values() if is_finite(curve)]
        if not curves:
            return ()
        mean = pd.concat([smoothed(curve, self.window) for curve in curves], axis=1).mean(axis=1)
        start, least = float(mean.iloc[0]), float(mean.min())
        if not start - least > _LEAST_FALL * abs(start):
            return ()
        return tuple(start - share * (start - least) for share in self.shares)


def training_losses(tables: Experiment, runs: pd.DataFrame) -> dict[str, pd.Series]:
    """The training losses of runs by step, by ``run_id``; of several rows for one step the last counts."""
    metrics = tables.metrics
    rows = metrics[(metrics["split"] == "train") & metrics["run_id"].isin(runs["run_id"])]
    rows = rows.drop_duplicates(["run_id", "step"], keep="last").sort_values(["run_id", "step"], kind="stable")
    names, starts = np.unique(rows["run_id"].to_numpy(dtype=str), return_index=True)
    pieces = (np.split(rows[column].to_numpy(), starts[1:]) for column in ("step", "loss"))
    losses = (
        {
            str(name): pd.Series(values.astype(float), index=steps)
            for name, steps, values in zip(names, *pieces, strict=True)
        }
        if len(rows)
        else {}
    )
    nothing = pd.Series(dtype=float, index=pd.Index([], dtype=int))
    return {run_id: losses.get(run_id, nothing) for run_id in runs["run_id"].astype(str)}


def is_finite(losses: pd.Series) -> bool:
    """Whether a run has losses, none of them NaN or infinite."""
    return len(losses) > 0 and bool(np.isfinite(losses.to_numpy()).all())


def smoothed(losses: pd.Series, window: int) -> pd.Series:
    """Geometric mean of losses over a centred window, which narrows towards both ends of the run to stay centred."""
    if window == 1 or losses.empty:
        return losses
    places = np.arange(len(losses))
    reach = np.minimum(window // 2, np.minimum(places, places[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(np.log(losses.to_numpy().clip(min=_SMALLEST_LOSS)))])
    return pd.Series(np.exp((sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)), index=losses.index)


def log_steps(losses: pd.Series, thresholds: Sequence[float], *, window: int, diverged: bool) -> np.ndarray:
    """Logarithm of the steps of a run to each threshold.

    Args:
        losses: By step.
        thresholds: Losses to reach.
        window: Of the average.
        diverged: Whether the run's status says so.

    Returns:
        Lower and upper bounds, shape ``(2, thresholds)``: -inf where the loss was under the threshold before the first
        step; NaN without losses.
    """
    if diverged or (len(losses) and not is_finite(losses)):
        return np.full((2, len(thresholds)), np.inf)
    if losses.empty:
        return np.full((2, len(thresholds)), np.nan)
    curve = smoothed(losses, window)
    steps, values = curve.index.to_numpy(dtype=float), curve.to_numpy()
    bounds = np.empty((2, len(thresholds)))
    for position, threshold in enumerate(thresholds):
        first = int((values <= threshold).argmax())
        if values[first] > threshold:
            bounds[:, position] = np.log(steps[-1]) if steps[-1] > 0 else -np.inf, np.inf
        elif first == 0:
            bounds[:, position] = -np.inf
        else:
            share = (values[first - 1] - threshold) / (values[first - 1] - values[first])
            bounds[:, position] = np.log(steps[first - 1] + share * (steps[first] - steps[first - 1]))
    return bounds
