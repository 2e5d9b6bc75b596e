import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.tables import Experiment, read_experiment
from skip_conditioning.figures import loss_curves
from skip_conditioning.figures.__main__ import main
from skip_conditioning.figures.drawing.selection import described_runs, in_listed_order
from skip_conditioning.figures.drawing.style import arm_styles

NAMES = [
    "conditioning_vs_speed",
    "loss_curves",
    "singular_value_histograms",
    "singular_value_ridges",
    "conditioning_heat_map",
    "mean_sigma_map",
    "random_matrices",
]


def test_writes_all_figures_and_prints_their_paths(
    fake_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    assert main([str(fake_directory), "--out", str(tmp_path)]) == 0
    written = [tmp_path / f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")]
    output = capsys.readouterr()
    assert output.out.splitlines() == [str(path) for path in written]
    assert output.err == ""
    assert all(path.stat().st_size > 5000 for path in written)
    assert not recwarn.list  # above all, no layout that did not fit


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of figures stay blank: rendering takes longer than all else."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: file.write(b"blank"))


@pytest.mark.usefixtures("blank")
def test_one_run_is_drawn_as_far_as_it_goes(
    fake_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_directory / "runs" / "modified-lr0.1-t0"
    assert main([str(run), "--out", str(tmp_path), "--bins", "5"]) == 0
    (skipped,) = capsys.readouterr().err.splitlines()
    assert skipped.startswith(f"skipped conditioning_vs_speed: {run} is a single run")
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == sorted(NAMES[1:])


def test_missing_speed_table_names_the_remedy(
    fake_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(fake_directory / "runs", tmp_path / "runs")
    assert main([str(tmp_path), "--only", "conditioning_vs_speed"]) == 2
    assert f"skip-conditioning speed {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--only", "loss_curve"], "Did you mean 'loss_curves'?"),
        (["--measure", "kappa"], "condition_number"),
        (["--map", "tial"], "unknown map 'tial'; known are tail, layer, network, param, kernel. Did you mean 'tail'?"),
        (["--batch-mode", "sampled"], "Did you mean 'sample'?"),
        (["--ridge-steps", "0"], "must be 1 or more, not 0"),
        (["--scale", "logarithmic"], "known are auto, linear, log"),
        (["--layer", "blck1"], "Did you mean 'block1'"),
        (["--lr", "0.3"], "there are 0.02, 0.05, 0.1"),
        (["--only", "loss_curves", "--split", "test"], "splits: train"),
        (["--measur", "rank"], "--measur"),
    ],
)
def test_bad_options_write_one_line_and_no_figure(
    fake_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], hint: str
) -> None:
    assert main([str(fake_directory), "--out", str(tmp_path / "out"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert hint in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_bad_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / name) in line


@pytest.mark.parametrize(
    ("description", "order"),
    [
        ('{"network": {"arms": ["residual", "modified", "chain"]}}', ["residual", "modified", "chain"]),
        ('{"network": {"arms": ["residual"]}}', ["residual", "chain", "modified"]),
        ('{"network": {"arms": null}}', ["chain", "modified", "residual"]),
        ("[]", ["chain", "modified", "residual"]),
        ("{", ["chain", "modified", "residual"]),
    ],
)
def test_arms_come_in_the_order_in_which_they_were_listed(
    fake_experiment: Experiment, tmp_path: Path, description: str, order: list[str]
) -> None:
    by_name = dataclasses.replace(fake_experiment, runs=fake_experiment.runs.sort_values("run_id"))
    assert in_listed_order(by_name, tmp_path) is by_name
    (tmp_path / "experiment.json").write_text(description)
    ordered = in_listed_order(by_name, tmp_path)
    assert list(arm_styles(described_runs(ordered)["arm"])) == order
    legend = loss_curves(ordered).legends[0].get_texts()
    assert [text.get_text() for text in legend][:3] == order


def test_figures_do_not_load_torch() -> None:
    program = (
        "import sys, skip_conditioning.figures.__main__ as _; rooms = ('experiments', 'models');"
        "print(sorted({'torch', *(f'skip_conditioning.{room}' for room in rooms)} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("name", ["chain-lr0.1-t0", "renamed"])
def test_tables_of_a_foreign_training_loop_have_no_config(
    fake_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for table in ("metrics", "spectra"):
        shutil.copytree(fake_directory / "runs" / "chain-lr0.1-t0" / table, tmp_path / name / table)
    assert main([str(tmp_path / name), "--only", "loss_curves", "conditioning_heat_map"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    runs = described_runs(read_experiment(tmp_path / name))
    assert runs[["run_id", "arm"]].values.tolist() == [["chain-lr0.1-t0"] * 2]
