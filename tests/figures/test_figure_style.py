import matplotlib
import pytest

from figures import random_matrices
from figures.style import arm_styles, fitted, map_label, measure_label, number


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


def test_labels_name_what_was_measured() -> None:
    assert measure_label("sigma_q05", "tail") == "5 % quantile singular value"
    assert measure_label("sigma_max", "kernel") == "largest eigenvalue"
    assert map_label("tail", "stem") == "∂logits/∂stem"
    assert fitted("a", "b", ", ") == "a, b"
    assert fitted("a" * 60, "b" * 60, ", ") == "a" * 60 + "\n" + "b" * 60
