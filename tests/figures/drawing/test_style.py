import matplotlib
import pytest

from skip_conditioning.figures import random_matrices
from skip_conditioning.figures.drawing.style import (
    arm_styles,
    fitted,
    map_label,
    measure_label,
    number,
    percentage,
    with_error,
)


def test_an_arm_looks_the_same_whatever_the_others() -> None:
    together = arm_styles(["modified", "original", "my-arm", "residual", "chain"])
    for arm in ("chain", "original", "residual", "modified"):
        assert arm_styles([arm])[arm] == together[arm]


def test_arms_keep_the_order_in_which_they_come() -> None:
    ladder = ["chain", "gain-0.25", "gain-0.5", "residual", "gain-2"]
    styles = arm_styles([*ladder, "chain", "gain-2"])
    assert list(styles) == ladder
    assert len({style.colour for style in styles.values()}) == 5


def test_many_arms_stay_apart() -> None:
    styles = arm_styles(["residual", *(f"arm{k}" for k in range(19))])
    assert len(set(map(str, styles.values()))) == 20


def test_drawing_leaves_the_users_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    random_matrices(size=10)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.001, "0.001"), (20000, "20000"), (1e5, "$10^{5}$"), (2e-4, r"$2\times10^{-4}$")],
)
def test_tick_labels(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.2345, 0.0195, "1.23 ±0.02"),
        (1.2345, 0.0995, "1.2 ±0.1"),
        (345.6, 20, "346 ±20"),
        (1.2e-4, 3e-6, "0.00012 ±2.5 %"),
        (0.5, 0.6, "0.5 ±120 %"),
    ],
)
def test_estimates_show_as_many_digits_as_are_known(value: float, error: float, text: str) -> None:
    assert with_error(value, error) == text


def test_percentages() -> None:
    assert [percentage(share) for share in (0.00123, 0.0996, 0.125, 1)] == ["0.12 %", "10 %", "12 %", "100 %"]


def test_labels_name_what_was_measured() -> None:
    assert measure_label("sigma_q05", "tail") == "5 % quantile singular value"
    assert measure_label("sigma_max", "kernel") == "largest eigenvalue"
    assert map_label("tail", "stem") == "∂logits/∂stem"
    assert fitted("a", "b", ", ") == "a, b"
    assert fitted("a" * 60, "b" * 60, ", ") == "a" * 60 + "\n" + "b" * 60
