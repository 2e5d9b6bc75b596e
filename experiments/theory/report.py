"""Statements as a printed table and as rows on disk."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from skip_conditioning.diagnostics.theory.statement import Statement, Verdict
from skip_conditioning.experiments.theory.setting import Check

_COLUMNS = ("statement", "network", "checked", "left side", "", "right side", "slack", "verdict")
#: What is said of each verdict on a theorem, and on a claim, which may come out either way.
_WORDS: dict[bool, dict[Verdict, str]] = {
    False: {"holds": "hold", "vacuous": "are vacuous", "violated": "are violated"},
    True: {"holds": "hold", "vacuous": "are vacuous", "violated": "do not hold"},
}
_SIGNS = {">=": "≥", "<=": "≤", "=": "="}


def statement_rows(found: Mapping[str, Sequence[Check]]) -> list[dict[str, Any]]:
    """Every statement as a row of ``theory.parquet``: what was checked, where, both sides and the verdict."""
    return [
        {
            "experiment": name,
            "network": check.network,
            "variant": check.variant,
            "step": check.step,
            **check.statement.as_row(),
        }
        for name, checks in found.items()
        for check in checks
    ]


def print_checks(name: str, checks: Sequence[Check], seconds: float) -> None:
    """Print one line for each statement, network and verdict: that with the least slack of those checked.

    A violation is printed by itself, to all digits, with what repeats it.
    """
    lines = [_line(group) for group in _groups(checks)]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *lines, strict=True)]
    print(f"{name} ({seconds:.0f} s)")
    for line in (_COLUMNS, *lines):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for cause in _causes(checks):
        print(f"  vacuous: {cause}")
    for check in checks:
        if check.statement.verdict == "violated" and not check.statement.is_claim:
            where = ", ".join(filter(None, (check.network, check.variant, f"step {check.step}")))
            print(f"  VIOLATED: {where}: {check.statement}")
            print(f"    {check.statement.note}")
            print(f"    repeat with: python -m experiments.theory {name}, and the same options")


def print_conclusion(found: Mapping[str, Sequence[Check]]) -> None:
    """Print how many theorems and how many claims came out how."""
    statements = [check.statement for checks in found.values() for check in checks]
    for kind, is_claim in (("theorems", False), ("claims", True)):
        verdicts = [one.verdict for one in statements if one.is_claim == is_claim]
        if verdicts:
            counts = ", ".join(f"{verdicts.count(verdict)} {words}" for verdict, words in _WORDS[is_claim].items())
            print(f"{len(verdicts)} checks of {kind}: {counts}")


def _groups(checks: Sequence[Check]) -> list[list[Check]]:
    def key(check: Check) -> tuple[str, str, str]:
        return check.statement.name, check.network, check.statement.verdict

    order = {one: place for place, one in enumerate(dict.fromkeys(check.statement.name for check in checks))}
    ordered = sorted(checks, key=lambda check: (order[check.statement.name], key(check)))
    return [list(group) for _, group in groupby(ordered, key)]


def _line(group: Sequence[Check]) -> tuple[str, ...]:
    tightest = min(group, key=lambda check: _relative_slack(check.statement)).statement
    return (
        f"{tightest.name} (claim)" if tightest.is_claim else tightest.name,
        group[0].network,
        str(len(group)),
        f"{tightest.left:.4g}",
        _SIGNS[tightest.relation],
        f"{tightest.right:.4g}",
        f"{tightest.slack:.3g}",
        "does not hold" if tightest.is_claim and tightest.verdict == "violated" else tightest.verdict,
    )


def _relative_slack(statement: Statement) -> float:
    scale = max(abs(statement.left), abs(statement.right))
    return statement.slack / scale if scale else 0.0


def _causes(checks: Sequence[Check]) -> list[str]:
    """Why statements are vacuous; of causes that differ in their numbers only, from step to step, the first."""
    found: dict[str, str] = {}
    for check in checks:
        if check.statement.verdict == "vacuous":
            line = f"{check.statement.name}, {check.network}: {check.statement.cause.split('; ')[0]}"
            found.setdefault(re.sub(r"\d[\d.e+-]*", "", line), line)
    return list(found.values())
