"""Every measure of conditioning that speed might be predicted from: one logarithm per run and measure.

A measure is a statistic of a map's spectrum, at initialisation or averaged over a run's first steps. ``prediction``
ranks them; what a claim compares between arms is one of ``measures``.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.tables import Experiment

#: "Over the first steps" is up to this one.
LAST_STEP: Final = 10
#: What a smaller distance from an isometry is cut off at: rounding, of which no logarithm should be taken.
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
#: Statistics of the tangent kernel K, in words; of a smooth cost μ is proportional to λ_min(K), and the part of β that
#: needs no second derivatives of the network to λ_max(K) (PAPER.md, section 2.5).
OF_KERNELS: Final = {
    "sigma_min": "λ_min",
    "sigma_max": "λ_max",
    "condition_number": "β/μ = λ_max/λ_min",
    "rayleigh": "Rayleigh quotient",
    "effective_rank": "effective rank",
}


def features(tables: Experiment) -> pd.DataFrame:
    """Logarithms of all measures of conditioning.

    Args:
        tables: The experiment, its spectra with their values. Zeros and infinities have no logarithm and become NaN.

    Returns:
        One row per run (index ``run_id``), one column per measure, such as ``κ of the tail of stem, at
        initialisation``. Several layers of the map ``layer`` are averaged (geometrically).
    """
    spectra = tables.spectra.reset_index(drop=True)
    columns = dict(_columns(pd.concat([spectra, _isometry(spectra)], axis=1)))
    index = pd.Index(tables.runs["run_id"], name="run_id")
    return pd.DataFrame({name: column.reindex(index) for name, column in columns.items()}, index=index)


def _columns(spectra: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    place = spectra["layer"].where(spectra["map"] != "layer", "")
    for (map_name, layer), rows in spectra.groupby([spectra["map"], place], sort=False):
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

    The nearest isometry to J in the Frobenius norm differs from it by ``√Σ(σ_i − 1)²``; of the cosine see
    ``measures.isometry_cosine_log``.
    """
    means, rms = spectra["sigma_mean"].astype(float), spectra["sigma_rms"].astype(float)
    distance = np.sqrt((rms**2 - 2 * means + 1).clip(lower=_SMALLEST**2))
    return pd.DataFrame({"isometry_distance": distance, "isometry_cosine": means / rms})
