"""Whole experiments: what their runs share, what repeats, and that measuring changes nothing."""

import json

import pandas as pd
import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.networks.layer_names import select_layers
from skip_conditioning.diagnostics.networks.maps import TOTAL
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.config.presets import PRESETS
from skip_conditioning.experiments.processes.machine import choose_device
from skip_conditioning.experiments.records.directory import read_probe
from skip_conditioning.experiments.records.tensor_files import read_checkpoint
from skip_conditioning.experiments.train import parse
from skip_conditioning.experiments.training.networks import build_network
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.models import build_model

PAPER_NET = ("--model", "paper-mnist", "--arms", "chain", "residual", "--layers", "stem")


def checkpoint(directory, run, step):
    return (directory / "runs" / run / "checkpoints" / f"step_{step:09d}.safetensors").read_bytes()


def losses(directory):
    metrics = read_experiment(directory).metrics
    train = metrics[metrics["split"] == "train"]
    return {run: rows["loss"].tolist() for run, rows in train.groupby("run_id")}


@pytest.mark.parametrize("network", ["batch_norm", "dropout"])
def test_the_observer_changes_nothing(train, network):
    arm = "plain" if network == "batch_norm" else "default"
    options = ("--model", f"nets:{network}", "--arms", arm, "--momentum", "0.9")
    seen = train("seen", *options)
    unseen = train("unseen", *options, "--no-diagnostics")
    run = f"{arm}-lr0.1-trial00"
    assert read_experiment(seen).spectra["step"].tolist() == list(range(7))
    assert read_experiment(unseen).spectra.empty
    assert checkpoint(seen, run, 6) == checkpoint(unseen, run, 6)
    assert checkpoint(seen, run, 0) != checkpoint(seen, run, 6)
    columns = ["run_id", "step", "split", "epoch", "loss", "accuracy", "lr", "grad_norm"]
    tables = [read_experiment(directory).metrics[columns] for directory in (seen, unseen)]
    tables = [table[table["split"] != "probe"].reset_index(drop=True) for table in tables]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    state = f"runs/{run}/checkpoints/state_000000006.safetensors"
    assert (seen / state).read_bytes() == (unseen / state).read_bytes(), "optimiser or random numbers differ"


def test_bounds_are_logged_on_request_and_change_nothing(train):
    seen, unseen = train("seen", "--bounds", "--no-diagnostics"), train("unseen", "--no-diagnostics")
    run = "plain-lr0.1-trial00"
    assert checkpoint(seen, run, 6) == checkpoint(unseen, run, 6)
    metrics = read_experiment(seen).metrics
    rows = metrics[metrics["split"] == "probe"].set_index("step")
    assert rows.index.tolist() == [0, 1, 2, 3, 4, 6]
    assert not rows["pl_verdict"].str.startswith("violated").any()
    assert rows["observed_decrease"].notna().tolist() == [True] * 5 + [False]
    assert "probe" not in read_experiment(unseen).metrics["split"].tolist()
    assert read_experiment(seen).spectra.empty


def test_resuming_needs_the_same_bounds(train, small):
    train("out", "--bounds", "--no-diagnostics")
    with pytest.raises(InputError, match="bounds True → False"):
        Runner(parse([*small, "--out", "out", "--no-diagnostics", "--resume"]))


def test_a_seeded_experiment_repeats(train, same_results):
    options = ("--trials", "2", "--augment", "crop")
    same_results(first := train("first", *options), train("second", *options))
    assert losses(train("other", *options, "--seed", "1")) != losses(first)


def test_arms_and_learning_rates_of_a_trial_share_initialisation_and_trials_do_not(train):
    out = train("out", *PAPER_NET, "--trials", "2", "--lr", "0.2", "0.05", "--steps", "1")
    start = {
        (arm, lr, trial): checkpoint(out, f"{arm}-lr{lr}-trial0{trial}", 0)
        for arm in ("chain", "residual")
        for lr in ("0.2", "0.05")
        for trial in (0, 1)
    }
    for trial in (0, 1):
        assert len({content for (_, _, t), content in start.items() if t == trial}) == 1
    assert start["chain", "0.2", 0] != start["chain", "0.2", 1]
    measured = losses(out)
    assert measured["chain-lr0.2-trial00"][0] == measured["chain-lr0.05-trial00"][0]
    assert measured["chain-lr0.2-trial00"][1] != measured["chain-lr0.05-trial00"][1]
    assert measured["chain-lr0.2-trial00"][0] != measured["residual-lr0.2-trial00"][0]
    runs = read_experiment(out).runs.set_index("run_id")
    assert runs["lr"].to_dict() == {run: 0.2 if "lr0.2" in run else 0.05 for run in runs.index}
    assert runs.groupby("trial")["seed"].nunique().tolist() == [1, 1]
    assert runs["seed"].nunique() == 2


