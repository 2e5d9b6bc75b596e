"""What judging leaves in a claim's folder: figures, the same at every repeat, and tables for readers."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, empty_frame, spectra_frame, write_table
from skip_conditioning.diagnostics.theory.statement import Statement
from skip_conditioning.experiments.claims.paper import skip_shifts_spectrum
from skip_conditioning.experiments.claims.paper.skip_shifts_spectrum import SKIP_SHIFTS_SPECTRUM
from skip_conditioning.experiments.claims.paper.theory_claims import TheoryClaim
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs, Plan
from skip_conditioning.experiments.claims.verdict.outcome import Comparison, Finding, Reason, Verdict
from skip_conditioning.experiments.claims.verdict.paired_claim import PairedClaim, change
from skip_conditioning.experiments.config.presets import preset
from skip_conditioning.experiments.theory.experiment import CheckedStatement

ARMS, TRIALS = ("chain", "residual"), 7
SPEED = Comparison("loss_at_step_2", "residual", "chain", "smaller")
CLAIM = PairedClaim(
    "speed",
    "Skips are fast.",
    "nowhere",
    "so",
    (),
    {"demo": {"digits": Plan(preset("demo", arms=ARMS, trials=TRIALS))}},
    (SPEED,),
)


def tables(spectra=True):
    random = np.random.default_rng(0)
    runs, metrics, rows = [], [], []
    for arm in reversed(ARMS):
        for trial in range(TRIALS):
            run_id = f"{arm}-{trial}"
            runs.append({"run_id": run_id, "arm": arm, "trial": trial, "lr": 0.1, "status": "finished"})
            losses = np.geomspace(3, 1 if arm == "chain" else 0.5, 6) * np.exp(0.01 * random.normal(size=6))
            metrics += [{"run_id": run_id, "step": k, "split": "train", "loss": loss} for k, loss in enumerate(losses)]
            row = {"run_id": run_id, "step": 0, "map": "tail", "layer": "stem", "batch_mode": "batch", "floor": 1e-9}
            rows.append(row | {"values": np.sort(random.random(8))[::-1], "resolved": True, "condition_number": 3.0})
    columns = ("model", "dataset")
    return Experiment(
        pd.DataFrame(runs).reindex(columns=[*runs[0], *columns]).assign(loss_threshold=1.0),
        pd.DataFrame(metrics),
        spectra_frame(rows if spectra else []),
        empty_frame("skipped"),
    )


def judged(claim, folder, measured=None):
    return claim.judge(ClaimInputs({"digits": measured or tables()}, folder), "demo")


def test_paired_claims_show_curves_and_spectra_drawn_the_same_every_time(tmp_path):
    figures = judged(CLAIM, tmp_path).figures
    assert [path.name for path in figures] == ["loss_curves.svg", "singular_value_histograms.svg"]
    before = [path.read_bytes() for path in figures]
    assert [path.read_bytes() for path in judged(CLAIM, tmp_path).figures] == before
    # Arms stand in the order of the plan, whatever that of the tables.
    assert before[0].index(b"chain") < before[0].index(b"residual")


def test_a_figure_that_cannot_be_drawn_is_left_out(tmp_path):
    assert [path.name for path in judged(CLAIM, tmp_path, tables(spectra=False)).figures] == ["loss_curves.svg"]
    assert judged(replace(CLAIM, figures=()), tmp_path).figures == ()


def test_figures_of_several_experiments_are_told_apart(tmp_path):
    plans = {"demo": dict.fromkeys(("one", "two"), Plan(preset("demo", arms=ARMS, trials=TRIALS)))}
    claim = replace(CLAIM, by_size=plans, figures=("loss_curves",))
    measured = claim.judge(ClaimInputs(dict.fromkeys(("one", "two"), tables()), tmp_path), "demo")
    assert [path.name for path in measured.figures] == ["loss_curves_one.svg", "loss_curves_two.svg"]


def test_secondary_comparisons_are_corrected_by_themselves_and_many_leave_theirs_open(tmp_path):
    claim = replace(CLAIM, secondary=(SPEED,) * 20)
    measured = judged(claim, tmp_path)
    assert measured.verdict is Verdict.SUPPORTED
    first, second = measured.findings[:2]
    assert first.what == "training loss at step 2: residual below chain"
    assert (second.verdict, second.reason, second.decides) == (Verdict.UNDECIDED, Reason.TOO_FEW_PAIRS, False)
    assert claim.fewest_trials("digits", "demo", 1) == CLAIM.fewest_trials("digits", "demo", 1) <= TRIALS


def test_trials_that_are_not_known_to_be_needed_do_not_hide_those_that_are():
    findings = [Finding("a", Verdict.UNDECIDED, numbers) for numbers in ({}, {"trials_needed": 31.0})]
    assert change(Verdict.UNDECIDED, findings) == change(Verdict.UNDECIDED, findings[::-1])
    assert "--trials 31" in change(Verdict.UNDECIDED, findings)
    more = Finding("b", Verdict.UNDECIDED, {"trials_needed": np.inf})
    assert "any affordable" in change(Verdict.UNDECIDED, [*findings, more])


def test_a_claim_on_steps_says_how_thresholds_are_fixed():
    with pytest.raises(InputError, match="thresholds=Thresholds"):
        replace(CLAIM, comparisons=(Comparison("steps", "residual", "chain", "smaller"),))


def check_stub(setting):
    """One statement that holds, on the data that the setting names."""
    write_table(pd.DataFrame({"x": [1]}), setting.out / "regularity.parquet")
    held = Statement("s", "a ≥ b", 2.0, ">=", 1.0, 0.0)
    yield CheckedStatement("net", held, 0, kind=f"on {setting.data_dir}")
    yield CheckedStatement("another", Statement("t", "a ≥ b", np.inf, "<=", np.nan, 0.0), 0)


THEORY = TheoryClaim("theory", "So it is.", "nowhere", "so", (), check_stub)


def test_a_claim_counts_networks_of_its_kinds_and_its_own_statements(tmp_path):
    measured = THEORY.judge(ClaimInputs({}, tmp_path), "demo")
    assert (measured.verdict, measured.findings[1].reason) == (Verdict.REVERSED, Reason.VIOLATED)
    for choice in ({"kinds": ("on None",)}, {"statements": ("s",)}):
        chosen = replace(THEORY, **choice).judge(ClaimInputs({}, tmp_path), "demo")
        assert chosen.verdict is Verdict.SUPPORTED
        assert [finding.decides for finding in chosen.findings] == [True, False]
        assert chosen.answer == "It holds in 1 of 1 checks."
    nothing = replace(THEORY, kinds=("none of them",)).judge(ClaimInputs({}, tmp_path), "demo")
    assert nothing.verdict is Verdict.NOT_TESTED


def test_theory_runs_on_the_data_given_beyond_the_demo(tmp_path):
    for size, name in (("demo", "None"), ("mnist", "data")):
        judgement = THEORY.judge(ClaimInputs({}, tmp_path / size, data_dir=tmp_path / "data"), size)
        assert judgement.findings[0].what.endswith("None" if size == "demo" else str(tmp_path / name))
        assert "fails: ∞ against –" in judgement.findings[1].note


def test_what_is_measured_by_a_claim_itself_is_written_for_readers_and_never_read_back(tmp_path):
    measured = THEORY.judge(ClaimInputs({}, tmp_path), "demo")
    path = tmp_path / "statements.parquet"
    written = pd.read_parquet(path)
    assert written["verdict"].tolist() == ["holds", "violated"]
    write_table(written.assign(verdict="holds"), path)
    assert repr(THEORY.judge(ClaimInputs({}, tmp_path), "demo")) == repr(measured)
    pd.testing.assert_frame_equal(pd.read_parquet(path), written)


def test_skip_shifts_says_that_its_ratios_are_bounds(tmp_path, monkeypatch):
    scale = replace(
        skip_shifts_spectrum._DEMO, trials=7, draws=7, sizes=(16, 32), networks=skip_shifts_spectrum._NETWORKS[1:2]
    )
    monkeypatch.setattr(skip_shifts_spectrum, "_scale", lambda size: scale)
    measured = SKIP_SHIFTS_SPECTRUM.judge(ClaimInputs({}, tmp_path), "demo")
    assert [path.name for path in measured.figures] == ["random_matrices.svg"]
    network = measured.findings[1]
    assert network.what == "smallest singular value: skip on above skip off, residual MLP, batch norm, ReLU"
    assert (network.numbers["ratio_bound"], network.numbers["ratio_high"]) == (1, np.inf)
    table = pd.read_parquet(tmp_path / "smallest_singular_values.parquet")
    assert table.groupby(["what", "arm"], sort=False).size().tolist() == [14, 14, 28, 28]


def test_theory_claims_show_their_figure(tmp_path):
    def check(setting):
        row = {"network": "net", "step": 0, "subspace": "all", "lambda": 1.0, "layer": "a", "lambda_share": 0.5}
        rows = [{**row, "kind": kind, "term": 0.1, "cause": ""} for kind in ("plain", "restricted")]
        write_table(pd.DataFrame(rows), setting.out / "regularity.parquet")
        yield CheckedStatement("net", Statement("s", "a ≥ b", 2.0, ">=", 1.0, 0.0), 0)

    claim = replace(THEORY, check=check, figure="regularity")
    (figure,) = claim.judge(ClaimInputs({}, tmp_path), "demo").figures
    before = figure.read_bytes()
    assert figure == tmp_path / "regularity_terms.svg"
    assert claim.judge(ClaimInputs({}, tmp_path), "demo").figures[0].read_bytes() == before
    without_terms = replace(
        claim, check=lambda _: [CheckedStatement("net", Statement("s", "a ≥ b", 2.0, ">=", 1.0, 0.0), 0)]
    )
    assert without_terms.judge(ClaimInputs({}, tmp_path / "bare"), "demo").figures == ()
