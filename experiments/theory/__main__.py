"""Check the theory in numbers: ``skip-conditioning theory [NAME…] --out DIR``.

Prints every statement with both sides, its slack and whether it holds, is violated or is vacuous, and writes tables
and figures. ``--help`` lists the options and the names.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from skip_conditioning.diagnostics.errors import InputError, LayerCallError, UnsupportedModelError, near_matches
from skip_conditioning.diagnostics.tables import clear_disk_errors, write_table
from skip_conditioning.experiments.config.command_line import parse_options, run_command
from skip_conditioning.experiments.processes.machine import one_thread
from skip_conditioning.experiments.theory.along_training import (
    check_chain_rule,
    check_pl_chain,
    check_regularity,
    check_skips,
)
from skip_conditioning.experiments.theory.convergence import check_convergence
from skip_conditioning.experiments.theory.curvature_growth import check_curvature
from skip_conditioning.experiments.theory.experiment import (
    FIGURES,
    CheckedStatement,
    TheoryExperiment,
    TheoryOptions,
    print_checks,
    print_conclusion,
    statement_rows,
)
from skip_conditioning.experiments.theory.random_matrices import check_random_matrices
from skip_conditioning.figures.drawing.saving import save

EXPERIMENTS: dict[str, TheoryExperiment] = {
    "chain-rule": check_chain_rule,
    "regularity": check_regularity,
    "skips": check_skips,
    "random-matrices": check_random_matrices,
    "pl": check_pl_chain,
    "curvature": check_curvature,
    "convergence": check_convergence,
}

#: These check networks of our own only.
_OURS_ONLY = ("random-matrices", "curvature", "convergence")


def check(options: TheoryOptions) -> None:
    """Run the experiments, print their statements, write their tables and figures.

    Raises:
        InputError: An experiment does not exist, or takes no network of the user's.
    """
    names = _chosen(options)
    with clear_disk_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    checks: dict[str, list[CheckedStatement]] = {}
    with one_thread():
        for name in names:
            start = time.perf_counter()
            try:
                checks[name] = list(EXPERIMENTS[name](options))
            except (UnsupportedModelError, LayerCallError) as reason:
                # A network of the user's that one experiment cannot measure still gets the others.
                if options.model is None or (name == names[-1] and not checks):
                    raise
                print(f"{name}: not checked: {reason}\n")
                continue
            print_checks(name, checks[name], time.perf_counter() - start)
            # After each experiment, so that an interruption loses no finished one.
            rows = pd.DataFrame(statement_rows(checks))
            write_table(_with_others(rows, options.out), options.out / "theory.parquet")
            for path in _draw(name, options.out):
                print(path)
            print()
    print_conclusion(checks)
    print(f"all of them are in {options.out / 'theory.parquet'}")


def _with_others(rows: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Rows of statements, with those of other experiments that an earlier call left in the folder."""
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
            raise InputError(f"{name} checks networks of our own; leave out either it or --model")
    if options.probe_size < 1:
        raise InputError(f"--probe-size is {options.probe_size}; it must be at least 1")
    if options.model is None:
        of_model = (options.dataset, options.model_options, options.probe_size, options.layers)
        if of_model != (TheoryOptions.dataset, (), TheoryOptions.probe_size, None):
            raise InputError(
                "--dataset, --probe-size, --layers and --model-options are for a network of yours; name it by --model"
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
    return run_command(check, lambda: parse_options(TheoryOptions, "skip-conditioning theory", args))


if __name__ == "__main__":
    sys.exit(main())