def test_data_order_is_the_trials(small):
    made = Runner(parse([*small, "--out", "out", "--trials", "2", "--arms", "plain", "shrunk"]))
    orders = {(run.arm, run.trial): made.data.batches(run.seed).at(4)[1].tolist() for run in made.runs}
    assert orders["plain", 0] == orders["shrunk", 0] != orders["plain", 1] == orders["shrunk", 1]


def test_subset_and_probe_are_drawn_once(small):
    parts = [Runner(parse([*small, "--out", "out", *more])) for more in ((), ("--lr", "0.3"), ("--seed", "1"))]
    subsets = [made.data._on_host.images for made in parts]
    assert torch.equal(subsets[0], subsets[1])
    assert not torch.equal(subsets[0], subsets[2])
    assert torch.equal(parts[0].probe[0], parts[1].probe[0])
    assert len(subsets[0]) == 40
    assert parts[0].probe[0].shape == (3, 1, 28, 28)
    # The probe consists of training images.
    everything = {image.numpy().tobytes() for image in subsets[0]}
    assert all((image * 255).round().byte().numpy().tobytes() in everything for image in parts[0].probe[0])


def test_diverged_run_stays_and_the_experiment_goes_on(train, capsys):
    out = train("out", "--lr", "1e30", "0.1", "--trials", "2", "--loss-threshold", "2.3")
    tables, speed = read_experiment(out), pd.read_parquet(out / "speed.parquet").set_index("run_id")
    status = tables.runs.set_index("run_id")["status"]
    assert status.to_dict() == {
        f"plain-lr{lr}-trial0{trial}": "diverged" if lr == "1e+30" else "finished"
        for lr in ("1e+30", "0.1")
        for trial in (0, 1)
    }
    last = losses(out)["plain-lr1e+30-trial00"][-1]
    assert not abs(last) < float("inf")
    assert speed.loc[status == "diverged", "speed_rank"].tolist() == [3.5, 3.5]
    assert speed.loc[status == "diverged", "diverged"].all()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1e+30", "plain", "2", "2", "0", "–", "–"] in [row[:7] for row in rows]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    for file in out.rglob("*.json"):
        json.loads(file.read_text(), parse_constant=refuse)


def test_resuming_adds_trials_arms_and_rates_and_repeats_nothing(train, same_results):
    short = ("--steps", "2")
    more = (*short, "--trials", "2", "--arms", "plain", "shrunk", "--lr", "0.1", "0.2")
    whole = train("whole", *more)
    grown = train("grown", *short, "--trials", "1")
    before = {file: file.stat() for file in grown.glob("runs/**/*") if file.is_file()}
    assert before
    train("grown", *more, "--resume")
    assert {file: file.stat() for file in before} == before, "a finished run was written to"
    same_results(whole, grown)
    train("grown", *short, "--arms", "shrunk", "--resume")
    same_results(whole, grown)


def test_overwriting_starts_anew(train, same_results):
    out = train("out", "--trials", "2")
    (out / "figures").mkdir()
    same_results(train("out", "--overwrite"), train("other"))
    assert not (out / "figures").exists()


