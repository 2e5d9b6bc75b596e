"""The growth of the curvature: fits of known laws, and the quick run."""

import math

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.experiments.theory import curvature_growth
from skip_conditioning.experiments.theory.curvature_growth import check_curvature, fitted, power_law
from skip_conditioning.experiments.theory.experiment import TheoryOptions

R = np.logspace(0, 3, 10)


def test_a_power_law_is_found_exactly():
    fit = power_law(R, 3 * R**-2.5)
    assert fit.exponent == pytest.approx(-2.5, rel=1e-12)
    assert fit.error < 1e-12


def test_only_the_upper_half_counts():
    assert power_law(R, np.where(R < 40, 1e6, R)).exponent == pytest.approx(1)


def test_its_error_is_that_of_ordinary_least_squares():
    import statsmodels.api as sm

    norms = R * np.exp(np.random.default_rng(0).normal(size=len(R)))
    fit = power_law(R, norms)
    peer = sm.OLS(np.log(norms[5:]), sm.add_constant(np.log(R[5:]))).fit()
    assert (fit.exponent, fit.error) == pytest.approx((peer.params[1], peer.bse[1]), rel=1e-9)


def test_norms_that_vanish_are_left_out_and_too_few_say_nothing():
    assert power_law(R, [*R[:-1] ** 2, 0.0]).exponent == pytest.approx(2)
    assert math.isnan(power_law(R, [*R[:-3], 0.0, 0.0, 0.0]).exponent)


def test_norms_that_are_rounding_are_left_out_and_counted():
    names = {"network": "n", "normaliser": "none", "activation": "tanh", "cost": "mean square", "scaled": "all"}
    table = pd.DataFrame(
        {**names, "r": R, "norm": [*R[:-1] ** 2, 1e-150], "effective_norm": R, "invariant": "", "converged": R < 900}
    )
    fit = fitted(table).iloc[0]
    assert (fit["exponent"], fit["effective_exponent"]) == pytest.approx((2, 1))
    assert (fit["unresolved"], fit["norm_min"]) == (1, 1)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("curvature")
    return out, check_curvature(TheoryOptions(out, quick=True, seed=0, data_dir=None))


def test_the_tables_hold_every_curve(quick):
    out, _ = quick
    table = pd.read_parquet(out / "curvature_growth.parquet")
    fits = pd.read_parquet(out / "curvature_growth_fits.parquet")
    assert len(table) == 3 * 1 * 2 * 3 * 5
    assert len(fits) == 3 * 1 * 2 * 3
    resolved = table[table["converged"]]
    assert len(resolved) >= 0.9 * len(table)
    assert (resolved["residual"] <= 1e-5 * resolved["norm"]).all()
    assert fits["unresolved"].sum() == len(table) - len(resolved)
    pd.testing.assert_frame_equal(fitted(table), fits)


def test_scale_invariant_weights_are_found_and_their_effective_norm_is_flat(quick):
    fits = pd.read_parquet(quick[0] / "curvature_growth_fits.parquet").set_index("normaliser")
    assert (fits.loc["batch", "invariant"] == "hidden layers").all()
    assert fits.loc["weight", "invariant"].str.startswith("stem.1.weight, blocks.0.branch.weight").all()
    assert (fits.loc["none", "invariant"] == "").all()
    hidden = fits[(fits["scaled"] == "hidden weights") & (fits.index != "none")]
    # By Euler's theorem, up to the ε of the normaliser; no claim of the theory.
    assert (hidden["effective_norm_max"] <= 1.2 * hidden["effective_norm_min"]).all()


def test_every_claim_is_checked(quick):
    _, checks = quick
    names = pd.Series([check.statement.name for check in checks]).value_counts()
    scaled = ("all parameters", "hidden weights")
    assert names.to_dict() == {
        "curvature": 6,
        **{f"{kind}curvature bounded in {what}": 4 for kind in ("", "effective ") for what in scaled},
        **{f"curvature grows in {what}": 2 for what in scaled},
        "curvature grows in last layer": 6,
    }
    assert all(check.statement.is_claim == (check.statement.name != "curvature") for check in checks)
    assert all(check.statement.verdict == "holds" for check in checks if check.statement.name == "curvature")
    grows = [f"curvature grows in {what}" for what in scaled]
    assert {check.network for check in checks if check.statement.name in grows} == {
        "residual-mlp 16×2, no norm, tanh, cross-entropy", "residual-mlp 16×2, no norm, tanh, mean square"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("exponent", "error", "verdict"),
    [
        (0.0, 0.001, "holds"),
        (2.0, 0.001, "violated"),
        (0.3, 0.4, "vacuous"),
        (3.0, 0.4, "violated"),
        (math.nan, 0.1, "vacuous"),
    ],
)
def test_an_exponent_that_is_hardly_known_says_nothing(exponent, error, verdict):
    fit = {
        "network": "net", "normaliser": "weight", "activation": "relu", "cost": "mean square",
        "scaled": "all parameters", "exponent": exponent, "exponent_error": error, "invariant": "",
        "r_low": 1.0, "r_high": 10.0, "norm_min": 1.0, "norm_max": 2.0, "unresolved": 0,
    }  # fmt: skip
    (check,) = curvature_growth._growth_checks(fit)
    assert check.statement.verdict == verdict
