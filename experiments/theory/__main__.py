"""Check the theory in numbers: ``python -m experiments.theory [NAME…] --out DIR``.

Prints every statement with both sides, its slack and whether it holds, is violated or says nothing, and writes tables
and figures. ``--help`` lists the options, and the experiments that NAME can be.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import tyro

from skip_conditioning.diagnostics.errors import InputError, UnsupportedModelError, near_matches
from skip_conditioning.diagnostics.tables import clear_disk_errors
from skip_conditioning.experiments.config.command_line import parse_options, run_command
from skip_conditioning.experiments.processes.threads import one_thread
from skip_conditioning.experiments.theory.convergence import run as check_convergence
from skip_conditioning.experiments.theory.curvature_growth import run as check_curvature
from skip_conditioning.experiments.theory.figures import FIGURES
from skip_conditioning.experiments.theory.layers import check_chain_rule, check_regularity, check_skips
from skip_conditioning.experiments.theory.pl_along_training import check_pl_chain
from skip_conditioning.experiments.theory.random_matrices import run as check_random_matrices
from skip_conditioning.experiments.theory.report import print_checks, print_conclusion, statement_rows
from skip_conditioning.experiments.theory.setting import Check, Experiment, Setting, write_table
from skip_conditioning.figures.drawing.saving import save

EXPERIMENTS: dict[str, Experiment] = {
    "chain-rule": check_chain_rule,
    "regularity": check_regularity,
    "skips": check_skips,
    "random-matrices": check_random_matrices,
    "pl": check_pl_chain,
    "curvature": check_curvature,
    "convergence": check_convergence,
}

#: What is about no network but our own.
_OURS_ONLY = ("random-matrices", "curvature", "convergence")


@dataclass(frozen=True)
class TheoryOptions:
    """Check the theory's statements on networks that train, and report each as held, violated or vacuous."""

    out: Path
    """Directory for tables and figures."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """What to check: chain-rule, regularity, skips, random-matrices, pl, curvature, convergence; by default all."""

    quick: bool = False
    """Check small networks for a few steps: under a minute instead of under ten."""

    seed: int = 0
    """Of initialisations and of the images drawn."""

    data_dir: Path | None = field(
        default_factory=lambda: Path(os.environ["SKIP_DATA_DIR"]) if os.environ.get("SKIP_DATA_DIR") else None
    )
    """Folder of the data sets, by default $SKIP_DATA_DIR; without it only the bundled digits are used."""

    model: str | None = None
    """A network of yours to check instead: package.module:factory, or a name that `python -m models` lists."""

    model_options: tuple[str, ...] = ()
    """Options of that network, each name=value, such as depth=16."""

    dataset: str = "digits"
    """What that network sees: digits (28×28, one channel), mnist, cifar10, cifar100 or a name on the Hub."""

    layers: tuple[str, ...] | None = None
    """Modules that network is cut behind into a chain of layers, names or globs; None takes the blocks."""

    samples: int = 16
    """On how many images that network is checked, which are all that it is trained on; costs grow with their square."""


def check(options: TheoryOptions) -> None:
    """Run the experiments, print their statements, write their tables and figures.

    Raises:
        InputError: An experiment that does not exist, or that takes no network of the user's.
    """
    names = _chosen(options)
    setting = Setting(
        out=options.out,
        quick=options.quick,
        seed=options.seed,
        data_dir=options.data_dir,
        dataset=options.dataset,
        model=options.model,
        model_options=options.model_options,
        samples=options.samples,
        layers=options.layers,
    )
    with clear_disk_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Check]] = {}
    with one_thread():
        for name in names:
            start = time.perf_counter()
            try:
                found[name] = list(EXPERIMENTS[name](setting))
            except UnsupportedModelError as reason:
                # One experiment that a network of the user's is not made for does not stop the others.
                if options.model is None or (name == names[-1] and not found):
                    raise
                print(f"{name}: not checked: {reason}\n")
                continue
            print_checks(name, found[name], time.perf_counter() - start)
            # After each, so that an interruption loses nothing that was finished.
            write_table(_with_others(pd.DataFrame(statement_rows(found)), options.out), options.out / "theory.parquet")
            for path in _draw(name, options.out):
                print(path)
            print()
    print_conclusion(found)
    print(f"all of them are in {options.out / 'theory.parquet'}")


def _with_others(rows: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Statements, with those of other experiments that an earlier call left in the directory."""
    rows = rows.astype({"step": "Int64"})
    path = out / "theory.parquet"
    if not path.exists():
        return rows
    try:
        before = pd.read_parquet(path)
        others = before[~before["experiment"].isin(rows["experiment"])]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no table of statements ({error}); remove it or choose another --out") from error
    return pd.concat([others, rows], ignore_index=True) if len(others) else rows


def _chosen(options: TheoryOptions) -> list[str]:
    for name in options.names:
        if name not in EXPERIMENTS:
            known = ", ".join(EXPERIMENTS)
            raise InputError(f"unknown experiment {name!r}; known are {known}.{near_matches(name, EXPERIMENTS)}")
        if options.model is not None and name in _OURS_ONLY:
            raise InputError(f"{name} is about networks of our own; leave it or --model out")
    if options.samples < 1:
        raise InputError(f"--samples is {options.samples}; it must be at least 1")
    if options.model is None:
        given = (options.dataset, options.model_options, options.samples, options.layers)
        if given != (TheoryOptions.dataset, (), TheoryOptions.samples, None):
            raise InputError(
                "--dataset, --samples, --layers and --model-options are for a network of yours; name it by --model"
            )
        return list(dict.fromkeys(options.names)) or list(EXPERIMENTS)
    return list(dict.fromkeys(options.names)) or [name for name in EXPERIMENTS if name not in _OURS_ONLY]


def _draw(name: str, out: Path) -> list[Path]:
    """Write the figure of an experiment, if it has one."""
    if name not in FIGURES:
        return []
    stem, make = FIGURES[name]
    return save(make(out), out / "figures" / stem)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 for bad input."""
    return run_command(check, lambda: parse_options(TheoryOptions, "python -m experiments.theory", args))


if __name__ == "__main__":
    sys.exit(main())
