"""The verify command as its users meet it: two claims on digits end to end, interruptions, tampering, bad input."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.theory.statement import Statement
from skip_conditioning.experiments import verify
from skip_conditioning.experiments.claims.paper import registry
from skip_conditioning.experiments.claims.paper.theory_claims import TheoryClaim, decide_statement
from skip_conditioning.experiments.claims.run import experiments, preregistration
from skip_conditioning.experiments.claims.run.experiments import claim_inputs, shared_experiments
from skip_conditioning.experiments.claims.run.preregistration import FILE
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs, Plan
from skip_conditioning.experiments.claims.verdict.outcome import Comparison, Verdict
from skip_conditioning.experiments.claims.verdict.paired_claim import PairedClaim
from skip_conditioning.experiments.config.presets import preset
from skip_conditioning.experiments.processes.machine import one_thread
from skip_conditioning.experiments.theory.experiment import CheckedStatement
from skip_conditioning.experiments.train import main as train
from skip_conditioning.experiments.training import runs

PLAN = Plan(
    preset(
        "demo",
        arms=("chain", "residual"),
        trials=7,
        lr=(0.1,),
        steps=5,
        subset=64,
        model_options=("depth=2", "width=16"),
        layers=("stem",),
    )
)


def claim(name, *comparisons):
    return PairedClaim(name, f"{name}.", "nowhere", "so", (), {"demo": {"digits": PLAN}}, comparisons)


#: One of which any network would be, and one of conditioning.
CLAIMS = {
    "speed": claim("speed", Comparison("loss_at_step_5", "residual", "chain", "smaller")),
    "spectrum": claim("spectrum", Comparison("sigma_mean", "residual", "chain", "larger")),
}


def stub(patch):
    """Two claims on digits that take seconds; the code stays what it is although this checkout may be committed to."""
    for module in (registry, verify):
        patch.setattr(module, "CLAIMS", CLAIMS)
    for module in (preregistration, experiments, runs, verify):
        patch.setattr(module, "git_revision", lambda: "a1b2c3")


@pytest.fixture(autouse=True)
def _claims(monkeypatch):
    stub(monkeypatch)


def run(out, *args):
    # Other processes would not know of the stubs.
    return verify.main(["--out", str(out), "--device", "cpu", "--processes", "1", *args])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A verify that is over; to be copied before anything is changed in it."""
    out = tmp_path_factory.mktemp("verify") / "out"
    with pytest.MonkeyPatch.context() as patch, one_thread():  # as for all tests of this folder
        stub(patch)
        assert run(out) == 0
    return out


@pytest.fixture
def copy(done, tmp_path):
    return shutil.copytree(done, tmp_path / "out")


def refusal(capsys, out, *args):
    """The one line that a command is refused with."""
    capsys.readouterr()
    assert run(out, *args) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def verdicts(out):
    return pd.read_parquet(out / "verdicts")


def written(out):
    return {path: path.stat().st_mtime_ns for path in sorted(out.glob("experiments/*/runs/**/*")) if path.is_file()}


def test_two_claims_end_to_end(done):
    assert (done / "report.html").exists()
    assert [path.name for path in (done / "experiments").iterdir()] == ["digits"]  # shared
    table = verdicts(done)
    assert set(table["claim"]) == {"speed", "spectrum"}
    assert set(table["hash"]) == {json.loads((done / FILE).read_text())["entries"][-1]["sha256"]}
    assert set(table["pairs"]) == {7}


def test_repeated_it_trains_nothing_and_says_the_same(copy):
    before, table = written(copy), verdicts(copy)
    assert run(copy) == 0
    assert written(copy) == before
    pd.testing.assert_frame_equal(verdicts(copy).drop(columns="command"), table.drop(columns="command"))


def test_interrupted_it_goes_on(tmp_path, done, monkeypatch, capsys):
    out = tmp_path / "out"
    trained = []
    original = experiments.Runner._train

    def stops(self, run, progress):
        if len(trained) == 5:
            raise KeyboardInterrupt
        trained.append(run.run_id)
        original(self, run, progress)

    with monkeypatch.context() as patch:
        patch.setattr(experiments.Runner, "_train", stops)
        assert run(out) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "interrupted; to go on, repeat the command: runs that are over are kept"
    before = written(out)
    assert run(out) == 0
    assert {path: when for path, when in written(out).items() if path in before} == before
    assert verdicts(out)["ratio"].tolist() == verdicts(done)["ratio"].tolist()


