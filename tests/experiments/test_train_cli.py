"""The train command as its users meet it: bad input, kills, a full disk, Ctrl-C, help."""

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.config.presets import PRESETS
from skip_conditioning.experiments.config.train_config import option_values
from skip_conditioning.experiments.summary import summary_table
from skip_conditioning.experiments.train import main, parse

# Bad input


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["name a preset", "paper-mnist"]),
        (["paper-mnits", "--out", "o"], ["'paper-mnits'", "Did you mean 'paper-mnist'"]),
        (["demo"], ["--out"]),
        (["demo", "--out", "o", "--learning-rate", "1"], ["--learning-rate"]),
        (["demo", "--out", "o", "--lr", "fast"], ["--lr", "fast"]),
        (["demo", "--out", "o", "--lr", "-0.1"], ["--lr"]),
        (["demo", "--out", "o", "--trials", "0"], ["--trials must be at least 1; it is 0"]),
        (["demo", "--out", "o", "--trials", "1.5"], ["--trials", "1.5"]),
        (["demo", "--out", "o", "--subset", "-3"], ["--subset", "-3"]),
        (["demo", "--out", "o", "--steps", "3", "--epochs", "2"], ["either --steps or --epochs"]),
        (["demo", "--out", "o", "--steps=60", "--epochs=2"], ["either --steps or --epochs"]),
        (["demo", "--out", "o", "--steps", "None"], ["either --steps or --epochs"]),
        (["demo", "--out", "o", "--experiment", "mine"], ["--experiment"]),
        (["demo", "--out", "o", "--log", "comet"], ["--log", "comet", "tensorboard"]),
        (["demo", "--out", "o", "--estimate", "--trials", "0"], ["--trials must be at least 1"]),
        (["demo", "--out", "o", "--augment", "mixup"], ["--augment", "mixup", "resized-crop"]),
        (["demo", "--out", "o", "--resume", "--overwrite"], ["--resume", "--overwrite", "one of them"]),
        (["demo", "--out", "o", "--arms", "chian"], ["'chian'", "Did you mean 'chain'"]),
        (["demo", "--out", "o", "--arms"], ["--arms", "empty"]),
        (["demo", "--out", "o", "--model", "residual-mpl"], ["residual-mpl", "residual-mlp"]),
        (["demo", "--out", "o", "--model-options", "depht=3"], ["depht", "depth"]),
        (["demo", "--out", "o", "--model-options", "depth"], ["name=value"]),
        (["demo", "--out", "o", "--model-options", "depth=deep"], ["depth", "deep"]),
        (["demo", "--out", "o", "--layers", "block.3"], ["'block.3'", "Did you mean 'blocks.3'", "--layers"]),
        (["demo", "--out", "o", "--device", "cuda:99"], ["--device cuda:99", "--device cpu"]),
        (["demo", "--out", "o", "--dataset", "mnist", "--data-dir", "nowhere"], ["nowhere"]),
        (["demo", "--out", "o", "--subset", "2000"], ["--subset 2000", "1500 training images"]),
        (["demo", "--out", "o", "--probe-size", "300"], ["--probe-size 300", "256 training images"]),
        (["demo", "--out", "o", "--batch-size", "1"], ["batch of 1", "more than 1 value per channel"]),
    ],
    ids=lambda value: " ".join(value[1:]) if value and value[0] in ("demo", "paper-mnits") else "",
)
def test_bad_input_is_one_line_and_code_2_and_nothing_is_written(args, words, nets, capsys):
    assert refused(args, capsys, words)


def refused(args, capsys, words):
    before = sorted(Path().rglob("*"))
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert all(word in err for word in words), err
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts] == before
    return True


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raises", ["RuntimeError", "no such luck at all"]),
        ("nan", ["'1.weight'", "NaN"]),
        ("few", ["10 classes", "(8, 7)"]),
        ("flat", ["(8, 10)", "(80,)"]),
        ("tuple", ["(8, 10)", "tuple"]),
        ("wide", ["8 × 1 × 28 × 28"]),
    ],
)
@pytest.mark.parametrize("diagnostics", ["--diagnostics", "--no-diagnostics"])
def test_bad_factory(small, kind, words, diagnostics, capsys):
    options = ["--out", "o", "--model", "nets:bad", "--arms", "default", "--model-options", f"kind={kind}", diagnostics]
    assert refused([*small, *options], capsys, words)


