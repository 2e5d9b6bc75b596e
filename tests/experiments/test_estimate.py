"""What an experiment will take, against what it took."""

import time
from dataclasses import replace

import pytest

from diagnostics.monitor import Measurement
from diagnostics.schedule import every
from experiments.estimate import estimate, print_estimate
from experiments.train import main, parse


def size(directory, pattern):
    return sum(path.stat().st_size for path in directory.rglob(pattern))


def test_time_and_sizes_are_those_of_the_real_run(nets, small, tmp_path):
    """A demo with fewer runs: hours within the promised factor, checkpoints to the byte, tables roughly."""
    args = ["demo", "--arms", "chain", "residual", "--lr", "0.1", "--trials", "2", "--device", "cpu", "--out", "out"]
    found = estimate(parse(args))
    started = time.perf_counter()
    assert main(args) == 0
    took = time.perf_counter() - started
    assert (found.runs, found.steps, found.on_gpu) == (4, 60, False)
    # Wider than the promise: other tests may run beside this one.
    assert took / 2.5 < 3600 * found.hours < 2.5 * took
    assert found.checkpoint_bytes == size(tmp_path / "out" / "runs", "checkpoints/*.safetensors")
    tables = sum(size(tmp_path / "out" / "runs", f"{name}/*.parquet") for name in ("metrics", "spectra", "skipped"))
    assert tables / 1.5 < found.table_bytes < 1.5 * tables
    assert found.peak_bytes > 2**26


def test_each_arm_and_repetition_counts(nets, small):
    one = parse([*small, "--out", "o", "--momentum", "0.9"])
    found, more = estimate(one), estimate(replace(one, arms=("plain", "shrunk"), trials=3, lr=(0.1, 1e30)))
    assert (found.runs, more.runs) == (1, 12)
    for name in ("checkpoint_bytes", "table_bytes"):
        assert getattr(more, name) == pytest.approx(12 * getattr(found, name), rel=0.1)
    state = found.checkpoint_bytes_peak - found.checkpoint_bytes
    assert more.checkpoint_bytes_peak - more.checkpoint_bytes == state > 0
    assert sum(more.seconds.values()) == pytest.approx(3600 * more.hours)
    assert list(more.seconds.values()) == sorted(more.seconds.values(), reverse=True)


def test_what_is_not_due_takes_nothing(nets, small):
    config = parse([*small, "--out", "o", "--no-diagnostics"])
    found = estimate(replace(config, evaluate_epochs=None))
    assert (found.diagnostics_seconds, found.evaluation_seconds) == (0, 0)
    assert estimate(config).evaluation_seconds > 0
    assert estimate(replace(config, bounds=True)).diagnostics_seconds > 0


def test_diagnostics_are_counted_as_scheduled_and_bounded_by_their_share(nets, small):
    config = parse([*small, "--out", "o", "--steps", "300", "--layers", "1"])
    often, seldom = (replace(config, measurements=(Measurement("tail", schedule=every(k)),)) for k in (1, 100))
    often_found, seldom_found = estimate(often), estimate(seldom)
    assert often_found.diagnostics_seconds > 15 * seldom_found.diagnostics_seconds
    assert often_found.table_bytes > seldom_found.table_bytes
    bounded = estimate(replace(often, max_overhead=0.01))
    others = bounded.training_seconds + bounded.evaluation_seconds + bounded.checkpoint_seconds
    assert bounded.diagnostics_seconds == pytest.approx(0.01 * others)


def test_a_measurement_that_is_too_long_is_forecast_and_said_to_be(nets, small, monkeypatch, capsys):
    monkeypatch.setattr("experiments.estimate.forecast", lambda *_, **__: 100.0)
    found = estimate(parse([*small, "--out", "o"]))
    assert (found.forecast, found.diagnostics_seconds) == (("tail",), 700)
    print_estimate(found)
    printed = capsys.readouterr().out
    assert "Not timed but forecast, and not in the memory: measuring tail" in printed
    assert printed.splitlines()[1].split()[0] == "diagnostics"


@pytest.mark.parametrize("steps", ["1", "2", "3"])
def test_very_short_runs(nets, small, steps):
    assert estimate(parse([*small, "--out", "o", "--steps", steps])).hours > 0