@pytest.mark.slow
def test_killed_it_goes_on(tmp_path, done):
    out = tmp_path / "out"
    code = f"import sys, pytest; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_verify as here; "
    code += f"here.stub(pytest.MonkeyPatch()); here.run({str(out)!r})"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        deadline = time.monotonic() + 60
        while len(list(out.glob("experiments/digits/runs/*/status.json"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    over = [path.parent for path in out.glob("experiments/digits/runs/*/status.json") if "finished" in path.read_text()]
    assert over
    before = {path: when for path, when in written(out).items() if set(path.parents) & set(over)}
    assert run(out) == 0
    assert {path: when for path, when in written(out).items() if path in before} == before
    assert verdicts(out)["ratio"].tolist() == verdicts(done)["ratio"].tolist()


def test_more_trials_keep_the_runs_that_are_there(copy):
    before = written(copy)
    assert run(copy, "--trials", "12") == 0
    after = written(copy)
    assert {path: after[path] for path in before} == before
    assert set(verdicts(copy)["pairs"]) == {12}
    assert len(json.loads((copy / FILE).read_text())["entries"]) == 2


def test_an_edited_registration_is_refused(copy, capsys):
    (copy / FILE).write_text((copy / FILE).read_text().replace('"level": 0.05', '"level": 0.2'))
    assert "was changed after it was written" in refusal(capsys, copy)


def test_processes_are_handed_on_and_not_registered(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(experiments, "run_in_processes", lambda _, processes: asked.append(processes))
    for processes in ("3", "2"):
        assert run(tmp_path / "out", "--processes", processes) == 2  # as nothing was trained
    assert asked == [3, 2]
    assert len(json.loads((tmp_path / "out" / FILE).read_text())["entries"]) == 1


def test_a_deleted_run_is_refused_as_incomplete(copy):
    (shared,) = shared_experiments(list(CLAIMS.values()), "demo", None, copy)
    run_directory = copy / "experiments/digits/runs/residual-lr0.1-trial03"
    status = json.loads((run_directory / "status.json").read_text()) | {"status": "diverged"}
    (run_directory / "status.json").write_text(json.dumps(status))
    inputs = claim_inputs(CLAIMS["speed"], [shared], copy, "demo", None)  # a diverged run counts, as the slowest
    numbers = CLAIMS["speed"].judge(inputs, "demo").findings[0].numbers
    assert (numbers["diverged_arm"], numbers["pairs"]) == (1, 7)
    shutil.rmtree(run_directory)
    with pytest.raises(InputError, match=r"1 of 14 runs are not over: residual-lr0.1-trial03 \(missing\)"):
        claim_inputs(CLAIMS["speed"], [shared], copy, "demo", None)


def test_a_deleted_run_is_refused_where_nothing_is_trained(copy, tmp_path, capsys):
    finished = copy / "experiments/digits"
    shutil.rmtree(finished / "runs/residual-lr0.1-trial03")
    assert "residual-lr0.1-trial03 (missing)" in refusal(capsys, tmp_path / "new", "--reuse", str(finished))
    assert not (tmp_path / "new").exists()


def test_swapped_arms_change_the_verdicts(copy, done):
    (shared,) = shared_experiments(list(CLAIMS.values()), "demo", None, copy)
    for config in shared.config.output.out.glob("runs/*/config.json"):
        content = json.loads(config.read_text())
        content["arm"] = {"chain": "residual", "residual": "chain"}[content["arm"]]
        config.write_text(json.dumps(content))
    inputs = claim_inputs(CLAIMS["spectrum"], [shared], copy, "demo", None)
    swapped = CLAIMS["spectrum"].judge(inputs, "demo").findings[0].numbers["ratio"]
    table = verdicts(done)
    assert np.isclose(swapped, 1 / table.loc[table["claim"] == "spectrum", "ratio"].item())


def test_a_finished_experiment_is_read_where_it_is(done, tmp_path, capsys):
    before = written(done)
    assert run(tmp_path / "new", "--reuse", str(done / "experiments/digits")) == 0
    assert not (tmp_path / "new/experiments").exists()
    assert written(done) == before
    assert verdicts(tmp_path / "new")["ratio"].tolist() == verdicts(done)["ratio"].tolist()


def test_another_experiment_is_not_taken_for_a_finished_one(tmp_path, capsys):
    options = ("--lr", "0.1", "--steps", "2", "--subset", "64", "--model-options", "depth=2", "width=16")
    options += ("--layers", "stem", "--trials", "1", "--device", "cpu", "--arms", "chain", "residual")
    assert train(["demo", "--out", str(tmp_path / "other"), *options]) == 0
    assert "steps 2 → 5" in refusal(capsys, tmp_path / "out", "--reuse", str(tmp_path / "other"))


@pytest.mark.parametrize("column", ["git_revision", "versions"])
def test_runs_of_different_code_are_refused(copy, capsys, column):
    config = copy / "experiments/digits/runs/chain-lr0.1-trial00/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {column: "other"}))
    line = refusal(capsys, copy)
    assert "mixes runs of different code" in line
    assert "another --out" in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["sped"], ["unknown claim 'sped'", "Did you mean 'speed'"]),
        (["--size", "huge"], ["--size", "huge"]),
        (["--trials", "0"], ["--trials is 0"]),
        (["--processes", "0"], ["--processes is 0"]),
        (["--trials", "3"], ["3 trials are too few for speed", "--trials 6"]),
        (["--reuse", "nowhere"], ["nowhere holds no experiment"]),
        (["--data-dir", "nowhere"], ["--data-dir nowhere does not exist"]),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, args, words):
    line = refusal(capsys, tmp_path / "out", *args)
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_a_plan_is_printed_and_nothing_is_written(tmp_path, capsys):
    assert run(tmp_path / "out", "--plan") == 0
    printed = capsys.readouterr().out
    assert "experiment digits: residual-mlp on digits, 5 steps each, seed 0" in printed
    assert "7 trials at learning rates 0.1: 14 runs" in printed
    assert "  training loss at step 5: residual below chain" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        (Comparison("loss_at_step_6", "residual", "chain", "smaller"), "a run has 5 steps"),
        (Comparison("final_los", "residual", "chain", "smaller"), "unknown measure 'final_los'"),
        (Comparison("final_loss", "residual", "chian", "smaller"), "Did you mean 'chain'"),
        (Comparison("sigma_min", "residual", "chain", "larger", map="kernel"), "the map 'kernel' is not measured"),
        (Comparison("sigma_min", "residual", "chain", "larger", layer="head"), "the layer 'head' is not measured"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    tmp_path, capsys, monkeypatch, comparison, message
):
    monkeypatch.setitem(CLAIMS, "speed", claim("speed", comparison))
    assert message in refusal(capsys, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_lists_the_claims(capsys):
    with pytest.raises(SystemExit):
        verify.main(["--help"])
    said = capsys.readouterr().out
    assert "speed" in said
    assert "--trials" in said


def test_a_size_that_trains_nothing_cannot_tell(tmp_path):
    judgement = CLAIMS["speed"].judge(ClaimInputs({}, tmp_path), "mnist")
    assert judgement.verdict is Verdict.NOT_TESTED
    assert "--size demo" in judgement.change


@pytest.mark.parametrize(
    ("counts", "is_claim", "expected"),
    [
        ((5, 0, 0), False, "supported"),
        ((5, 1, 0), False, "reversed"),
        ((5, 1, 0), True, "undecided"),
        ((1, 1, 5), True, "reversed"),
        ((2, 0, 3), False, "vacuous"),
        ((0, 0, 0), True, "vacuous"),
    ],
)
def test_statements_are_decided_by_their_checks(counts, is_claim, expected):
    assert decide_statement(*counts, is_claim=is_claim) == expected


def test_a_named_statement_that_was_not_checked_is_not_tested(tmp_path):
    def check(options):
        yield CheckedStatement("net", Statement("seen", "p > 0", 0.5, ">=", 0.1, 0.0, is_claim=True), kind="plain")

    claim = TheoryClaim(
        "toy", "s", "nowhere", "so", (), check, statements=("seen", "never seen"), quantity="Exponents p"
    )
    judgement = claim.judge(ClaimInputs({}, tmp_path), "demo")
    assert [finding.verdict for finding in judgement.findings] == [Verdict.SUPPORTED, Verdict.NOT_TESTED]
    assert judgement.verdict is Verdict.UNDECIDED
    assert judgement.answer == "It holds in 1 of 1 checks. Exponents p: 0.500 to 0.500 (seen: plain)."