def test_failed_run_is_marked_and_taken_up_again(train, same_results, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("by accident")

    with monkeypatch.context() as patch:
        patch.setattr("skip_conditioning.experiments.training.trainer.Trainer.evaluate", fail)
        with pytest.raises(ZeroDivisionError):
            train("out")
    (run,) = read_experiment("out").runs.to_dict("records")
    assert (run["status"], run["reason"]) == ("failed", "ZeroDivisionError: by accident")
    same_results(train("out", "--resume"), train("other"))


def test_runs_table_says_where_a_result_comes_from(train):
    (run,) = read_experiment(train("out")).runs.to_dict("records")
    expected = {
        **{"run_id": "plain-lr0.1-trial00", "experiment": "paper-mnist", "dataset": "digits", "arm": "plain"},
        **{"model": "nets:batch_norm", "trial": 0, "lr": 0.1, "status": "finished", "total_steps": 6},
        **{"batch_size": 16, "num_classes": 10, "loss_threshold": 0.5, "loss_window": 1},
    }
    assert {name: run[name] for name in expected} == expected
    assert torch.__version__ in run["versions"]
    assert run["device"].startswith("cpu")
    assert run["git_revision"]


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", "cpu:x"])
def test_device_that_is_not_there(name):
    with pytest.raises(ValueError, match=f"--device {name} cannot be used .*try --device cpu"):
        choose_device(name)
    assert choose_device("cpu").type == "cpu"


# The paper's experiments, on real data


def preset(name, *options):
    return Runner(parse([name, "--out", "out", "--device", "cpu", *options]))


@pytest.mark.slow
def test_paper_mnist_measures_the_whole_spectrum_of_the_paper(train, real_data):
    options = ("paper-mnist", "--trials", "1", "--steps", "2", "--out", "out", "--data-dir", str(real_data))
    made = Runner(parse(options))
    assert made.data._on_host.images.shape == (32, 1, 28, 28)
    made.run_all()
    tables = read_experiment("out")
    assert sorted(tables.runs["arm"]) == ["chain", "modified", "residual"]
    assert tables.spectra.groupby("run_id")["step"].apply(list).tolist() == [[0, 1, 2]] * 3
    assert (set(tables.spectra["rows"]), set(tables.spectra["cols"])) == ({320}, {32 * 5 * 12 * 12})
    x, _ = read_probe(made.config.output.out)
    assert (x.min() >= 0, x.max() <= 1) == (True, True)
    assert torch.equal(x, made.data._on_host.images / 255), "the probe is the whole training set"
    rows = tables.spectra[tables.spectra["run_id"] == "modified-lr0.1-trial00"].set_index("step")
    model = build_model("paper-mnist", arm="modified")
    checkpoints = made.config.output.out / "runs/modified-lr0.1-trial00/checkpoints"
    weights, _ = read_checkpoint(checkpoints / "step_000000002.safetensors")
    model.load_state_dict(weights)
    truth = torch.linalg.svdvals(jacobian_behind_stem(model.double().train(), x.double()))
    assert len(truth) == 320
    assert rows.loc[2, "values"] == pytest.approx(truth.numpy(), rel=1e-4)


def jacobian_behind_stem(model, x):
    """∂logits/∂(stem output) for the whole batch, by plain autograd, one row after the other."""
    features = model[0](x).detach().requires_grad_()
    logits = nn.Sequential(*model[1:])(features).flatten()
    rows = [torch.autograd.grad(logit, features, retain_graph=True)[0].flatten() for logit in logits]
    return torch.stack(rows)


def test_paper_cifar_runs(nets, real_data):
    made = preset(
        *("paper-cifar100", "--data-dir", str(real_data), "--limit-train", "16", "--limit-test", "8", "--trials", "1"),
        *("--batch-size", "8", "--epochs", "1", "--lr", "0.05", "--probe-size", "2", "--layers", "layer4.1"),
        *("--arms", "modified", "--max-overhead", "None"),
    )
    images, _ = made.data.probe(torch.arange(16))
    assert images.min() < -1, "pixels are normalised"
    made.run_all()
    tables = read_experiment("out")
    metrics = tables.metrics.set_index(["split", "step"])
    assert metrics.loc["train", "loss"].notna().sum() == 3
    assert {*metrics.index.unique("split")} == {"train", "probe", "test"}
    assert tables.spectra["layer"].unique().tolist() == ["layer4.1"]
    tails, blocks = (tables.spectra[tables.spectra["map"] == map] for map in ("tail", "layer"))
    assert set(tails["rows"]) == {200}
    assert tails["values"].notna().all()
    # Matrix-free: a density with standard errors.
    assert set(blocks["rows"]) == {2 * 512 * 4 * 4}
    assert (blocks["sigma_mean_se"] > 0).all()
    assert blocks["nodes"].notna().all()


def test_paper_imagenet_runs(nets, real_data):
    made = preset(
        *("paper-imagenet", "--data-dir", str(real_data), "--limit-train", "8", "--limit-test", "4"),
        *("--model", "preact-resnet18", "--batch-size", "4", "--steps", "2", "--layers", "layer4.1"),
        *("--arms", "modified", "--no-diagnostics"),
    )
    assert made.probe[0].shape == (1, 3, 224, 224)
    assert made.factory.network(made.runs[0]).stem[0].kernel_size == (7, 7)
    made.run_all()
    assert read_experiment("out").runs["status"].tolist() == ["finished"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_measure_layers_that_their_networks_have(name):
    config = PRESETS[name][1]
    model = build_network(
        config.network.model,
        config.network.arms[0],
        config.network.model_options,
        num_classes=10,
        input_shape=(3, 32, 32),
    )
    for measurement in config.diagnostics.measurements:
        assert measurement.layers == (TOTAL,) or select_layers(model, measurement.layers)
