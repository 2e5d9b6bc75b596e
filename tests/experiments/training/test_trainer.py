"""One run, step by step, against the same training written out with plain autograd."""

import json
from itertools import pairwise

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from skip_conditioning.diagnostics.monitoring.monitor import Measurement, SpectrumMonitor
from skip_conditioning.diagnostics.monitoring.schedule import every
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.config.presets import preset
from skip_conditioning.experiments.data.batches import Batches, BatchOrder, HeldImages, Pixels
from skip_conditioning.experiments.data.datasets import Split
from skip_conditioning.experiments.records.checkpoints import list_checkpoints
from skip_conditioning.experiments.records.tensor_files import read_checkpoint
from skip_conditioning.experiments.training.trainer import Trainer, unit_divisor

PIXELS = Pixels((0.4,), (0.3,))


def network(*inner, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), *inner, nn.ReLU(), nn.Linear(8, 3))


def split(n, seed):
    chosen = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 1, 4, 4), dtype=torch.uint8, generator=chosen)
    return Split(images, torch.randint(3, (n,), generator=chosen))


def trainer(directory, model, *, n=12, steps=6, lr=0.2, bounds=False, **options):
    """A run of 3 batches of 4 images an epoch."""
    config = preset("demo", out=directory, **{"batch_size": 4, "checkpoints": None, **options})
    train, test = split(n, 1), split(7, 2)
    batches = Batches(train, PIXELS, BatchOrder(n, config.optimisation.batch_size, 3, config.data.augment))
    probe = (torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 2]))
    maps = [Measurement("tail", "1", schedule=every(1))]
    options = {"maps": maps, "schedule": 1, "max_overhead": None, "bounds": bounds}
    monitor = SpectrumMonitor(model, probe, directory, resume=True, **options)
    return Trainer(config, model, batches, HeldImages(test, PIXELS), monitor, directory, lr, steps)


def run(directory, model, **options):
    """Train and return the status, and the metrics by split."""
    status = trainer(directory, model, **options).run(lambda *_: None)
    metrics = read_experiment(directory).metrics
    return status, {name: rows.set_index("step") for name, rows in metrics.groupby("split")}


def by_hand(model, batches, steps, lr_at, momentum=0.0, weight_decay=0.0, unit=False):
    """Losses before every update and after the last one, of SGD written out, of gradients of length 1 if wished."""
    losses, velocity = [], [torch.zeros_like(p) for p in model.parameters()]
    for step in range(steps + 1):
        images, labels = batches.at(step)
        loss = cross_entropy(model(images), labels)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, [*model.parameters()])
        if unit:
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            gradients = [g / norm for g in gradients]
        with torch.no_grad():
            for p, g, v in zip(model.parameters(), gradients, velocity, strict=True):
                v.mul_(momentum).add_(g + weight_decay * p)
                p -= lr_at(step) * v
    return losses


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.01)])
def test_is_plain_sgd(tmp_path, momentum, weight_decay):
    model, twin = network(nn.BatchNorm1d(8)), network(nn.BatchNorm1d(8))
    made = trainer(tmp_path / "a", model, momentum=momentum, weight_decay=weight_decay)
    expected = by_hand(twin, made.batches, 6, lambda _: 0.2, momentum, weight_decay)
    status, metrics = run(tmp_path / "b", model, momentum=momentum, weight_decay=weight_decay)
    assert status == "finished"
    assert metrics["train"]["loss"].tolist() == pytest.approx(expected, rel=1e-5)
    assert metrics["train"].index.tolist() == list(range(7))


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.01)])
def test_steps_of_fixed_length_are_sgd_with_normalised_gradients(tmp_path, momentum, weight_decay):
    model, twin = network(nn.BatchNorm1d(8)), network(nn.BatchNorm1d(8))
    batches = trainer(tmp_path / "a", twin).batches
    expected = by_hand(twin, batches, 6, lambda _: 0.2, momentum, weight_decay, unit=True)
    options = {"momentum": momentum, "weight_decay": weight_decay, "fixed_length_steps": True}
    _, metrics = run(tmp_path / "b", model, **options)
    assert metrics["train"]["loss"].tolist() == pytest.approx(expected, rel=1e-5)


def test_steps_of_fixed_length_have_length_lr_and_the_true_norm_in_the_tables(tmp_path):
    options = {"fixed_length_steps": True, "decay_epochs": 1, "decay_factor": 0.5}
    _, metrics = run(tmp_path, network(), checkpoints=1, **options)
    weights = [read_checkpoint(path)[0] for _, path in list_checkpoints(tmp_path)]
    points = [torch.cat([tensor.flatten() for _, tensor in sorted(one.items())]) for one in weights]
    lengths = [float((after - before).norm()) for before, after in pairwise(points)]
    assert lengths == pytest.approx([0.2] * 3 + [0.1] * 3, rel=1e-4)
    images, labels = trainer(tmp_path / "other", network()).batches.at(0)
    model = network()
    gradients = torch.autograd.grad(cross_entropy(model(images), labels), [*model.parameters()])
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert metrics["train"]["grad_norm"][0] == pytest.approx(norm, rel=1e-4)