@pytest.mark.parametrize("model", ["nets:none_such", "nothing.here:make", "nets:layers2", "nets:"])
def test_factory_that_is_not_there(small, model, capsys):
    assert refused([*small, "--out", "o", "--model", model], capsys, [model.partition(":")[0]])


def test_wrong_columns(nets, capsys):
    Path("data").mkdir()
    parquet.write_table(pa.table({"picture": [b""], "y": [1]}), "data/train.parquet")
    parquet.write_table(pa.table({"picture": [b""], "y": [1]}), "data/test.parquet")
    args = ["paper-cifar10", "--out", "o", "--data-dir", "data"]
    assert refused(args, capsys, ["data/train.parquet", "picture, y", "'label'"])


def test_existing_output(train, small, capsys):
    train("o")
    (Path("mine")).mkdir()
    (Path("mine") / "thesis.tex").write_text("years of work")
    capsys.readouterr()
    assert refused([*small, "--out", "o"], capsys, ["--resume", "--overwrite"])
    assert refused([*small, "--out", "o", "--resume", "--seed", "4"], capsys, ["seed 0 → 4"])
    assert refused(["demo", "--out", "o", "--resume"], capsys, ["experiment paper-mnist → demo"])
    assert refused([*small, "--out", "o/experiment.json"], capsys, ["is a file"])
    for more in ([], ["--overwrite"], ["--resume"]):
        assert refused([*small, "--out", "mine", *more], capsys, ["holds no experiment"])
    # A failed attempt to replace it leaves the old experiment whole.
    assert refused([*small, "--out", "o", "--overwrite", "--arms", "none"], capsys, ["'none'"])


# What it takes and prints


def test_length_of_runs_given_replaces_the_presets():
    assert [parse(["demo", "--out", "o", *given]).optimisation.steps for given in ([], ["--epochs", "3"])] == [60, None]
    config = parse(["paper-cifar10", "--out", "o", "--steps=7"])
    assert (config.optimisation.steps, config.optimisation.epochs) == (7, None)


def test_learning_rates_and_arms_keep_their_order():
    config = parse(["demo", "--lr", "0.5", "0.02", "--out", "o", "--arms", "residual", "chain"])
    assert (config.optimisation.lr, config.network.arms) == ((0.5, 0.02), ("residual", "chain"))


@pytest.mark.parametrize("out", ["with a space/and ünïcode", "absolute", "."])
def test_output_anywhere(train, nets, out, capsys):
    if out == "absolute":
        out = nets / "absolute"
    elif out == ".":
        shutil.rmtree(nets / "__pycache__", ignore_errors=True)
        (nets / "nets.py").rename(nets.parent / "nets.py")
        pytest.MonkeyPatch().syspath_prepend(str(nets.parent))
    assert len(read_experiment(train(out)).runs) == 1
    assert f"{Path(out) / 'runs'}" in capsys.readouterr().out


def test_progress_is_on_stderr_and_the_summary_on_stdout(train, capsys):
    out = train("o", "--loss-threshold", "2.2")
    printed, progress = capsys.readouterr()
    assert summary_table(out).to_string(index=False) in printed
    assert "step/s" not in printed
    last = progress.splitlines()[-1].rpartition("\r")[2]
    loss = read_experiment(out).metrics.query("split == 'train'")["loss"].iloc[-1]
    assert re.search(rf"plain-lr0.1-trial00: 100%.*7/7.*step 6, loss {loss:.3g}, κ [≥\d]", last), last


