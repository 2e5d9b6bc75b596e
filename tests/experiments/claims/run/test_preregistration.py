"""What is registered before a verdict: hashes, edits, differences, and more trials afterwards."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.paper.registry import CLAIMS, chosen_claims
from skip_conditioning.experiments.claims.run import preregistration
from skip_conditioning.experiments.claims.run.experiments import shared_experiments
from skip_conditioning.experiments.claims.run.preregistration import FILE, Request, read, register
from skip_conditioning.experiments.claims.statistics.looks import FIRST_LOOK_SHARE
from skip_conditioning.experiments.claims.verdict.claim import Plan
from skip_conditioning.experiments.claims.verdict.outcome import Comparison
from skip_conditioning.experiments.claims.verdict.paired_claim import PairedClaim
from skip_conditioning.experiments.config.presets import preset

CLAIM = PairedClaim(
    id="bigger-is-faster",
    statement="Bigger is faster.",
    source="nowhere",
    predicted="smaller loss",
    controls=("none",),
    by_size={"demo": {"digits": Plan(preset("demo", arms=("chain", "residual"), trials=8))}},
    comparisons=(Comparison("loss_at_step_2", "residual", "chain", "smaller"),),
)


@pytest.fixture(autouse=True)
def _same_code(monkeypatch):
    """This checkout may be committed to meanwhile."""
    monkeypatch.setattr(preregistration, "git_revision", lambda: "a1b2c3")


def request(*claims, trials=None, size="demo"):
    return Request(claims or (CLAIM,), size, trials)


def test_writes_all_that_decides_and_its_hash(tmp_path):
    measured = register(tmp_path, request())
    (entry,) = json.loads((tmp_path / FILE).read_text())["entries"]
    content = entry["content"]
    assert entry["sha256"] == measured.sha256
    assert len(measured.sha256) == 64
    assert (content["size"], content["trials"], content["git_revision"]) == ("demo", None, "a1b2c3")
    claim = content["claims"]["bigger-is-faster"]
    assert claim["predicted"] == "smaller loss"
    assert claim["registered"]["rule"] == {"level": 0.05, "margin": 1.1}
    assert claim["registered"]["plans"]["digits"]["arms"] == ["chain", "residual"]


def test_the_same_again_changes_nothing(tmp_path):
    first = register(tmp_path, request())
    before = (tmp_path / FILE).read_bytes()
    assert register(tmp_path, request()) == first
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new"), [('"level": 0.05', '"level": 0.5'), ('"smaller"', '"larger"'), ("a1b2", "b2b2")]
)
def test_refuses_a_hand_edited_file(tmp_path, old, new):
    register(tmp_path, request())
    text = (tmp_path / FILE).read_text()
    assert old in text
    (tmp_path / FILE).write_text(text.replace(old, new))
    with pytest.raises(InputError, match="was changed after it was written"):
        register(tmp_path, request())


def test_refuses_an_edit_with_a_new_hash_by_what_the_code_says(tmp_path):
    forged = replace(CLAIM, rule=replace(CLAIM.rule, level=0.5))
    register(tmp_path, request(forged))
    with pytest.raises(InputError, match=r"rule\.level 0\.5 → 0\.05"):
        register(tmp_path, request())


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"entries": []}', '{"entries": [{"content": 3}]}'])
def test_refuses_a_file_that_cannot_be_read(tmp_path, broken):
    (tmp_path / FILE).write_text(broken)
    with pytest.raises(InputError, match="preregistration"):
        register(tmp_path, request())


def test_refuses_other_claims_another_size_and_other_code(tmp_path, monkeypatch):
    register(tmp_path, request())
    other = replace(CLAIM, id="smaller-is-faster")
    with pytest.raises(InputError, match=r"registered for bigger-is-faster, not for .* smaller-is-faster"):
        register(tmp_path, request(CLAIM, other))
    with pytest.raises(InputError, match="size demo → mnist"):
        register(tmp_path, request(size="mnist"))
    monkeypatch.setattr(preregistration, "git_revision", lambda: "d4e5f6")
    with pytest.raises(InputError, match="git_revision a1b2c3 → d4e5f6"):
        register(tmp_path, request())


def test_refuses_a_directory_with_results_and_no_registration(tmp_path):
    (tmp_path / "experiments").mkdir()
    with pytest.raises(InputError, match="it was not registered"):
        register(tmp_path, request())


def test_more_trials_are_an_amendment_that_keeps_what_was_written(tmp_path):
    first = register(tmp_path, request())
    second = register(tmp_path, request(trials=20))
    assert second.entries[0] == first.entries[0]
    assert (second.trials, second.looks, second.content["claims"]) == (20, 2, first.content["claims"])
    assert register(tmp_path, request()) == second  # the command without --trials goes on with those
    assert register(tmp_path, request(trials=20)) == second
    with pytest.raises(InputError, match="fewer than the 20 registered"):
        register(tmp_path, request(trials=10))


def test_fewer_trials_than_planned_are_refused_afterwards(tmp_path):
    register(tmp_path, request())
    with pytest.raises(InputError, match="fewer than the 8 registered"):
        register(tmp_path, request(trials=7))


def test_a_dropped_amendment_shows_where_it_is_not_the_last(tmp_path):
    for trials in (None, 10, 20):
        register(tmp_path, request(trials=trials))
    content = json.loads((tmp_path / FILE).read_text())
    del content["entries"][1]
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match="hash of entry 2"):
        read(tmp_path)


def test_all_looks_together_spend_no_more_than_the_level():
    spent = [CLAIM.at_look(look).level for look in range(1, 40)]
    assert spent[0] == FIRST_LOOK_SHARE * CLAIM.rule.level
    assert sorted(spent, reverse=True) == spent
    assert sum(spent) == pytest.approx(CLAIM.rule.level)


@pytest.mark.parametrize("size", ["demo", "mnist", "cifar"])
def test_every_claim_registers_plain_values_and_has_trials_enough(size):
    for name, claim in CLAIMS.items():
        assert claim.id == name
        registered = claim.registered(size)
        json.dumps(registered, allow_nan=False)
        assert registered == claim.registered(size)
        for experiment in shared_experiments([claim], size, None, Path("o")):
            for (_, plan), used in experiment.plans.items():
                assert used.trials >= claim.fewest_trials(plan, size, len(experiment.config.optimisation.lr))


def test_claims_that_differ_in_arms_and_trials_share_an_experiment(tmp_path):
    plan = Plan(preset("demo", arms=("chain", "gain-2"), trials=12))
    other = replace(CLAIM, id="other", by_size={"demo": {"mine": plan}})
    (shared,) = shared_experiments([CLAIM, other], "demo", None, tmp_path)
    assert shared.config.network.arms == ("chain", "residual", "gain-2")
    assert shared.config.optimisation.trials == 12
    third = replace(CLAIM, id="third", by_size={"demo": {"digits": Plan(plan.config.changed(steps=3))}})
    both = shared_experiments([CLAIM, third], "demo", None, tmp_path)
    assert [experiment.name for experiment in both] == ["digits", "digits-2"]


def test_an_unknown_claim_is_told_near_matches():
    with pytest.raises(InputError, match="Did you mean 'mnist-speed-order'"):
        chosen_claims(("mnist-speed-oder",))
    assert [claim.id for claim in chosen_claims(())] == list(CLAIMS)
