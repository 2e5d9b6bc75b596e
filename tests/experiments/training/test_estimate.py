"""What an experiment will take, against what it took."""

import time
from pathlib import Path

import pytest
import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.monitor import Measurement
from skip_conditioning.diagnostics.monitoring.schedule import every
from skip_conditioning.experiments.data.batches import EvaluationBatches
from skip_conditioning.experiments.train import main, parse
from skip_conditioning.experiments.training.estimate import estimate, in_words
from skip_conditioning.experiments.training.timing import time_evaluation
from skip_conditioning.experiments.training.trainer import Trainer


def size(directory, pattern):
    return sum(path.stat().st_size for path in directory.rglob(pattern))


def test_time_and_sizes_are_those_of_the_real_runs(nets, tmp_path):
    """A demo of one run: hours within the promised factor, checkpoints exactly, tables roughly."""
    args = ["demo", "--arms", "residual", "--lr", "0.1", "--trials", "1", "--device", "cpu", "--out", "out"]
    needs = estimate(parse(args))
    started = time.perf_counter()
    assert main(args) == 0
    took = time.perf_counter() - started
    assert (needs.runs, needs.steps, needs.on_gpu) == (1, 60, False)
    # Wider than the promise: other tests may run beside this one.
    assert took / 2.5 < sum(needs.seconds.values()) < 2.5 * took
    assert needs.checkpoint_bytes == pytest.approx(
        size(tmp_path / "out" / "runs", "checkpoints/*.safetensors"), rel=1e-3
    )
    tables = sum(size(tmp_path / "out" / "runs", f"{name}/*.parquet") for name in ("metrics", "spectra", "skipped"))
    assert tables / 1.5 < needs.table_bytes < 1.5 * tables
    assert needs.peak_bytes > 2**26


@pytest.mark.parametrize("options", [(), ("--keep-epochs", "3", "--checkpoints", "4")])
def test_checkpoints_take_what_was_said_at_the_end_and_at_their_most(train, small, monkeypatch, options):
    options = (*small, "--steps", "15", "--momentum", "0.9", "--trials", "2", *options)
    needs = estimate(parse([*options, "--out", "o"]))
    most, drop_older = [], Trainer.drop_older

    def watched(trainer, step):
        most.append(size(trainer.directory.parent, "checkpoints/*.safetensors"))
        drop_older(trainer, step)

    monkeypatch.setattr(Trainer, "drop_older", watched)
    assert main([*options, "--out", "o"]) == 0
    left = size(Path("o/runs"), "checkpoints/*.safetensors")
    assert (needs.checkpoint_bytes, needs.checkpoint_bytes_peak) == pytest.approx((left, max(most)), rel=1e-3)


def test_each_arm_and_repetition_counts(nets, small):
    one = parse([*small, "--out", "o", "--momentum", "0.9"])
    needs, more = estimate(one), estimate(one.changed(arms=("plain", "shrunk"), trials=3, lr=(0.1, 1e30)))
    assert (needs.runs, more.runs) == (1, 12)
    for name in ("checkpoint_bytes", "table_bytes"):
        assert getattr(more, name) == pytest.approx(12 * getattr(needs, name), rel=0.1)
    state = needs.checkpoint_bytes_peak - needs.checkpoint_bytes
    assert more.checkpoint_bytes_peak - more.checkpoint_bytes == state > 0


def test_several_processes_are_refused(nets, small, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"--estimate .*without torchrun"):
        estimate(parse([*small, "--out", "o"]))


def test_too_little_memory_is_one_line_with_advice(nets, small, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr("skip_conditioning.experiments.training.estimate.time_steps", fail)
    with pytest.raises(InputError, match=r"out of memory; give a smaller --batch-size"):
        estimate(parse([*small, "--out", "o"]))


class _Streamed(EvaluationBatches):
    """Counts the batches that are taken of ten, of which the last is smaller."""

    def __init__(self, workers):
        self.workers, self.taken, self.now = workers, 0, 0.0

    def __len__(self):
        return 93

    def __iter__(self):
        for size in (*[10] * 9, 3):
            self.taken += 1
            self.now += 0.02
            yield torch.zeros(size, 1, 28, 28), torch.zeros(size, dtype=torch.int64)


@pytest.mark.parametrize(("workers", "taken"), [(0, 2), (1, 3), (8, 10)])
def test_an_evaluation_is_timed_without_taking_all_images(nets, monkeypatch, workers, taken):
    class Evaluator:
        test, device = _Streamed(workers), torch.device("cpu")

        def evaluate(self, step):
            list(self.test)

    evaluator = Evaluator()
    test = evaluator.test
    monkeypatch.setattr(time, "perf_counter", lambda: test.now)
    assert time_evaluation(evaluator) == pytest.approx(0.02 * 9.3, rel=0.5)
    assert (evaluator.test, test.taken) == (test, taken)


def test_what_is_not_due_takes_nothing(nets, small):
    config = parse([*small, "--out", "o", "--no-diagnostics"])
    needs = estimate(config.changed(evaluate_epochs=None))
    assert (needs.seconds["diagnostics"], needs.seconds["evaluation"]) == (0, 0)
    assert estimate(config).seconds["evaluation"] > 0
    assert estimate(config.changed(bounds=True)).seconds["diagnostics"] > 0


def test_diagnostics_are_counted_as_scheduled_and_bounded_by_their_share(nets, small):
    config = parse([*small, "--out", "o", "--steps", "300", "--layers", "1"])
    often, seldom = (config.changed(measurements=(Measurement("tail", schedule=every(k)),)) for k in (1, 100))
    of_many, of_few = estimate(often), estimate(seldom)
    assert of_many.seconds["diagnostics"] > 15 * of_few.seconds["diagnostics"]
    assert of_many.table_bytes > of_few.table_bytes
    bounded = estimate(often.changed(max_overhead=0.01))
    assert bounded.table_bytes < of_many.table_bytes
    others = bounded.seconds["training"] + bounded.seconds["evaluation"] + bounded.seconds["checkpoints"]
    assert bounded.seconds["diagnostics"] == pytest.approx(0.01 * others)


def test_a_measurement_that_is_too_long_is_forecast_and_said_to_be(nets, small, monkeypatch):
    monkeypatch.setattr("skip_conditioning.experiments.training.timing.forecast", lambda *_, **__: 100.0)
    needs = estimate(parse([*small, "--out", "o"]))
    assert (needs.forecast, needs.seconds["diagnostics"]) == (("tail",), 700)
    printed = in_words(needs)
    assert "Not timed but forecast, and not in the memory and the tables: measuring tail" in printed
    assert printed.splitlines()[1].split()[0] == "diagnostics"


def test_a_very_short_run(nets, small):
    needs = estimate(parse([*small, "--out", "o", "--steps", "1"]))
    assert (needs.steps, needs.timed) == (1, 20)
    assert needs.seconds["training"] == pytest.approx(2 * needs.step_seconds)
