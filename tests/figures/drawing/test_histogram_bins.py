import numpy as np
import pytest
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.figures.drawing.singular_values import Bins, SingularValues


def values(*numbers: float, floor: float = 1e-6) -> SingularValues:
    return SingularValues(np.array(numbers), np.full(len(numbers), floor), np.ones(len(numbers)))


def labels(bins: Bins) -> list[str]:
    axis = Figure().subplots()
    bins.axis.apply(axis)
    low, high = axis.get_xlim()
    ticks = zip(axis.get_xticks(), axis.xaxis.get_major_formatter().seq, strict=True)
    return [label for tick, label in sorted(ticks) if low <= tick <= high]


@pytest.mark.parametrize(
    ("arms", "log"),
    [
        ([values(*np.linspace(0.02, 1, 101))], False),
        ([values(*np.geomspace(1e-3, 1, 101))], True),
        # The arms together span decades, though neither does alone.
        ([values(*np.linspace(1, 2, 101)), values(*np.linspace(1000, 2000, 101))], True),
        # Values under the floor say nothing about the spread.
        ([values(*np.geomspace(1e-9, 1e-7, 50), *np.linspace(1, 2, 50))], False),
        ([values(0.0, 0.0)], False),
    ],
)
def test_the_spread_of_resolved_values_chooses_the_scale(arms: list[SingularValues], log: bool) -> None:
    assert Bins.of(arms, 8).log == log


def test_a_quadrant_law_spectrum_stays_linear() -> None:
    matrix = np.random.default_rng(0).standard_normal((200, 200))
    assert not Bins.of([values(*np.linalg.svd(matrix, compute_uv=False))], 32).log


def test_logarithmic_bins_hold_every_value() -> None:
    arm = values(*np.geomspace(1e-4, 100, 500), 0.0, 1e-7)
    bins = Bins.of([arm], 32)
    counts, under = bins.count(arm)
    assert (counts.sum(), under) == (500, 2)
    np.testing.assert_allclose(np.diff(np.log10(bins.edges)), 6 / 32)


def test_each_value_has_the_floor_of_its_own_spectrum() -> None:
    arm = SingularValues(np.array([1e-3, 1e-3, 1.0, 1e3]), np.array([1e-2, 1e-4, 1e-2, 1e-2]), np.ones(4))
    counts, under = Bins.of([arm], 3).count(arm)
    assert (counts.tolist(), under) == ([1, 1, 1], 1)


def test_a_node_counts_for_the_values_it_stands_for() -> None:
    arm = SingularValues(np.array([10.0, 1.0, 1e-3, 0.0]), np.full(4, 1e-6), np.array([5.0, 100.0, 0.5, 20.0]))
    counts, under = Bins.of([arm], 2, (1e-3, 100), "log").count(arm)
    assert (counts.tolist(), under) == ([0.5, 105.0], 20.0)
    # The one node that spans decades stands for too few values to ask for a logarithmic axis.
    assert not Bins.of([arm], 2).log


def test_place_under_the_floor_is_marked_only_where_needed() -> None:
    whole = values(*np.geomspace(1e-3, 10, 100))
    cut = values(*np.geomspace(1e-3, 10, 100), 0.0)
    assert labels(Bins.of([whole], 8)) == ["0.001", "0.01", "0.1", "1", "10"]
    assert labels(Bins.of([whole, cut], 8)) == ["under\nfloor", "0.01", "0.1", "1", "10"]
    columns = Bins.of([whole, cut], 8).axis.columns(2)
    assert columns[0] < columns[1] < columns[2] < 1e-3


@pytest.mark.parametrize(
    ("arm", "range"), [(values(1.0, 100.0), (0.0, 6.0)), (values(0.0), None)], ids=["range reaches 0", "all under"]
)
def test_impossible_logarithm_names_the_remedy(arm: SingularValues, range: tuple[float, float] | None) -> None:
    with pytest.raises(InputError, match="--scale linear"):
        Bins.of([arm], 8, range, "log")
    assert not Bins.of([arm], 8, range).log
