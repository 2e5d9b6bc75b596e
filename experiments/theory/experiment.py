"""An experiment on the theory: its options, and the statements that it checks, as a table, in print and in a figure."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pandas as pd
import tyro
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.diagnostics.theory.statement import Statement, Verdict
from skip_conditioning.experiments.config.options import default_data_dir
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
class TheoryOptions:
    """Check the theory's statements on networks that train, and report each as held, violated or vacuous."""

    out: Path
    """Folder for tables and figures."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """What to check: chain-rule, regularity, skips, random-matrices, pl, curvature, convergence; by default all."""

    quick: bool = False
    """Check small networks for a few steps: under a minute instead of under ten."""

    seed: int = 0
    """Seed of initialisations and of the choice of images."""

    data_dir: Path | None = field(default_factory=default_data_dir)
    """Folder of the data sets, by default $SKIP_DATA_DIR; without it only the bundled digits are used."""

    model: str | None = None
    """A network of yours to check instead: package.module:factory, or a name that `skip-conditioning models` lists."""

    model_options: tuple[str, ...] = ()
    """Options of that network, each name=value, such as depth=16."""

    dataset: str = "digits"
    """Images for that network: digits (28×28, one channel), mnist, cifar10, cifar100 or a name on the Hub."""

    layers: tuple[str, ...] | None = None
    """Modules behind which that network is cut into a chain of layers, names or globs; by default its blocks."""

    probe_size: int = 16
    """Number of images on which that network is trained and checked; costs grow with its square."""


@dataclass(frozen=True)
class CheckedStatement:
    """A statement, and the network on which it was checked.

    Attributes:
        network: A description of the network, short enough for a table.
        statement: Both sides and the verdict.
        step: Optimiser steps taken; None for a network that is not trained.
        variant: What distinguishes several checks of one network, such as the initialisation.
        kind: Of the network, such as ``weight norm``: claims are about networks of some kinds.
    """

    network: str
    statement: Statement
    step: int | None = None
    variant: str = ""
    kind: str = ""


#: An experiment writes its own tables into ``TheoryOptions.out`` and returns every statement that it checked.
TheoryExperiment = Callable[[TheoryOptions], Iterable[CheckedStatement]]

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


def statement_rows(checks: Mapping[str, Sequence[CheckedStatement]]) -> list[dict[str, Any]]:
    """Every check as a row of ``theory.parquet``: experiment, network, step, statement, both sides and verdict."""
    return [
        {
            "experiment": name,
            "network": check.network,
            "variant": check.variant,
            "kind": check.kind,
            "step": check.step,
            **check.statement.as_row(),
        }
        for name, of_experiment in checks.items()
        for check in of_experiment
    ]


def print_checks(name: str, checks: Sequence[CheckedStatement], seconds: float) -> None:
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


def print_conclusion(checks: Mapping[str, Sequence[CheckedStatement]]) -> None:
    """Print how many checks of theorems, and of claims, had each verdict."""
    statements = [check.statement for of_experiment in checks.values() for check in of_experiment]
    for kind, is_claim in (("theorems", False), ("claims", True)):
        verdicts = [statement.verdict for statement in statements if statement.is_claim == is_claim]
        if verdicts:
            counts = ", ".join(f"{verdicts.count(verdict)} {words}" for verdict, words in _WORDS[is_claim].items())
            print(f"{len(verdicts)} checks of {kind}: {counts}")


def _groups(checks: Sequence[CheckedStatement]) -> list[list[CheckedStatement]]:
    def key(check: CheckedStatement) -> tuple[str, str, str]:
        return check.statement.name, check.network, check.statement.verdict

    order = {name: rank for rank, name in enumerate(dict.fromkeys(check.statement.name for check in checks))}
    ordered = sorted(checks, key=lambda check: (order[check.statement.name], key(check)))
    return [list(group) for _, group in groupby(ordered, key)]


def _line(group: Sequence[CheckedStatement]) -> tuple[str, ...]:
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


def _causes(checks: Sequence[CheckedStatement]) -> list[str]:
    """Why statements are vacuous: the first of the causes that differ only in their numbers, as from step to step."""
    causes: dict[str, str] = {}
    for check in checks:
        if check.statement.verdict == "vacuous":
            line = f"{check.statement.name}, {check.network}: {check.statement.cause}"
            causes.setdefault(re.sub(r"\d[\d.e+-]*", "", line), line)
    return list(causes.values())


def _read(stem: Path) -> pd.DataFrame:
    path = stem.with_suffix(".parquet")
    if not path.exists():
        raise NothingToDrawError(f"{path} is missing")
    return pd.read_parquet(path)
