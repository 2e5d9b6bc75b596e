"""What the monitor costs a ResNet-18 on CIFAR-10 at the preset's settings: its share of the training time.

Trains the same few steps with diagnostics and without, one after the other, and prints the share that the monitor
states beside the difference of wall-clock times, which on a busy machine is noise of a few per cent.

``SKIP_DATA_DIR=DIR python -m benchmarks.monitor_overhead [--steps N]``
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.environment import environment
from diagnostics.tables import read_experiment


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of each run (default: 60)")
    options = parser.parse_args()
    print(environment(torch.device("cpu")))
    print("| diagnostics | seconds | stated share | spectra | skipped |\n|---|---|---|---|---|", flush=True)
    for diagnostics in ("--diagnostics", "--no-diagnostics"):
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "cifar"
            command = [sys.executable, "-m", "experiments.train", "paper-cifar10", "--out", str(out), diagnostics]
            command += ["--arms", "original", "--lr", "0.1", "--trials", "1", "--steps", str(options.steps)]
            command += ["--limit-train", "5120", "--limit-test", "128"]
            subprocess.run(command, check=True, capture_output=True)
            tables = read_experiment(out)
        run = tables.runs.iloc[0]
        print(
            f"| {diagnostics.removeprefix('--')} | {run.seconds:.0f} | {run.diagnostics_share:.2%} | "
            f"{len(tables.spectra)} | {len(tables.skipped)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