def test_gradients_without_a_length():
    measured = unit_divisor(torch.tensor([0.0, 0.5, torch.inf, torch.nan]))
    torch.testing.assert_close(measured, torch.tensor([1.0, 0.5, torch.nan, torch.nan]), equal_nan=True)


def test_a_zero_gradient_stays_zero_in_steps_of_fixed_length(tmp_path):
    model = network()
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-1].bias.copy_(torch.tensor([1e4, 0.0, -1e4]))  # certain, and right of all images
    made = trainer(tmp_path, model, fixed_length_steps=True)
    made.batches.split.labels.zero_()
    assert made.run(lambda *_: None) == "finished"
    assert torch.equal(model[-1].bias, torch.tensor([1e4, 0.0, -1e4]))


@pytest.mark.parametrize("batch_size", [4, None])
def test_divergence_of_steps_of_fixed_length_is_a_result(tmp_path, batch_size):
    status, _ = run(tmp_path, network(), lr=1e25, steps=20, fixed_length_steps=True, batch_size=batch_size)
    assert status == "diverged"


def test_learning_rate_steps_exactly_at_epoch_boundaries(tmp_path):
    model, twin = network(), network()
    options = {"steps": 14, "decay_epochs": 2, "decay_factor": 0.2}
    expected_lr = [0.2] * 6 + [0.04] * 6 + [0.008] * 3
    _, metrics = run(tmp_path / "a", model, **options)
    assert metrics["train"]["lr"].tolist() == pytest.approx(expected_lr)
    # Not only logged: used.
    losses = by_hand(twin, trainer(tmp_path / "b", twin).batches, 14, lambda step: expected_lr[step])
    assert metrics["train"]["loss"].tolist() == pytest.approx(losses, rel=1e-5)


def test_row_of_a_step_describes_the_weights_of_its_checkpoint(tmp_path):
    _, metrics = run(tmp_path, network(), checkpoints=2, steps=4)
    batches = trainer(tmp_path / "other", network()).batches
    assert [step for step, _ in list_checkpoints(tmp_path)] == [0, 2, 4]
    for step, path in list_checkpoints(tmp_path):
        twin = network(seed=9)
        twin.load_state_dict(read_checkpoint(path)[0])
        images, labels = batches.at(step)
        loss = cross_entropy(twin(images), labels)
        row = metrics["train"].loc[step]
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["accuracy"] == pytest.approx((twin(images).argmax(1) == labels).double().mean().item())
        assert row["epoch"] == pytest.approx(step / 3)
        if step < 4:
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*twin.parameters()])])
            assert row["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)


def test_last_look_leaves_running_statistics_alone(tmp_path):
    model = network(nn.BatchNorm1d(8))
    run(tmp_path, model, steps=5)
    assert model[2].num_batches_tracked.item() == 5
    _, last = list_checkpoints(tmp_path)[-1]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in read_checkpoint(last)[0].items())


def test_model_that_cannot_be_copied_finishes(tmp_path):
    model = network()
    model[1].extra = model[1].weight * 2  # no leaf: copy.deepcopy refuses
    assert run(tmp_path, model)[0] == "finished"


def test_evaluation_is_in_eval_mode_on_the_whole_test_split_at_epoch_ends_and_the_last_step(tmp_path):
    model = network(nn.BatchNorm1d(8), nn.Dropout(0.5))
    _, metrics = run(tmp_path, model, steps=8, evaluate_epochs=1)
    assert metrics["test"].index.tolist() == [3, 6, 8]
    assert metrics["test"]["epoch"].tolist() == pytest.approx([1, 2, 8 / 3])
    assert model.training
    test = split(7, 2)
    with torch.no_grad():
        logits = model.eval()(PIXELS(test.images))
    last = metrics["test"].loc[8]
    assert last["loss"] == pytest.approx(cross_entropy(logits, test.labels).item(), rel=1e-5)
    assert last["accuracy"] == pytest.approx((logits.argmax(1) == test.labels).double().mean().item())


def test_evaluation_of_many_images_is_done_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("skip_conditioning.experiments.data.batches._EVALUATION_BATCH", 3)
    _, parts = run(tmp_path / "parts", network(), evaluate_epochs=2)
    monkeypatch.undo()
    _, whole = run(tmp_path / "whole", network(), evaluate_epochs=2)
    pd.testing.assert_series_equal(parts["test"]["loss"], whole["test"]["loss"])
    assert parts["test"]["accuracy"].equals(whole["test"]["accuracy"])


