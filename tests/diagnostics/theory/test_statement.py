"""Statements by hand: verdict, slack, rounding, what was not measured, and a violation that can be read back."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skip_conditioning.diagnostics.theory.statement import Statement

INF, NAN = math.inf, math.nan
REAL = st.floats(allow_nan=False, allow_infinity=False, width=32)


def statement(left, relation, right, error=0.0, **more):
    return Statement("name", "a ? b", left, relation, right, error, **more)


CASES = [
    (2.0, ">=", 1.0, 0.0, "", 1.0, "holds"),
    (1.0, ">=", 2.0, 0.0, "", -1.0, "violated"),
    (1.0, "<=", 2.0, 0.0, "", 1.0, "holds"),
    (2.0, "<=", 1.0, 0.0, "", -1.0, "violated"),
    (1.0, "=", 1.0, 0.0, "", 0.0, "holds"),
    (1.0, "=", 2.0, 0.0, "", -1.0, "violated"),
    (2.0, "=", 1.0, 0.0, "", -1.0, "violated"),
    # Rounding: as much as the error is forgiven, no more.
    (1.0, ">=", 1.5, 0.5, "", -0.5, "holds"),
    (1.0, ">=", 1.5, 0.49, "", -0.5, "violated"),
    (1.0, "=", 0.5, 0.5, "", -0.5, "holds"),
    (1.0, "=", 0.5, 0.49, "", -0.5, "violated"),
    # A cause makes it vacuous, but does not hide a violation.
    (2.0, ">=", 0.0, 0.0, "no skip", 2.0, "vacuous"),
    (1.0, ">=", 2.0, 0.0, "no skip", -1.0, "violated"),
    # What was not measured does not hold, unless there is a reason.
    (NAN, ">=", 1.0, 0.0, "", NAN, "violated"),
    (1.0, "<=", NAN, 0.0, "", NAN, "violated"),
    (NAN, "=", NAN, INF, "", NAN, "violated"),
    (NAN, ">=", 1.0, 0.0, "too large", NAN, "vacuous"),
    # Infinite sides: ordered where they differ, not measured where they do not.
    (INF, ">=", 1.0, 0.0, "", INF, "holds"),
    (1.0, ">=", INF, 1.0, "", -INF, "violated"),
    (INF, "=", INF, 0.0, "", NAN, "violated"),
]


@pytest.mark.parametrize(("left", "relation", "right", "error", "cause", "slack", "verdict"), CASES)
def test_verdict_and_slack(left, relation, right, error, cause, slack, verdict):
    measured = statement(left, relation, right, error, cause=cause)
    assert measured.slack == pytest.approx(slack, nan_ok=True)
    assert measured.verdict == verdict


@pytest.mark.parametrize("right", [2.0, INF])
def test_an_error_that_is_not_known_forgives_nothing(right):
    assert statement(0.0, ">=", right, NAN).verdict == "violated"


@given(REAL, REAL, st.floats(0, 1e30), st.sampled_from([">=", "<=", "="]))
def test_sides_and_relation_can_be_swapped_together(left, right, error, relation):
    mirrored = {">=": "<=", "<=": ">=", "=": "="}[relation]
    one, other = statement(left, relation, right, error), statement(right, mirrored, left, error)
    assert (one.slack, one.verdict) == (other.slack, other.verdict)


@given(REAL, REAL, st.floats(0, 1e30))
def test_an_identity_is_both_inequalities(left, right, error):
    both = [statement(left, relation, right, error).verdict for relation in (">=", "<=")]
    assert (statement(left, "=", right, error).verdict == "holds") == (both == ["holds", "holds"])


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.sampled_from([">=", "<=", "="]))
def test_a_violation_is_printed_to_all_digits(left, right, relation):
    measured = statement(left, relation, right, layer="blocks.1")
    assert str(measured).startswith("name at blocks.1: a ? b: ")
    if measured.verdict == "violated":
        sign = {">=": "≥", "<=": "≤", "=": "="}[relation]
        first, rest = str(measured).removeprefix("name at blocks.1: a ? b: ").split(f" {sign} ")
        second, slack = rest.removesuffix(": violated").split(", slack ")
        assert (float(first), float(second)) == (left, right)
        assert float(slack) == measured.slack or math.isnan(measured.slack)


def test_what_holds_is_printed_short():
    assert str(statement(1 / 3, ">=", 0.25)) == "name: a ? b: 0.3333 ≥ 0.25, slack 0.08333: holds"
    vacuous = statement(1 / 3, ">=", 0.0, cause="dead units: 3 of 4")
    assert str(vacuous) == "name: a ? b: 0.3333 ≥ 0, slack 0.3333: vacuous (dead units: 3 of 4)"


def test_a_row_has_every_attribute_and_what_follows_from_them():
    measured = statement(2.0, "<=", 1.0, 0.5, layer="head", cause="none", note="seen twice")
    row = measured.as_row()
    names = {"name": "statement"}
    given = {names.get(one.name, one.name): getattr(measured, one.name) for one in dataclasses.fields(measured)}
    assert row == given | {"slack": -1.0, "verdict": "violated"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        measured.left = 0.0


def test_an_infinite_error_forgives_nothing():
    assert Statement("s", "a = b", 5.0, "=", 0.0, float("inf")).verdict == "violated"
    assert Statement("s", "a = b", 5.0, "=", 0.0, float("inf"), cause="not measured").verdict == "vacuous"
