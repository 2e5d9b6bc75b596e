from pathlib import Path

import numpy as np
import pytest

from skip_conditioning.experiments.theory.experiment import CheckedStatement, TheoryOptions
from skip_conditioning.experiments.theory.random_matrices import check_random_matrices
from skip_conditioning.figures.random_matrices import random_matrix_spectra


@pytest.fixture(scope="module")
def checks() -> list[CheckedStatement]:
    return check_random_matrices(TheoryOptions(out=Path("unused"), quick=True, seed=5, data_dir=None))


def named(checks: list[CheckedStatement], name: str) -> list[CheckedStatement]:
    return [check for check in checks if check.statement.name == name]


def test_nothing_is_violated(checks: list[CheckedStatement]) -> None:
    assert {check.statement.verdict for check in checks} == {"holds", "vacuous"}


def test_the_bound_is_vacuous_for_the_matrix_of_the_figure(checks: list[CheckedStatement]) -> None:
    spectra = random_matrix_spectra(200, seed=5)
    bound = named(checks, "skip bound")[0].statement
    assert bound.verdict == "vacuous"
    assert f"‖A‖ = {spectra['A'][0]:.4g}" in bound.cause
    np.testing.assert_allclose([bound.left, bound.right], [spectra["I + A"][-1], 1 - spectra["A"][0]], rtol=1e-10)
    smallest = [check.statement.left for check in named(checks, "smallest singular value")]
    np.testing.assert_allclose(smallest, [spectra["I + A"][-1], spectra["A"][-1]], rtol=1e-10)


def test_the_picture_separates_the_two_matrices(checks: list[CheckedStatement]) -> None:
    shifted, plain = (check.statement for check in named(checks, "smallest singular value"))
    np.testing.assert_allclose([shifted.right, plain.right], [12**-0.5, 0], atol=1e-12)
    # Each would fail as a statement about the other matrix.
    assert abs(shifted.left - plain.right) > plain.error
    assert abs(plain.left - shifted.right) > shifted.error


def test_the_bound_holds_below_norm_one_and_is_attained(checks: list[CheckedStatement]) -> None:
    bounds = [check.statement for check in named(checks, "skip bound")[1:]]
    np.testing.assert_allclose([bound.right for bound in bounds], [0.75, 0.5, 0.1], rtol=1e-12)
    assert all(bound.verdict == "holds" and bound.slack > 0.05 for bound in bounds)
    attained = [check.statement for check in named(checks, "skip bound attained")]
    assert len(attained) == 3
    assert all(one.relation == "=" and one.verdict == "holds" and one.error < 1e-12 for one in attained)


def test_distances_fall_with_size(checks: list[CheckedStatement]) -> None:
    distances = named(checks, "distance from the limit law")
    assert [check.network for check in distances] == 2 * ["A 50×50", "A 100×100", "A 200×200"]
    for three in (distances[:3], distances[3:]):
        first, second, third = (check.statement for check in three)
        assert first.left > second.left > third.left
        assert "n^-0." in third.note or "n^-1." in third.note


def test_the_seed_decides(checks: list[CheckedStatement]) -> None:
    options = TheoryOptions(out=Path("unused"), quick=True, seed=5, data_dir=None)
    assert check_random_matrices(options) == checks
