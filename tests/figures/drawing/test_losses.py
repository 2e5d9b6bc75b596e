import numpy as np
import pandas as pd
import pytest

from skip_conditioning.figures.drawing.losses import mean_curve, windowed


def test_mean_and_band_are_those_of_the_log_loss() -> None:
    losses = pd.DataFrame({"run_id": ["a", "b"] * 2, "step": [0, 0, 1, 1], "loss": [1.0, 4.0, 0.01, 100.0]})
    curve = mean_curve(losses)
    deviation = np.std(np.log([1, 4]), ddof=1)
    np.testing.assert_allclose(curve.loc[0], [2, 2 * np.exp(-deviation), 2 * np.exp(deviation)])
    assert (curve["low"] > 0).all()  # an arithmetic mean − std would be negative at step 1


def test_one_trial_has_a_curve_and_no_band() -> None:
    curve = mean_curve(pd.DataFrame({"run_id": "a", "step": [0, 1], "loss": [1.0, 0.0]}))
    assert curve["mean"].tolist() == pytest.approx([1, 1e-12])
    assert curve["low"].isna().all()


@pytest.mark.parametrize("log_steps", [False, True])
def test_long_curves_are_averaged_over_windows(log_steps: bool) -> None:
    steps = np.arange(20_000)
    losses = pd.DataFrame({"run_id": "a", "step": steps, "loss": np.exp(-steps / 5000)})
    curve, widest = windowed(losses, log_steps=log_steps)
    assert 100 < len(curve) <= 251
    assert widest >= 80
    np.testing.assert_allclose(curve["loss"], np.exp(-curve["step"] / 5000), rtol=1e-9)
