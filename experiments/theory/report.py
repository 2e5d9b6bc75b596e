"""What an experiment on the theory gives back: checks of statements, as a table on disk, a printed one and a figure."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.tables import clear_disk_errors, read_experiment, write_parquet
from skip_conditioning.diagnostics.theory.statement import Statement, Verdict
from skip_conditioning.experiments.theory.options import TheoryOptions
from skip_conditioning.figures.bounds_along_training import bounds_along_training
from skip_conditioning.figures.convergence_at_infinity import convergence_at_infinity
from skip_conditioning.figures.curvature_growth import curvature_growth
from skip_conditioning.figures.drawing.saving import NothingToDrawError
from skip_conditioning.figures.random_matrices import random_matrices
from skip_conditioning.figures.regularity_terms import regularity_terms

_COLUMNS = ("statement", "network", "checked", "left side", "", "right side", "slack", "verdict")
#: Words for each verdict on a theorem, and (True) on a claim, which may come out either way.
_WORDS: dict[bool, dict[Verdict, str]] = {
    False: {"holds": "hold", "vacuous": "are vacuous", "violated": "are violated"},
    True: {"holds": "hold", "vacuous": "are vacuous", "violated": "do not hold"},
}
_SIGNS = {">=": "≥", "<=": "≤", "=": "="}


@dataclass(frozen=True)
class Check:
    """A statement, and the network on which it was checked.

    Attributes:
        network: A description of the network, short enough for a table.
        statement: Both sides and the verdict.
        step: Optimiser steps taken; None for a network that is not trained.
        variant: What distinguishes several checks of one network, such as the initialisation.
    """

    network: str
    statement: Statement
    step: int | None = None
    variant: str = ""


#: An experiment writes its own tables into ``TheoryOptions.out`` and returns every statement that it checked.
TheoryExperiment = Callable[[TheoryOptions], Iterable[Check]]

#: Figures by the name of their experiment: the figure's name, and a function that draws it from the tables in a folder.
FIGURES: Final[Mapping[str, tuple[str, Callable[[Path], Figure]]]] = {
    "pl": ("bounds_along_training", lambda out: bounds_along_training(read_experiment(out / "pl"))),
    "curvature": (
        "curvature_growth",
        lambda out: curvature_growth(_read(out / "curvature_growth"), _read(out / "curvature_growth_fits")),
    ),
    "convergence": (
        "convergence_at_infinity",
        lambda out: convergence_at_infinity(_read(out / "convergence"), _read(out / "convergence_fits")),
    ),
    "random-matrices": ("random_matrices", lambda out: random_matrices()),
    "regularity": ("regularity_terms", lambda out: regularity_terms(_read(out / "regularity"))),
}


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as one Parquet file, whole or not at all.

    Raises:
        InputError: It cannot be written, or the disk is full.
    """
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(pa.Table.from_pandas(frame, preserve_index=False), path)


def statement_rows(checks: Mapping[str, Sequence[Check]]) -> list[dict[str, Any]]:
    """Every check as a row of ``theory.parquet``: experiment, network, step, statement, both sides and verdict."""
    return [
        {
            "experiment": name,
            "network": check.network,
            "variant": check.variant,
            "step": check.step,
            **check.statement.as_row(),
        }
        for name, of_experiment in checks.items()
        for check in of_experiment
    ]


def print_checks(name: str, checks: Sequence[Check], seconds: float) -> None:
    """Print one line for each statement, network and verdict: of the check with the least slack.

    Each violation of a theorem is printed as well, to all digits, with the command that repeats it.
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
            print(f"    repeat with: skip-conditioning theory {name}, and the same options")


def print_conclusion(checks: Mapping[str, Sequence[Check]]) -> None:
    """Print how many checks of theorems, and of claims, had each verdict."""
    statements = [check.statement for of_experiment in checks.values() for check in of_experiment]
    for kind, is_claim in (("theorems", False), ("claims", True)):
        verdicts = [statement.verdict for statement in statements if statement.is_claim == is_claim]
        if verdicts:
            counts = ", ".join(f"{verdicts.count(verdict)} {words}" for verdict, words in _WORDS[is_claim].items())
            print(f"{len(verdicts)} checks of {kind}: {counts}")


def _groups(checks: Sequence[Check]) -> list[list[Check]]:
    def key(check: Check) -> tuple[str, str, str]:
        return check.statement.name, check.network, check.statement.verdict

    order = {name: rank for rank, name in enumerate(dict.fromkeys(check.statement.name for check in checks))}
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
    """Why statements are vacuous: the first of the causes that differ only in their numbers, as from step to step."""
    causes: dict[str, str] = {}
    for check in checks:
        if check.statement.verdict == "vacuous":
            line = f"{check.statement.name}, {check.network}: {check.statement.cause.split('; ')[0]}"
            causes.setdefault(re.sub(r"\d[\d.e+-]*", "", line), line)
    return list(causes.values())


def _read(stem: Path) -> pd.DataFrame:
    path = stem.with_suffix(".parquet")
    if not path.exists():
        raise NothingToDrawError(f"{path} is missing")
    return pd.read_parquet(path)