def test_estimate_prints_and_writes_nothing(small, capsys):
    before = sorted(Path().rglob("*"))
    assert main([*small, "--out", "o", "--estimate"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 runs of 6 steps")
    assert all(word in printed for word in ("hours", "memory:", "disk:", "of tables", "diagnostics", "A step takes"))
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts] == before


def test_estimate_refuses_what_training_would(train, small, capsys):
    train("o")
    capsys.readouterr()
    assert refused([*small, "--out", "o", "--estimate"], capsys, ["--resume", "--overwrite"])
    assert refused([*small, "--out", "o", "--estimate", "--resume", "--seed", "4"], capsys, ["seed 0 → 4"])
    assert main([*small, "--out", "o", "--estimate", "--resume"]) == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_help_names_every_option_with_its_default(preset, capsys):
    with pytest.raises(SystemExit) as stop:
        parse([preset, "--help"])
    assert stop.value.code == 0
    printed = re.sub(r"(?m)^[│ ] +(?=-\w|--\w)", "• ", capsys.readouterr().out)  # where an option begins
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", printed).split())
    hidden = {"experiment", "measurements"}
    for name, value in option_values(PRESETS[preset][1]).items():
        flag = f"--{name.replace('_', '-')}"
        if name in hidden:
            assert not re.search(rf"{flag}\b", text), flag
            continue
        described = re.search(rf"• {flag}[ ,](.*?)\((default: [^()]*|required)\)", text)
        assert described, flag
        assert len(described[1].split()) > 3, f"{flag} is not explained"
        if name not in ("out", "data_dir"):
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert described[2].replace(" ", "") == f"default:{shown}".replace(" ", ""), flag


def test_help_names_every_preset(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"• {name} " in text for name in PRESETS)


# Kills, Ctrl-C and a full disk, in processes of their own

RUNS = ("--trials", "2", "--steps", "40", "--model", "nets:dropout", "--arms", "default", "--momentum", "0.9")


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_to_the_same_bits(train, start, same_results):
    whole = train("whole", *RUNS)
    moments = random.Random(0)
    for number in range(2):
        process = start("--out", "killed", "--resume", *RUNS)
        # Anywhere from before the first file to after the last, counted in files rather than seconds.
        goal = files("killed") + moments.choice([3, 10, 20, 35, 50])
        while process.poll() is None and files("killed") < goal:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), number
    half_written = Path("killed/runs/default-lr0.1-trial00/checkpoints/.step_000000002.safetensors.1.tmp")
    half_written.parent.mkdir(parents=True, exist_ok=True)
    half_written.write_text("half")
    same_results(whole, train("killed", "--resume", *RUNS))
    assert not [*Path("killed").rglob(".*")]
    metrics = read_experiment("killed").metrics
    assert not metrics.duplicated(["run_id", "step", "split"]).any()
    assert metrics.query("split == 'train'").groupby("run_id")["step"].apply(list).tolist() == [[*range(41)]] * 2


@pytest.mark.slow
def test_stopped_before_or_after_writing_any_file_it_resumes_to_the_same_bits(stopped_at_every_file):
    options = ("--model", "nets:dropout", "--arms", "default", "--steps", "3", "--momentum", "0.9")
    assert [*stopped_at_every_file(*options, fewest=15)]


def files(directory):
    return sum(1 for path in Path(directory).rglob("*") if not path.name.startswith("."))


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(train, start, same_results):
    # As at a terminal: a suite that runs in the background of a shell hands down that the signal is to be ignored.
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = start("--out", "stopped", *RUNS, before=heeded)
    while process.poll() is None and files("stopped") < 30:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1] == ("interrupted; to go on, repeat the command with --resume (and without --overwrite)")
    assert "Traceback" not in err
    assert "running" in read_experiment("stopped").runs["status"].tolist()
    same_results(train("whole", *RUNS), train("stopped", "--resume", *RUNS))


@pytest.mark.slow
def test_full_disk_is_one_line_and_the_run_can_be_resumed(train, start, same_results):
    # No file may grow beyond 55 kB: the weights fit, the optimiser's momentum with the random numbers does not.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (55_000, 55_000))"
    process = start("--out", "full", *RUNS, before=limit)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("error: cannot write full/runs/default-lr0.1-trial00/checkpoints/state_")
    assert "free some space" in last
    assert read_experiment("full").runs["status"].tolist() == ["failed"]
    same_results(train("whole", *RUNS), train("full", "--resume", *RUNS))


# tests/installation does the same with the command itself.
@pytest.mark.slow
def test_command_runs_from_any_directory_with_a_network_found_there(small):
    command = [sys.executable, "-m", "skip_conditioning.experiments.train", *small, "--out", "o", "--no-diagnostics"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "plain" in process.stdout
