"""All measures of conditioning, a column each: what is averaged, and over what."""

import numpy as np
import pandas as pd
import pytest
import torch

from skip_conditioning.diagnostics.spectrum import Spectrum
from skip_conditioning.diagnostics.tables import Experiment, empty_frame, spectra_frame
from skip_conditioning.experiments.claims.mechanism.measure_ranking import conditioning_measures


def row(run, step, map_name, layer, values, rayleigh=None):
    spectrum = Spectrum.of_values(np.array(values), (3, 3), torch.float64, floor=1e-12, map=map_name, layer=layer)
    return {"run_id": run, "step": step, **spectrum.as_row(), "rayleigh": rayleigh}


def tables(*rows):
    runs = pd.DataFrame({"run_id": ["a", "b"]})
    return Experiment(runs, empty_frame("metrics"), spectra_frame(rows), empty_frame("skipped"))


def test_steps_are_averaged_geometrically_and_late_ones_left_out():
    steps = {0: 8.0, 5: 2.0, 11: 1000.0}
    logs = conditioning_measures(tables(*(row("a", step, "tail", "stem", [k, 1.0, 1.0]) for step, k in steps.items())))
    assert logs.loc["a", "κ of the tail of stem, at initialisation"] == pytest.approx(np.log(8))
    assert logs.loc["a", "κ of the tail of stem, over the first steps"] == pytest.approx(np.log(4))
    assert logs.loc["b"].isna().all()


def test_blocks_are_averaged_and_tails_are_not():
    logs = conditioning_measures(
        tables(
            row("a", 0, "layer", "blocks.0", [2.0, 1.0, 1.0]), row("a", 0, "layer", "blocks.1", [8.0, 1.0, 1.0]),
            row("a", 0, "tail", "blocks.0", [2.0, 1.0, 1.0]), row("a", 0, "tail", "blocks.1", [8.0, 1.0, 1.0]),
        )
    ).loc["a"]  # fmt: skip
    assert logs["κ of the blocks, at initialisation"] == pytest.approx(np.log(4))
    assert logs["κ of the tail of blocks.0, at initialisation"] == pytest.approx(np.log(2))
    assert logs["κ of the tail of blocks.1, at initialisation"] == pytest.approx(np.log(8))


def test_the_distance_from_an_isometry_is_that_of_the_singular_values_from_1():
    values = np.array([3.0, 2.0, 0.5])
    logs = conditioning_measures(tables(row("a", 0, "network", "network", values))).loc["a"]
    distance = np.sqrt(np.mean((values - 1) ** 2))
    assert logs["distance from isometry of the network, at initialisation"] == pytest.approx(np.log(distance))


def test_the_kernel_has_its_own_measures():
    logs = conditioning_measures(tables(row("a", 0, "kernel", "total", [9.0, 3.0, 1.0], rayleigh=2.0))).loc["a"]
    assert logs["λ_min of the tangent kernel, at initialisation"] == pytest.approx(0)
    assert logs["β/μ = λ_max/λ_min of the tangent kernel, at initialisation"] == pytest.approx(np.log(9))
    assert logs["Rayleigh quotient of the tangent kernel, at initialisation"] == pytest.approx(np.log(2))
    assert not any("mean σ" in name for name in logs.index)


def test_a_map_that_vanishes_has_no_logarithm():
    logs = conditioning_measures(
        tables(row("a", 0, "tail", "stem", [0.0, 0.0, 0.0]), row("b", 0, "tail", "stem", [1.0] * 3))
    )
    assert logs["mean σ of the tail of stem, at initialisation"].isna().tolist() == [True, False]
