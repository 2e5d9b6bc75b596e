"""Matrix-free spectra of networks against the exact ones, with their stated errors, budgets, tables and processes."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from skip_conditioning import JacobianOperator, SpectrumMonitor, lanczos_density, spectra
from skip_conditioning.diagnostics.errors import (
    InputError,
    LayerCallError,
    MemoryBudgetError,
    NonFiniteError,
    UnsupportedModelError,
)
from skip_conditioning.diagnostics.spectrum import statistics
from skip_conditioning.diagnostics.tables import SPECTRA, STATISTICS, TableWriter, read_experiment, spectra_frame
from skip_conditioning.figures import singular_value_ridges

REAL = torch.float64
MAPS = ("layer", "tail", "network", "param", "kernel")
SEEDS = range(4)
#: Statistics with a two-sided standard error; the ends of a spectrum are bounds.
ESTIMATED = tuple(name for name in STATISTICS if name not in ("sigma_max", "sigma_min", "condition_number"))


def perceptron():
    inner = (nn.Linear(20, 24), nn.BatchNorm1d(24), nn.Tanh())
    return nn.Sequential(nn.Linear(20, 20), nn.Sequential(*inner), nn.Linear(24, 20)), (4, 20)


def convolutions():
    block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    return nn.Sequential(nn.Conv2d(2, 3, 1), block, nn.Flatten(), nn.Linear(100, 40)), (2, 2, 5, 5)


def attention():
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    return nn.Sequential(nn.Linear(8, 8), block, nn.Flatten(), nn.Linear(40, 36)), (2, 5, 8)


NETWORKS = (perceptron, convolutions, attention)


def made(build, seed=0):
    """A network in float64 whose block ``1`` is measured, and its probe."""
    torch.manual_seed(seed)
    model, shape = build()
    return model.double(), torch.randn(shape, dtype=REAL)


def measured(model, x, method="lanczos", map="layer", **options):
    """The spectra of block ``1``, by name."""
    return spectra(model, x, map=map, layers=None if map == "network" else "1", method=method, **options)


def deviations(result, exact):
    """How many of its standard errors each statistic is off, on the same floor; 0 for what rounding explains."""
    true = statistics(exact.values, result.floor)
    off = {}
    for name in ESTIMATED:
        error, value = getattr(result, f"{name}_se"), getattr(result, name)
        rounding = 1e-8 * abs(true[name]) + (0.5 if name == "rank" else 0)
        excess = abs(value - true[name])
        off[name] = 0.0 if excess <= rounding else excess / error if error else math.inf
    return off


@pytest.mark.parametrize(("build", "batch_mode"), [(attention, "batch"), (perceptron, "sample")])
def test_exact_statistics_lie_within_the_stated_errors(build, batch_mode):
    model, x = made(build)
    x = x if batch_mode == "batch" else x[:1]
    off = {name: [] for name in ESTIMATED}
    for place, map in enumerate(MAPS):
        (exact,) = measured(model, x, "exact", map, batch_mode=batch_mode).values()
        for seed in SEEDS:  # others for each map: those of one size would have their start vectors in common
            (result,) = measured(model, x, map=map, batch_mode=batch_mode, seed=100 * place + seed).values()
            assert (result.rows, result.cols, result.sample) == (exact.rows, exact.cols, exact.sample)
            for name, value in deviations(result, exact).items():
                if name != "sigma_gmean" or exact.values[-1] > result.floor:  # a test of its own
                    off[name].append(value)
    for name, values in off.items():
        assert max(values, default=0) <= 4, name
    assert np.mean(np.concatenate(list(off.values())) <= 1.96) >= 0.9


def test_the_errors_are_not_so_wide_that_they_say_nothing():
    model, x = made(perceptron)
    for map in MAPS:
        (exact,) = measured(model, x, "exact", map).values()
        (result,) = measured(model, x, map=map).values()
        for name in ("sigma_mean", "sigma_rms", "stable_rank"):
            assert getattr(result, f"{name}_se") <= 0.4 * getattr(exact, name), (map, name)
            assert getattr(result, f"{name}_se") > 0


def test_the_geometric_mean_of_a_map_with_a_few_zeros_is_covered():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(160, 160, bias=False)).double()
    with torch.no_grad():
        model[0].weight[:16] = 0
    x = torch.randn(1, 160, dtype=REAL)
    exact = spectra(model, x, map="network", method="exact")["network"]
    assert exact.rank == 144
    result = [spectra(model, x, map="network", method="lanczos", seed=seed)["network"] for seed in range(30)]
    covered = [deviations(one, exact)["sigma_gmean"] <= 1.96 for one in result]
    assert np.mean(covered) >= 0.85


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("build", NETWORKS)
def test_the_ends_are_bounds_and_say_so(build, map):
    model, x = made(build)
    if map == "kernel":
        model.eval()  # the engines' dropout masks differ where a tensor's memory is in another order
    (exact,) = measured(model, x, "exact", map).values()
    for seed in SEEDS[:1]:
        (result,) = measured(model, x, map=map, seed=seed).values()
        rounding = 1e-9 * exact.sigma_max
        assert result.resolved is False
        assert result.sigma_min >= max(exact.values[-1], result.floor) - rounding
        assert result.condition_number <= max(exact.sigma_max / max(exact.values[-1], result.floor), 1) * (1 + 1e-6)
        assert result.sigma_max <= exact.sigma_max + rounding
        assert np.abs(exact.values - result.sigma_max).min() <= result.sigma_max_se + rounding
        assert result.sigma_max == pytest.approx(exact.sigma_max, rel=0.02)
        assert "κ ≥" in str(result)
        assert "≤" in str(result)


@pytest.mark.parametrize("map", MAPS)
def test_it_holds_a_density_and_no_values(map):
    model, x = made(convolutions)
    (result,) = measured(model, x, map=map).values()
    assert len(result.values) == 0
    assert result.nodes.shape == result.weights.shape
    assert np.all(np.diff(result.nodes) <= 0)
    assert result.weights.min() >= 0
    assert result.weights.sum() == pytest.approx(1, abs=1e-12)
    assert result.nodes[0] == pytest.approx(result.sigma_max, rel=1e-12)
    assert result.weights @ result.nodes**2 == pytest.approx(result.sigma_rms**2, rel=1e-10)
    assert result.method.startswith("lanczos: ")
    assert result.dtype == "float64"
    for name in STATISTICS:
        assert math.isfinite(getattr(result, name))
        assert getattr(result, f"{name}_se") >= 0


def test_a_small_map_comes_out_exactly():
    model, x = made(perceptron)
    exact = measured(model, x[:1].expand(1, -1), "exact", "tail", batch_mode="sample")["1[0]"]
    result = measured(model, x[:1], map="tail", batch_mode="sample")["1[0]"]
    np.testing.assert_allclose(result.nodes, exact.values, rtol=1e-9)
    for name in ESTIMATED:
        assert getattr(result, name) == pytest.approx(getattr(exact, name), rel=1e-8)
        assert getattr(result, f"{name}_se") == 0


@pytest.mark.parametrize(("tolerance", "maps"), [(0.1, MAPS), (0.02, ("tail",))])
def test_a_tolerance_is_met_or_the_note_says_it_is_not(tolerance, maps):
    model, x = made(perceptron)
    for map in maps:
        (exact,) = measured(model, x, "exact", map).values()
        (result,) = measured(model, x, map=map, tolerance=tolerance).values()
        met = result.sigma_mean_se <= tolerance * result.sigma_mean
        assert met != (f"tolerance {tolerance:g} not reached" in result.note)
        assert abs(result.sigma_mean - exact.sigma_mean) <= 4 * result.sigma_mean_se + 1e-9


def test_a_tolerance_out_of_reach_of_the_budget_is_said_beside_the_choice():
    model, x = made(attention)
    result = measured(model, x, "auto", tolerance=1e-4, memory_budget=8 * 80 * 8)["1"]
    choice, limit = result.note.split("; ")
    assert choice == "auto: an exact spectrum does not fit the memory budget"
    assert limit.startswith("tolerance 0.0001 not reached: relative standard error ")
    assert float(limit.split()[-1]) == pytest.approx(result.sigma_mean_se / result.sigma_mean, rel=0.05)


@pytest.mark.parametrize("steps", [8, 12, 20])
def test_the_steps_fit_the_budget(steps):
    model, x = made(attention)  # 80×80, 8 bytes each
    result = measured(model, x, memory_budget=steps * 80 * 8 + 100)["1"]
    assert result.method == f"lanczos: 2 random vectors × {steps} steps"
    assert result.peak_bytes <= steps * 80 * 8 + 100


@pytest.mark.parametrize("map", MAPS)
def test_a_budget_too_small_names_the_layer_and_what_is_needed(map):
    model, x = made(convolutions)
    layer = "network" if map == "network" else "1"
    with pytest.raises(MemoryBudgetError, match=f"the {map} map of '{layer}' is .*: its matrix-free spectrum needs"):
        measured(model, x, map=map, memory_budget=400)


def test_the_same_seed_gives_the_same_bits_and_another_others():
    model, x = made(attention)
    one, same, other = (dataclasses.asdict(measured(model, x, seed=seed)["1"]) for seed in (3, 3, 4))
    for row in (one, same, other):
        del row["seconds"]
    for name, value in one.items():
        assert np.array_equal(value, same[name]), name
    assert not np.array_equal(one["nodes"], other["nodes"])
    assert one["sigma_mean"] != other["sigma_mean"]


def test_scaling_a_map_scales_its_spectrum():
    model, x = made(perceptron)
    before = measured(model, x, map="tail")["1"]
    with torch.no_grad():
        model[2].weight.mul_(4)
    after = measured(model, x, map="tail")["1"]
    for name in ("sigma_max", "sigma_mean", "sigma_mean_se", "sigma_gmean", "sigma_median", "sigma_rms"):
        assert getattr(after, name) == pytest.approx(4 * getattr(before, name), rel=1e-9), name
    assert after.effective_rank == pytest.approx(before.effective_rank, rel=1e-9)


def test_rows_fit_the_table_and_come_back(tmp_path):
    model, x = made(convolutions)
    writer = TableWriter(tmp_path / "spectra", SPECTRA)
    result = [one for map in MAPS for one in measured(model, x, map=map, batch_mode="sample").values()]
    rows = [{"run_id": "a", "step": 0, **one.as_row()} for one in result]
    for row in rows:
        assert set(row) == set(SPECTRA.names)
        writer.append(row)
    writer.flush()
    table = pd.read_parquet(tmp_path / "spectra")
    assert table["values"].isna().all()
    for one, row in zip(result, table.to_dict("records"), strict=True):
        assert np.array_equal(row["nodes"], one.nodes)
        assert np.array_equal(row["weights"], one.weights)
        assert all(row[name] == getattr(one, name) for name in STATISTICS)
        assert all(row[f"{name}_se"] == getattr(one, f"{name}_se") for name in STATISTICS)
        assert (row["resolved"], row["method"], row["sample"]) == (False, one.method, one.sample)
    assert list(spectra_frame(rows)["sigma_mean"]) == [one.sigma_mean for one in result]


@pytest.mark.parametrize(
    ("name", "batch_mode"),
    [
        *((name, "batch") for name in ("in-place-residual", "changes-its-input", "parametrised", "python-random")),
        *((name, "sample") for name in ("changes-its-input", "dropout")),
    ],
)
def test_measuring_changes_nothing(name, batch_mode, make, nothing_changes):
    model, x = make(name)
    model(x.clone()).square().mean().backward()
    with nothing_changes(model, x):
        for map in MAPS:
            spectra(model, x, map=map, batch_mode=batch_mode, method="lanczos", tolerance=0.5)


def test_the_monitor_writes_densities_that_can_be_drawn(tmp_path):
    model, x = made(convolutions)
    with SpectrumMonitor(model, x, tmp_path / "run", maps=["layer"], layers="1", schedule=1, method="lanczos",
                         max_overhead=None) as monitor:  # fmt: skip
        for step in range(3):
            assert list(monitor.step(step, loss=1.0)) == ["1"]
            with torch.no_grad():
                model[1][0].weight.mul_(1.5)
    tables = read_experiment(tmp_path / "run")
    assert tables.spectra["values"].isna().all()
    assert list(tables.spectra["step"]) == [0, 1, 2]
    figure = singular_value_ridges(tables, map="layer")
    drawn = [line.get_gid() for line in figure.axes[0].get_lines() if line.get_gid()]
    assert len(drawn) == 3
    assert "quadrature nodes" in figure.get_supxlabel()


class Root(nn.Module):
    """Its derivative at 0 is infinite."""

    def forward(self, x):
        return x.abs().sqrt()


class Rounds(nn.Module):
    """Returns integers."""

    def forward(self, x):
        return x.round().long()


def test_a_derivative_that_is_not_finite_is_named():
    model = nn.Sequential(nn.Linear(20, 20, bias=False), Root()).double()
    with pytest.raises(NonFiniteError, match="a product with the layer map of '1' holds NaN or infinite values"):
        measured(model, torch.zeros(3, 20, dtype=REAL))


def test_a_monitor_skips_a_derivative_that_is_not_finite(tmp_path):
    model = nn.Sequential(nn.Linear(20, 20), Root()).double()
    options = {"maps": "layer", "layers": "1", "schedule": 1, "method": "lanczos", "max_overhead": None}
    with SpectrumMonitor(model, torch.ones(3, 20, dtype=REAL), tmp_path, **options) as monitor:
        assert list(monitor.step(0)) == ["1"]
        nn.init.zeros_(model[0].weight), nn.init.zeros_(model[0].bias)
        assert monitor.step(1) == {}
    tables = read_experiment(tmp_path)
    assert list(tables.spectra["step"]) == [0]
    assert list(tables.skipped["step"]) == [1]
    assert "layer map of '1' holds NaN" in tables.skipped["reason"].item()


@pytest.mark.parametrize("method", ["lanczos", "auto"])
def test_a_map_with_integer_values_names_the_layer(method):
    model = nn.Sequential(nn.Linear(20, 20), Rounds()).double()
    with pytest.raises(InputError, match="'1'"):
        measured(model, torch.ones(3, 20, dtype=REAL), method)


def test_a_layer_called_twice_needs_its_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(20, 20)

        def forward(self, x):
            return self.cell(self.cell(x).tanh())

    model, x = Twice().double(), torch.ones(2, 20, dtype=REAL)
    with pytest.raises(LayerCallError, match="'cell#1' to 'cell#2'"):
        spectra(model, x, layers="cell", method="lanczos")
    assert list(spectra(model, x, layers="cell#2", method="lanczos")) == ["cell#2"]


class Cuts(nn.Module):
    """An operator of one's own that has no derivative at all."""

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

    def forward(self, x):
        return self.Cut.apply(x)


