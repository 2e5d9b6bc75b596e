"""What the monitor costs a ResNet-18 on CIFAR-10 at the preset's settings: its share of the training time.

Trains the same few steps with diagnostics and without, in turn, and prints the share that the monitor states beside
the ratio of the two wall-clock times of each pair; the median over pairs is the less noisy.

``SKIP_DATA_DIR=DIR python -m benchmarks.monitor_overhead [--steps N] [--pairs N]``
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

from benchmarks.environment import environment
from skip_conditioning.diagnostics.tables import Experiment, read_experiment


def train(steps: int, diagnostics: str) -> Experiment:
    """The tables of one run of the preset's network, cut short."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "cifar"
        command = [sys.executable, "-m", "experiments.train", "paper-cifar10", "--out", str(out), diagnostics]
        command += ["--arms", "original", "--lr", "0.1", "--trials", "1", "--steps", str(steps)]
        command += ["--limit-train", "5120", "--limit-test", "128"]
        subprocess.run(command, check=True, capture_output=True)
        return read_experiment(out)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of each run (default: 60)")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs, with and without (default: 3)")
    options = parser.parse_args()
    print(environment(torch.device("cpu")))
    print(
        "| pair | with (s) | without (s) | excess | stated share | spectra | skipped |\n|---|---|---|---|---|---|---|"
    )
    excesses = []
    for pair in range(options.pairs):
        # The order alternates, so that a machine growing slower or faster favours neither side.
        order = ("--diagnostics", "--no-diagnostics")[:: 1 if pair % 2 == 0 else -1]
        result = {diagnostics: train(options.steps, diagnostics) for diagnostics in order}
        measured, run = result["--diagnostics"], result["--diagnostics"].runs.iloc[0]
        plain: pd.Series = result["--no-diagnostics"].runs.iloc[0]
        excesses.append(run.seconds / plain.seconds - 1)
        print(
            f"| {pair + 1} | {run.seconds:.0f} | {plain.seconds:.0f} | {excesses[-1]:+.1%} | "
            f"{run.diagnostics_share:.2%} | {len(measured.spectra)} | {len(measured.skipped)} |",
            flush=True,
        )
    print(f"\nMedian excess {statistics.median(excesses):+.1%}")


if __name__ == "__main__":
    main()
