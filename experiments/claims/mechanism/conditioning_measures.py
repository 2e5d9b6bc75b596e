"""All measures of conditioning from which speed might be predicted: one logarithm per run and measure.

A measure is a statistic of a map's spectrum, at initialisation or averaged over a run's first steps.
``statistics.prediction`` ranks them. (The few that claims compare between arms are ``run_measures.MEASURES``.)
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.tables import Experiment

#: The last of a run's first steps.
LAST_STEP: Final = 10
#: A smaller distance from an isometry is rounding, and counts as this one.
_SMALLEST = 1e-12

#: Statistics of Jacobians, in words.
OF_JACOBIANS: Final = {
    "sigma_mean": "mean σ",
    "sigma_gmean": "geometric mean σ",
    "sigma_min": "σ_min",
    "condition_number": "κ",
    "sigma_rms": "‖J‖_F",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "isometry_distance": "distance from isometry",
    "isometry_cosine": "nearness to a multiple of an isometry",
}
#: Statistics of the tangent kernel K, in words. Of a smooth cost, μ is proportional to λ_min(K), and the part of β
#: without second derivatives of the network to λ_max(K) (docs/paper.md §2.5).
OF_KERNELS: Final = {
    "sigma_min": "λ_min",
    "sigma_max": "λ_max",
    "condition_number": "β/μ = λ_max/λ_min",
    "rayleigh": "Rayleigh quotient",
    "effective_rank": "effective rank",
}


def conditioning_measures(tables: Experiment) -> pd.DataFrame:
    """Logarithms of all measures of conditioning.

    Args:
        tables: The experiment.

    Returns:
        One row per run (index ``run_id``), one column per measure, such as ``κ of the tail of stem, at
        initialisation``; NaN where it was not measured, is 0 or infinite. Of the map ``layer`` it is the geometric mean
        over layers.
    """
    spectra = tables.spectra.reset_index(drop=True)
    columns = dict(_columns(pd.concat([spectra, _isometry(spectra)], axis=1)))
    index = pd.Index(tables.runs["run_id"], name="run_id")
    return pd.DataFrame({name: column.reindex(index) for name, column in columns.items()}, index=index)


def _columns(spectra: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    layers = spectra["layer"].where(spectra["map"] != "layer", "")
    for (map_name, layer), rows in spectra.groupby([spectra["map"], layers], sort=False):
        words = OF_KERNELS if map_name == "kernel" else OF_JACOBIANS
        windows = {
            "at initialisation": rows[rows["step"] == 0],
            "over the first steps": rows[rows["step"] <= LAST_STEP],
        }
        for statistic, word in words.items():
            for when, chosen in windows.items():
                values = pd.to_numeric(chosen[statistic], errors="coerce").astype(float)
                usable = values.where((values > 0) & np.isfinite(values))
                means = pd.Series(np.log(usable), index=usable.index).groupby(chosen["run_id"]).mean()
                yield f"{word} of {_described(str(map_name), str(layer))}, {when}", means


def _described(map_name: str, layer: str) -> str:
    return {
        "layer": "the blocks",
        "tail": f"the tail of {layer}",
        "network": "the network",
        "kernel": "the tangent kernel",
        "param": f"the parameters of {layer}",
    }[map_name]


def _isometry(spectra: pd.DataFrame) -> pd.DataFrame:
    """Root mean square distance of the singular values from 1, and the cosine of J and its nearest isometry.

    The nearest isometry to J in the Frobenius norm differs from it by ``√Σ(σ_i − 1)²``; for the cosine see
    ``run_measures.isometry_cosine_log``.
    """
    means, rms = spectra["sigma_mean"].astype(float), spectra["sigma_rms"].astype(float)
    distance = np.sqrt((rms**2 - 2 * means + 1).clip(lower=_SMALLEST**2))
    return pd.DataFrame({"isometry_distance": distance, "isometry_cosine": means / rms})
