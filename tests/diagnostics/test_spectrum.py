"""Statistics of singular values, and their marks of trust."""

import dataclasses

import numpy as np
import pytest
import torch

from skip_conditioning.diagnostics.spectrum import Spectrum, jacobian_floor, statistics
from skip_conditioning.diagnostics.tables import SPECTRA, STATISTICS


def spectrum(values, floor=1e-12):
    values = np.array(values, dtype=float)
    return Spectrum.of_values(values, (3, 9), torch.float64, floor=floor, map="tail", layer="block1")


def test_statistics_by_hand():
    measured = spectrum([8.0, 4.0, 2.0, 2.0])
    assert (measured.sigma_max, measured.sigma_min, measured.sigma_mean, measured.sigma_median) == (8, 2, 4, 3)
    assert measured.sigma_gmean == pytest.approx(128**0.25)
    assert measured.sigma_rms == pytest.approx(np.sqrt(88 / 4))
    assert measured.condition_number == 4
    assert (measured.rank, measured.resolved) == (4, True)
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    assert measured.effective_rank == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))
    assert measured.stable_rank == pytest.approx(88 / 64)


def test_under_the_floor_smallest_values_are_bounds():
    measured = spectrum([1.0, 1e-3, 1e-9, 0.0], floor=1e-6)
    assert (measured.rank, measured.resolved) == (2, False)
    assert measured.sigma_min == 1e-6
    assert measured.condition_number == 1e6
    assert measured.sigma_gmean == pytest.approx((1e-3 * 1e-6 * 1e-6) ** 0.25)
    np.testing.assert_array_equal(measured.values, [1.0, 1e-3, 1e-9, 0.0])
    assert str(measured) == "tail block1: 3×9, σ from 1 down to ≤ 1e-06, mean 0.25, κ ≥ 1e+06 (exact: svd)"


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e308, 1e308], [1e-320, 0.0], [5.0], [1.0, 1e-300]])
def test_nothing_is_ever_nan_or_infinite(values):
    measured = statistics(np.array(values), jacobian_floor(float(values[0]), 2.2e-16))
    assert all(np.isfinite(value) for value in measured.values())
    assert measured["sigma_min"] > 0
    assert measured["condition_number"] >= 1


def test_row_has_the_columns_of_the_table():
    measured = spectrum([2.0, 1.0])
    row = measured.as_row()
    assert set(row) <= set(SPECTRA.names)
    assert set(STATISTICS) <= set(row)
    assert row["values"] == [2.0, 1.0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        measured.layer = "other"
