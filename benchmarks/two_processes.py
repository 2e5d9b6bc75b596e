"""What a second process gains: images per second of training in one process and in two, of one thread each.

A preactivation ResNet-18 of width 16 on CIFAR-10 (batches of 128, float32), or on random images of its size where
``SKIP_DATA_DIR`` is not set. Both train the same steps by ``skip-conditioning train``, in turn; the first
steps, which warm up, are left out. Prints a row for each pair, and the ratio of the medians.

``[SKIP_DATA_DIR=DIR] python -m benchmarks.two_processes [--steps N] [--pairs N]``
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.environment import environment
from skip_conditioning.diagnostics.tables import read_experiment

_BATCH = 128

#: Steps at the start that are not counted.
_WARM_UP = 5

_ROOT = Path(__file__).parents[1]


def random_images(directory: Path, *, train: int = 2 * _BATCH, test: int = 10) -> None:
    """Class folders with random images of CIFAR-10's size, in ten classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            folder = directory / "cifar10" / split / f"class{index % 10}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index:04d}.png")


def images_per_second(data: Path, processes: int, steps: int) -> float:
    """Of training so many steps, measured by the clock around each, the median of them; one thread a process."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", "experiments.train", "paper-cifar10"]
        command += ["--out", str(out), "--data-dir", str(data), "--model-options", "width=16", "--device", "cpu"]
        command += ["--arms", "original", "--lr", "0.1", "--trials", "1", "--steps", str(steps)]
        command += ["--batch-size", str(_BATCH), "--limit-train", str(2 * _BATCH), "--limit-test", "10"]
        command += ["--precision", "float32", "--no-diagnostics", "--checkpoints", str(steps)]
        # What `torchrun` sets for each of several processes, one alone needs as well.
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=_ROOT, env={**os.environ, **one_thread}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        metrics = read_experiment(out).metrics
    seconds = metrics[(metrics.split == "train") & metrics.step.between(_WARM_UP, steps - 1)].seconds
    return _BATCH / statistics.median(seconds)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps of each run (default: 40)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs, in one process and two (default: 5)")
    options = parser.parse_args()
    if options.steps <= _WARM_UP or options.pairs < 1:
        parser.error(f"--steps must be more than {_WARM_UP}, and --pairs at least 1")
    print(environment(torch.device("cpu")))
    print("| pair | one process (images/s) | two processes (images/s) | ratio |\n|---|---|---|---|")
    measured: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(os.environ.get("SKIP_DATA_DIR") or scratch)
        if data == Path(scratch):
            random_images(data)
        for pair in range(options.pairs):
            # The order alternates, so that a machine growing slower or faster favours neither side.
            for processes in (1, 2) if pair % 2 == 0 else (2, 1):
                measured[processes].append(images_per_second(data, processes, options.steps))
            one, two = measured[1][-1], measured[2][-1]
            print(f"| {pair + 1} | {one:.1f} | {two:.1f} | {two / one:.2f} |", flush=True)
    medians = {processes: statistics.median(rates) for processes, rates in measured.items()}
    print(f"\nRatio of the medians {medians[2] / medians[1]:.2f}, {medians[1]:.1f} against {medians[2]:.1f} images/s")


if __name__ == "__main__":
    main()
