import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from skip_conditioning import spectra
from skip_conditioning.experiments.spectrum_analysis import layer_step_table, main
from skip_conditioning.experiments.train import main as train
from skip_conditioning.models import build_model

SMALL = ("--trials", "1", "--lr", "0.1", "--arms", "chain", "residual", "--steps", "4", "--checkpoints", "2")
MODEL = {"depth": 4, "width": 12, "normaliser": "batch"}
OPTIONS = tuple(f"{name}={value}" for name, value in MODEL.items())


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    out = tmp_path_factory.mktemp("analysis") / "experiment"
    command = ["demo", "--out", str(out), *SMALL, "--model-options", *OPTIONS]
    assert train([*command, "--layers", "stem", "--subset", "32", "--probe-size", "4", "--device", "cpu"]) == 0
    return out


@pytest.fixture
def foreign(tmp_path):
    """Somebody's weights, saved from a compiled model wrapped for data parallelism, and a probe."""
    torch.manual_seed(3)
    model = build_model("residual-mlp", in_features=6, num_classes=3, **MODEL)
    torch.save({f"module._orig_mod.{k}": v for k, v in model.state_dict().items()}, tmp_path / "theirs.pt")
    np.save(tmp_path / "probe.npy", np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32))
    options = [
        "--model",
        "skip_conditioning.models:build_residual_mlp",
        "--model-options",
        "in_features=6",
        "num_classes=3",
        *OPTIONS,
    ]
    return model, [*options, "--weights", str(tmp_path / "theirs.pt"), "--probe", str(tmp_path / "probe.npy")]


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes longer than measuring."""
    monkeypatch.setattr("skip_conditioning.experiments.spectrum_analysis._draw_spectra", lambda *_: [])


def test_an_experiment_gives_the_spectra_of_every_checkpoint(experiment, capsys):
    options = ["--layers", "blocks.[13]", "--spectra-dtype", "float64", "--at-steps", "0", "2"]
    assert main([str(experiment), "--map", "tail", *options]) == 0
    table = pd.read_parquet(experiment / "analysis" / "spectra")
    assert len(table) == 2 * 2 * 2  # arms × checkpoints × blocks
    model = build_model("residual-mlp", arm="chain", **MODEL)
    model.load_state_dict(load_file(next(experiment.glob("runs/chain-*/checkpoints/step_000000002.safetensors"))))
    x = load_file(experiment / "probe.safetensors")["x"]
    expected = spectra(model, x, map="tail", layers="blocks.1", dtype=torch.float64)["blocks.1"]
    row = table.query("run_id.str.startswith('chain') and step == 2 and map == 'tail' and layer == 'blocks.1'")
    np.testing.assert_allclose(row["values"].item(), expected.values, rtol=1e-12)
    printed = capsys.readouterr().out
    for word in ("blocks.3", "σ max", "σ min", "σ mean", "κ", "residual"):
        assert word in printed
    for figure in ("singular_value_histograms_tail.png", "conditioning_heat_map_tail.svg"):
        assert (experiment / "analysis" / figure).stat().st_size > 1000


def test_frozen_batch_norm_is_analysed_as_it_was_trained(tmp_path, without_figures):
    command = ["demo", "--out", str(tmp_path / "e"), *SMALL, "--model-options", *OPTIONS, "--batch-norm", "frozen"]
    assert train([*command, "--layers", "stem", "--subset", "32", "--probe-size", "4", "--device", "cpu"]) == 0
    assert main([str(tmp_path / "e"), "--map", "tail", "--layers", "stem", "--at-steps", "0"]) == 0
    logged, analysed = (
        pd.concat(map(pd.read_parquet, folders)).query("step == 0").set_index("run_id")["sigma_mean"].sort_index()
        for folders in ((tmp_path / "e").glob("runs/*/spectra"), [tmp_path / "e" / "analysis" / "spectra"])
    )
    pd.testing.assert_series_equal(analysed, logged, rtol=1e-5)


def test_a_second_analysis_replaces_the_first(experiment, without_figures):
    run = next((experiment / "runs").glob("residual-*"))
    for steps, count in ((("0", "2"), 2), (("4",), 1)):
        assert main([str(run), "--map", "tail", "param", "--layers", "stem", "--at-steps", *steps]) == 0
        assert len(pd.read_parquet(run / "analysis" / "spectra")) == 2 * count


def test_a_single_checkpoint_knows_its_run(experiment, without_figures):
    run = next((experiment / "runs").glob("residual-*"))
    checkpoint = run / "checkpoints" / "step_000000004.safetensors"
    assert main([str(checkpoint), "--batch-mode", "sample", "--probe-size", "2", "--layers", "stem"]) == 0
    table = pd.read_parquet(run / "analysis" / "spectra")
    assert (table["run_id"] == run.name).all()
    assert (table["step"] == 4).all()
    assert list(table["sample"]) == [0, 1]


def test_foreign_weights_with_a_factory_and_a_probe(foreign, tmp_path, capsys, without_figures):
    model, options = foreign
    assert main([*options, "--map", "tail", "--layers", "blocks.0"]) == 0
    table = pd.read_parquet(tmp_path / "analysis" / "spectra")
    expected = spectra(model, torch.from_numpy(np.load(tmp_path / "probe.npy")), map="tail", layers="blocks.0")
    np.testing.assert_allclose(table["values"].item(), expected["blocks.0"].values, rtol=1e-5)
    assert "blocks.0" in capsys.readouterr().out


def test_the_printed_table_marks_bounds():
    rows = pd.DataFrame({"run_id": ["a", "a"], "map": "tail", "layer": ["x", "y"], "step": 0, "sigma_max": 1.0})
    rows["sigma_min"], rows["sigma_mean"], rows["condition_number"] = 0.1, 0.5, 10.0
    rows["resolved"], rows["sigma_mean_se"] = [True, False], [np.nan, 0.02]
    table = layer_step_table(rows, pd.DataFrame({"run_id": ["a"]}))
    assert list(table["κ"]) == ["10", "≥10"]
    assert list(table["σ min"]) == ["0.1", "≤0.1"]
    assert list(table["σ mean"]) == ["0.5", "0.5 ±0.02"]


def bad_inputs(experiment, tmp_path, options):
    run = next((experiment / "runs").glob("chain-*"))
    whole = (run / "checkpoints" / "step_000000004.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"stem.1.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    np.save(tmp_path / "nan.npy", np.full((4, 6), np.nan, dtype=np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((4, 7), dtype=np.float32))

    def instead(option, value):
        return [value if before == option else given for before, given in zip([None, *options], options, strict=False)]

    return {
        "does not exist": [str(tmp_path / "nowhere")],
        "'blocks.1'": [str(run), "--layers", "block.1"],
        "Did you mean 'tail'": [str(run), "--map", "tial"],
        "unknown method": [str(run), "--method", "lanczso"],
        "float16": [str(run), "--spectra-dtype", "float16"],
        "--probe-size 9": [str(run), "--probe-size", "9"],
        "there: 0, 2, 4": [str(run), "--at-steps", "3"],
        "memory budget": [str(run), "--memory-budget", "0.000001"],
        "nothing to analyse": [],
        "--weights needs --probe": options[:-2],
        "cut.safetensors": instead("--weights", str(tmp_path / "cut.safetensors")),
        "other.safetensors": instead("--weights", str(tmp_path / "other.safetensors")),
        "evil.pt": instead("--weights", str(tmp_path / "evil.pt")),
        "objects.npy": instead("--probe", str(tmp_path / "objects.npy")),
        "the probe": instead("--probe", str(tmp_path / "nan.npy")),
        "(4, 7)": instead("--probe", str(tmp_path / "wide.npy")),
        "nowhere:factory": instead("--model", "nowhere:factory"),
    }


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_bad_input_is_one_line_and_leaves_nothing(experiment, foreign, tmp_path, capsys):
    _, options = foreign
    for expected, arguments in bad_inputs(experiment, tmp_path, options).items():
        out = tmp_path / "results"
        assert main([*arguments, "--out", str(out)]) == 2, expected
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(said) == 1, said
        assert expected in said[0]
        assert not out.exists(), expected
    assert not (tmp_path / "executed").exists()
