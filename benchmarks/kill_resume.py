"""Experiments killed (SIGKILL) at random moments and resumed, against the same ones left alone: nothing may differ.

Digits with momentum, augmentation, evaluation, spectra and runs that diverge. An
experiment that finishes before its last kill is started anew.

``python -m benchmarks.kill_resume [--kills N] [--seed N]``
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from pyarrow import parquet

from benchmarks.environment import environment
from skip_conditioning.diagnostics.tables import KEYS, read_experiment

OPTIONS = (
    *("demo", "--model-options", "depth=4", "normaliser=batch", "--arms", "chain", "residual", "--lr", "0.1", "1e30"),
    *("--trials", "2", "--steps", "150", "--batch-size", "32", "--momentum", "0.9", "--weight-decay", "1e-4"),
    *("--augment", "crop", "--evaluate-epochs", "2", "--limit-test", "64", "--checkpoints", "7", "--layers", "stem"),
    *("--probe-size", "8", "--device", "cpu"),
)

#: Columns that a clock or the memory's state decides.
_OTHERS = ("seconds", "peak_bytes", "estimated_seconds")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_args()
    print(environment(torch.device("cpu")))
    print(
        "| kills | of which in training | experiments | rows of one left alone | rows lost | rows doubled "
        "| rows that differ | checkpoints | checkpoints that differ | leftovers |\n" + "|---" * 10 + "|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        print(killed_and_resumed(Path(scratch), options.kills, random.Random(options.seed)), flush=True)


def killed_and_resumed(scratch: Path, kills: int, moments: random.Random) -> str:
    """A row of the table."""
    whole = scratch / "whole"
    seconds = [timed(lambda: start(whole).communicate()) for _ in range(2)]
    startup, training = seconds[1], seconds[0] - seconds[1]  # the second time there is nothing left to train
    measured, done, in_training, number = [0, 0, 0, 0, 0], 0, 0, 0
    while done < kills:
        number += 1
        out = scratch / f"killed-{number}"
        while True:
            process = start(out)
            if done < kills:
                try:
                    process.wait(0.7 * startup + moments.random() * (0.3 * startup + training / 3))
                except subprocess.TimeoutExpired:
                    process.kill()
                    done += 1
                    in_training += any(out.glob("runs/*/checkpoints/step_*"))
            if process.wait() == 0:
                break
        measured = [sum(pair) for pair in zip(measured, differences(whole, out), strict=True)]
    rows = sum(len(table) for table in tables(whole).values())
    lost, doubled, differ, checkpoints, leftovers = measured
    return (
        f"| {kills} | {in_training} | {number} | {rows} | {lost} | {doubled} | {differ} | "
        f"{len(weights(whole))} | {checkpoints} | {leftovers} |"
    )


def start(out: Path) -> subprocess.Popen[bytes]:
    """Begin an experiment, or go on with it."""
    command = [sys.executable, "-m", "experiments.train", *OPTIONS, "--out", str(out)]
    return subprocess.Popen(
        [*command, "--resume"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def tables(out: Path) -> dict[str, pd.DataFrame]:
    """The tables of an experiment by name, with the columns that are to be equal, and their keys as the index."""
    read = read_experiment(out)
    measured = {name: getattr(read, name).set_index(list(keys)).sort_index() for name, keys in KEYS.items()}
    measured["runs"] = read.runs[["run_id", "status"]].set_index("run_id")
    return {name: table.drop(columns=[c for c in table if c in _OTHERS]) for name, table in measured.items()}


def weights(out: Path) -> dict[str, bytes]:
    """The contents of all checkpoints, weights and training states."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("runs/*/checkpoints/*.safetensors")}


def differences(whole: Path, out: Path) -> list[int]:
    """Rows lost, rows doubled, rows that differ, checkpoints that differ (or are missing, or too many), leftovers."""
    lost = doubled = differ = 0
    for name, (one, other) in {name: (table, tables(out)[name]) for name, table in tables(whole).items()}.items():
        lost += len(one.index.difference(other.index))
        parts = [parquet.ParquetFile(part).metadata.num_rows for part in out.glob(f"runs/*/{name}/*.parquet")]
        doubled += sum(parts) - len(one.index.intersection(other.index)) if name in KEYS else 0
        common = one.index.intersection(other.index)
        pairs = zip(one.loc[common].itertuples(index=False), other.loc[common].itertuples(index=False), strict=True)
        differ += sum(repr(list(map(plain, first))) != repr(list(map(plain, second))) for first, second in pairs)
    first, second = weights(whole), weights(out)
    checkpoints = sum(first.get(name) != second.get(name) for name in first.keys() | second.keys())
    return [lost, doubled, differ, checkpoints, sum(1 for _ in out.rglob(".*"))]


def plain(value: object) -> object:
    """A cell as something whose ``repr`` tells every bit."""
    return value.tolist() if hasattr(value, "tolist") else value


if __name__ == "__main__":
    main()
