"""What verdicts are made from: the tables of the experiments that were run for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diagnostics.tables import Experiment


@dataclass(frozen=True)
class Evidence:
    """Tables by the names that a claim's plans have, and where whatever else a claim computes may be kept.

    Attributes:
        experiments: The tables of each experiment.
        directory: A folder of the claim's own, for figures and for results that are no experiments of
            ``experiments.train``.
        seed: Of whatever is drawn, such as bootstrap samples.
        data_dir: Folder of the data sets, for what a claim measures itself; None where only bundled digits are there.
    """

    experiments: Mapping[str, Experiment]
    directory: Path
    seed: int = 0
    data_dir: Path | None = None