def test_an_operator_without_a_derivative_names_the_layer():
    model = nn.Sequential(nn.Linear(20, 20), Cuts()).double()
    with pytest.raises(UnsupportedModelError, match="the layer map of '1' cannot be differentiated"):
        measured(model, torch.ones(3, 20, dtype=REAL))


def test_a_map_that_vanishes_is_zero_throughout():
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)).double()
    nn.init.zeros_(model[1].weight)
    (result,) = measured(model, torch.ones(2, 40, dtype=REAL)).values()
    assert (result.sigma_max, result.sigma_mean, result.sigma_rms, result.rank, result.effective_rank) == (
        0,
        0,
        0,
        0,
        0,
    )
    assert result.condition_number == 1
    assert 0 < result.sigma_min == result.floor
    assert np.isfinite(result.weights).all()


def test_a_kernel_with_more_rows_than_parameters_has_their_rank():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 8)).double()
    x = torch.randn(10, 3, dtype=REAL)
    exact = spectra(model, x, map="kernel", layers="0", method="exact")["0"]
    assert (exact.rows, exact.rank) == (80, 8)
    off = []
    for seed in range(10):
        result = spectra(model, x, map="kernel", layers="0", method="lanczos", seed=seed)["0"]
        assert (result.rows, result.cols) == (80, 80)
        assert result.sigma_min == result.floor
        assert result.sigma_max == pytest.approx(exact.sigma_max, rel=1e-9)
        off += deviations(result, exact).values()
    assert max(off) <= 4.5
    assert np.mean(np.array(off) <= 1.96) >= 0.9


def test_the_bar_shows_steps(capsys):
    model, x = made(attention)
    measured(model, x, progress=True)
    assert "layer 1" in capsys.readouterr().err
    measured(model, x)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused_and_float32_offered(dtype, tmp_path):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype), torch.randn(3, 4).to(dtype)
    with pytest.raises(InputError, match=r"the layer map of '0' is computed in .*float16, too coarse .* dtype=torch.f"):
        spectra(model, x, map="layer", layers="0", method="lanczos", dtype=dtype)
    with pytest.raises(InputError, match="too coarse"):
        SpectrumMonitor(model, x, tmp_path / "run", maps="layer", layers="0", method="lanczos", dtype=dtype)
    with pytest.raises(InputError, match="too coarse"):
        lanczos_density(JacobianOperator(model, x, map="layer", layer="0", dtype=dtype))
    result = spectra(model, x, map="layer", layers="0", method="lanczos")["0"]
    exact = spectra(model, x, map="layer", layers="0", method="exact", dtype=torch.float32)["0"]
    assert abs(result.sigma_mean - exact.sigma_mean) < 0.5 * exact.sigma_mean
