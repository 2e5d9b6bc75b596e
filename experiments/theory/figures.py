"""The figures of the experiments on the theory, from the tables that these wrote."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pandas as pd
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.figures.bounds_along_training import bounds_along_training
from skip_conditioning.figures.convergence_at_infinity import convergence_at_infinity
from skip_conditioning.figures.curvature_growth import curvature_growth
from skip_conditioning.figures.drawing.errors import NothingToDrawError
from skip_conditioning.figures.random_matrices import random_matrices
from skip_conditioning.figures.regularity_terms import regularity_terms

#: By the name of an experiment that has one: its figure's name, and what draws it from ``Setting.out``.
FIGURES: Final[Mapping[str, tuple[str, Callable[[Path], Figure]]]] = {
    "pl": ("bounds_along_training", lambda out: bounds_along_training(read_experiment(out / "pl"))),
    "curvature": (
        "curvature_growth",
        lambda out: curvature_growth(_read(out / "curvature_growth"), _read(out / "curvature_growth_fits")),
    ),
    "convergence": (
        "convergence_at_infinity",
        lambda out: convergence_at_infinity(_read(out / "convergence"), _read(out / "convergence_fits")),
    ),
    "random-matrices": ("random_matrices", lambda out: random_matrices()),
    "regularity": ("regularity_terms", lambda out: regularity_terms(_read(out / "regularity"))),
}


def _read(stem: Path) -> pd.DataFrame:
    path = stem.with_suffix(".parquet")
    if not path.exists():
        raise NothingToDrawError(f"{path} is missing")
    return pd.read_parquet(path)
