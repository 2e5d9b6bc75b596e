"""Claims that train nothing, judged in processes of their own; claims of one's own by import path."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.paper.registry import CLAIMS, chosen_claims
from skip_conditioning.experiments.claims.run.untrained_claims import untrained_judgements
from skip_conditioning.experiments.claims.verdict.outcome import Finding, Judgement, Verdict


@dataclass
class Alone:
    """A claim that measures who judges it, or fails."""

    id: str
    fails: str = ""
    planned: bool = False

    def plans(self, size):
        return {"a": None} if self.planned else {}

    def judge(self, inputs, size):
        if self.fails == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails:
            raise InputError(self.fails)
        numbers = {"pid": float(os.getpid()), "there": float(inputs.directory.is_dir())}
        return Judgement(
            Verdict.SUPPORTED, (Finding(self.id, Verdict.SUPPORTED, numbers),), size, str(inputs.directory.name)
        )


def judged(tmp_path, *claims, processes=2):
    with untrained_judgements(claims, "demo", tmp_path, None, processes) as judgements:
        return judgements()


@pytest.mark.slow
def test_claims_are_judged_elsewhere_and_those_with_plans_are_left(tmp_path):
    measured = judged(tmp_path, Alone("a"), Alone("b"), Alone("planned", planned=True))
    assert {name: one.change for name, one in measured.items()} == {"a": "a", "b": "b"}
    assert all(one.findings[0].numbers["there"] == 1 for one in measured.values())
    assert os.getpid() not in {one.findings[0].numbers["pid"] for one in measured.values()}


def test_with_one_process_this_one_judges_when_asked(tmp_path):
    measured = judged(tmp_path, Alone("a"), Alone("b"), processes=1)
    assert {one.findings[0].numbers["pid"] for one in measured.values()} == {os.getpid()}


@pytest.mark.slow
@pytest.mark.parametrize(("fails", "message"), [("no data", "no data"), ("killed", "measured for .* was killed")])
def test_what_fails_there_is_told_here(tmp_path, fails, message):
    with pytest.raises(InputError, match=message):
        judged(tmp_path, Alone("a"), Alone("b", fails))


def test_an_error_meanwhile_ends_the_processes(tmp_path):
    with pytest.raises(KeyboardInterrupt), untrained_judgements([Alone("a"), Alone("b")], "demo", tmp_path, None, 2):
        raise KeyboardInterrupt


def own(monkeypatch, **claims):
    module = ModuleType("own_claims")
    vars(module).update(claims)
    monkeypatch.setitem(sys.modules, "own_claims", module)


def test_ones_own_claims_come_after_the_registrys(monkeypatch):
    mine = CLAIMS["mnist-speed-order"].at_look(1)
    mine.id = "mine"
    own(monkeypatch, MINE=mine)
    assert [claim.id for claim in chosen_claims(("own_claims:MINE", "regularity-bound"))] == [
        "regularity-bound",
        "mine",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_claims:MISSING", "has no 'MISSING'"),
        ("own_claims:TEXT", "own_claims:TEXT' lacks id, statement"),
        ("own_claims:TWIN", "another claim with the id 'mnist-speed-order'"),
        ("no_such_module:X", "there is no module 'no_such_module'"),
        ("mnist-speed-oder", "Did you mean 'mnist-speed-order'"),
    ],
)
def test_claims_that_are_none(monkeypatch, name, message):
    own(monkeypatch, TEXT="a text", TWIN=CLAIMS["mnist-speed-order"])
    with pytest.raises(InputError, match=message):
        chosen_claims((name,))


def test_the_folder_of_a_claim_that_cannot_be_made_is_an_error(tmp_path: Path):
    (tmp_path / "a").write_text("in the way")
    with pytest.raises((InputError, FileExistsError)):
        judged(tmp_path, Alone("a"), processes=1)
