"""All measures of conditioning, ranked by how well they predict speed; and conditioning given confounders.

A measure is a statistic of a map's spectrum, at initialisation or averaged over a run's first steps. (The few that
claims compare between arms are ``run_measures.MEASURES``.) Nothing here decides.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.mechanism.design import MEDIATORS, Design
from skip_conditioning.experiments.claims.mechanism.learning_rates import at_rates, run_table
from skip_conditioning.experiments.claims.statistics.partial_correlation import partial_correlation
from skip_conditioning.experiments.claims.statistics.prediction import COLUMNS, rank_measures
from skip_conditioning.experiments.claims.verdict.claim import Finding, Verdict
from skip_conditioning.experiments.claims.verdict.formatting import p_value
from skip_conditioning.experiments.claims.verdict.run_measures import MEASURES, NAMES, mean_logs

#: The last of a run's first steps.
LAST_STEP: Final = 10
#: A smaller distance from an isometry is rounding, and counts as this one.
_SMALLEST = 1e-12
#: Number of measures in the report; the table has all.
_SHOWN = 5
#: Their numbers, in the order of the report.
_REPORTED = (
    "skill", "skill_low", "skill_high", "skill_seed_out", "p_corrected", "first_share", "behind", "behind_low",
    "behind_high", "slope",
)  # fmt: skip

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
    return pd.DataFrame(dict(_columns(tables)), index=pd.Index(tables.runs["run_id"], name="run_id"))


def _columns(tables: Experiment) -> Iterator[tuple[str, pd.Series]]:
    spectra = tables.spectra.reset_index(drop=True)
    spectra = pd.concat([spectra, _isometry(spectra)], axis=1)
    layers = spectra["layer"].where(spectra["map"] != "layer", "")
    for (map_name, layer), rows in spectra.groupby([spectra["map"], layers], sort=False):
        words = OF_KERNELS if map_name == "kernel" else OF_JACOBIANS
        windows = {
            "at initialisation": rows[rows["step"] == 0],
            "over the first steps": rows[rows["step"] <= LAST_STEP],
        }
        for statistic, word in words.items():
            for when, chosen in windows.items():
                logs = mean_logs(chosen[statistic], chosen["run_id"], tables)
                yield f"{word} of {_described(str(map_name), str(layer))}, {when}", logs


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


def rank_conditioning_measures(
    tables: Experiment, design: Design, rates: Mapping[str, float], seed: int
) -> pd.DataFrame:
    """All measures of conditioning by how well they predict the speed of arms left out.

    Args:
        tables: The experiment, without its pilot trials.
        design: Its measure of speed.
        rates: Learning rate of each arm.
        seed: Of bootstrap and permutations.

    Returns:
        The columns of ``prediction.rank_measures``; no rows if nothing can be predicted.
    """
    chosen = at_rates(tables, rates)
    index = pd.MultiIndex.from_arrays([chosen.runs["arm"], chosen.runs["trial"].astype(int)], names=["arm", "trial"])
    measures = conditioning_measures(chosen).reindex(chosen.runs["run_id"]).set_axis(index)
    speed = MEASURES[design.speed](chosen).reindex(chosen.runs["run_id"]).set_axis(index)
    try:
        return rank_measures(measures, speed, seed=seed)
    except InputError:  # all runs equally fast, say
        return pd.DataFrame(columns=["measure", *COLUMNS, "note"])


def ranking_findings(ranking: pd.DataFrame, level: float) -> list[Finding]:
    """The best measures as findings, supported if significantly better than none after the correction for all."""
    findings = []
    judged = ranking[ranking["skill"].notna()]
    for rank, row in enumerate(judged.head(_SHOWN).to_dict("records"), 1):
        findings.append(
            Finding(
                f"predicts speed across arms, rank {rank} of {len(judged)}: {row['measure']}",
                "supported" if row["p_corrected"] < level else "inconclusive",
                {name: float(row[name]) for name in _REPORTED},
                "skill is R² on arms left out, of a linear fit of ranks",
            )
        )
    return findings


def best_measure_sentence(ranking: pd.DataFrame) -> str:
    """The best measure in a sentence; empty if none was ranked."""
    judged = ranking[ranking["skill"].notna()]
    if judged.empty:
        return ""
    best = judged.iloc[0]
    return (
        f"Of {len(judged)} measures {best['measure']} predicts the speed of arms left out best (R² of ranks "
        f"{best['skill']:.2f}; p, corrected for all: {p_value(float(best['p_corrected']))}). "
    )


def partial_correlation_finding(tables: Experiment, design: Design, mediator: str, seed: int) -> Finding:
    """Correlation of conditioning and slowness over all runs, given learning rate, output scale and gradient norm.

    Args:
        tables: The experiment, without its pilot trials.
        design: Its arms and its measure of speed.
        mediator: The measure of conditioning.
        seed: Of the bootstrap.
    """
    rates = tables.runs["lr"].astype(float).unique()
    tables_at = [run_table(tables, design, mediator, dict.fromkeys(design.arms, lr)) for lr in rates]
    rows = pd.concat(tables_at, ignore_index=True)
    start = tables.metrics[(tables.metrics["split"] == "train") & (tables.metrics["step"] == 0)]
    norms = start.drop_duplicates("run_id", keep="last").set_index("run_id")["grad_norm"]
    columns: dict[str, Any] = {
        "learning rate": rows["lr"],
        "‖J‖_F": _initial(tables, "sigma_rms").reindex(rows["run_id"]).to_numpy(float),
        "gradient norm": norms.reindex(rows["run_id"]).to_numpy(float),
    }
    given = rows.assign(**columns)
    whole = given.dropna(subset=["mediator", *columns])
    sign = 1 if MEDIATORS[mediator] == "smaller" else -1
    what = (
        f"runs of worse {NAMES[mediator]} are slower, given {', '.join(columns)} (partial rank correlation, all runs)"
    )
    try:
        value, low, high = partial_correlation(
            whole.assign(mediator=sign * whole["mediator"]), "mediator", "speed", list(columns), seed=seed
        )
    except InputError as error:
        return Finding(what, "vacuous", {}, str(error))
    verdict: Verdict = "supported" if low > 0 else "contradicted" if high < 0 else "inconclusive"
    left_out = f"; {len(given) - len(whole)} runs without a measure left out" if len(whole) < len(given) else ""
    return Finding(
        what,
        verdict,
        {"partial_correlation": value, "partial_correlation_low": low, "partial_correlation_high": high},
        f"interval over trials, for these arms{left_out}",
    )


def _initial(tables: Experiment, statistic: str) -> pd.Series:
    spectra = tables.spectra
    rows = spectra[spectra["step"] == 0].drop_duplicates("run_id")  # each run's first measured map
    return pd.to_numeric(rows.set_index("run_id")[statistic], errors="coerce").astype(float)