def test_divergence_is_a_result(tmp_path):
    status, metrics = run(tmp_path, network(), lr=1e20, steps=20)
    assert status == "diverged"
    losses = metrics["train"]["loss"]
    assert losses[:-1].notna().all()
    assert not abs(losses.iloc[-1]) < float("inf")
    assert losses.index.tolist() == list(range(len(losses)))
    assert len(losses) < 21

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    measured = json.loads((tmp_path / "status.json").read_text(), parse_constant=refuse)
    assert measured["status"] == "diverged"


def test_checkpoints_once_an_epoch_by_default_and_one_state_to_resume_from(tmp_path):
    run(tmp_path, network(), steps=7)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [0, 3, 6, 7]
    assert [path.name for path in tmp_path.glob("checkpoints/state_*")] == ["state_000000007.safetensors"]


@pytest.mark.parametrize("stop", [0, 3])
def test_bounds_of_a_run_killed_after_any_step_and_resumed_are_those_of_a_whole_one(tmp_path, monkeypatch, stop):
    options = {"momentum": 0.9, "checkpoints": 2, "bounds": True}

    def kill(step, *_):
        if step == stop:
            raise InterruptedError

    def layers():
        return network(nn.BatchNorm1d(8), nn.Dropout(0.5))

    monkeypatch.setattr("skip_conditioning.diagnostics.monitoring.monitor._FLUSH_SECONDS", -1.0)
    run(tmp_path / "whole", layers(), **options)
    with pytest.raises(InterruptedError):
        trainer(tmp_path / "killed", layers(), **options).run(kill)
    run(tmp_path / "killed", layers(), **options)
    whole, killed = (read_experiment(tmp_path / name).metrics for name in ("whole", "killed"))
    columns = [name for name in whole.columns if name not in ("run_id", "seconds")]
    pd.testing.assert_frame_equal(whole[columns], killed[columns], check_exact=True)
    rows = whole[whole["split"] == "probe"].set_index("step")
    assert rows.index.tolist() == list(range(7))
    assert rows["observed_decrease"].notna().tolist() == [True] * 6 + [False]
    assert rows["predicted_decrease"].notna().tolist() == [True] * 6 + [False]
    # What was observed is the change of the loss beside it, which is in float32.
    change = -rows["loss"].diff().iloc[1:]
    assert rows["observed_decrease"].iloc[:-1].tolist() == pytest.approx(change.tolist(), rel=1e-3, abs=1e-6)


def test_a_run_that_diverges_has_the_bounds_until_then(tmp_path):
    status, metrics = run(tmp_path, network(), lr=1e20, steps=20, bounds=True)
    assert status == "diverged"
    rows, skipped = metrics["probe"]["pl_verdict"].dropna(), read_experiment(tmp_path).skipped
    missed = skipped[skipped["map"] == "bounds"]["step"]
    assert sorted({*rows.index, *missed}) == metrics["train"].index.tolist()
    assert not rows.str.startswith("violated").any()


@pytest.mark.parametrize("stop", [0, 3, 4])
def test_resuming_in_mid_epoch_takes_the_same_path(tmp_path, stop):
    """Stopped after any step, with dropout, momentum, augmentation and batch norm on."""
    options = {"momentum": 0.9, "augment": "crop", "evaluate_epochs": 1, "checkpoints": 2}
    options["fixed_length_steps"] = stop % 2 == 0

    def kill(step, *_):
        if step == stop:
            raise InterruptedError

    def layers():
        return network(nn.BatchNorm1d(8), nn.Dropout(0.5))

    _, whole = run(tmp_path / "whole", layers(), **options)
    with pytest.raises(InterruptedError):
        trainer(tmp_path / "killed", layers(), **options).run(kill)
    torch.manual_seed(77)
    _, resumed = run(tmp_path / "killed", layers(), **options)
    for name in ("train", "test", "probe"):
        columns = ["epoch", "loss", "accuracy", "lr", "grad_norm"]
        pd.testing.assert_frame_equal(whole[name][columns], resumed[name][columns], check_exact=True)
    for (_, first), (_, second) in zip(*(list_checkpoints(tmp_path / d) for d in ("whole", "killed")), strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_batches_of_all_images_in_their_order(tmp_path):
    _, metrics = run(tmp_path, network(), batch_size=None, steps=3)
    losses = by_hand(network(), trainer(tmp_path / "b", network(), batch_size=None).batches, 3, lambda _: 0.2)
    assert metrics["train"]["loss"].tolist() == pytest.approx(losses, rel=1e-5)
    assert metrics["train"]["epoch"].tolist() == [0, 1, 2, 3]
