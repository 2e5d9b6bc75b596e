"""Trials trained together, as one vmapped network, against one by one: steps per second, in one run.

For the paper's MNIST network (32 images, full batch) and the demo's residual MLP (256 images), without diagnostics.
A group's time is that of all its trials; the ratio is of medians over alternating repeats.

``python -m benchmarks.trials_together [--device cuda] [--trials 2 10 30]``
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.environment import environment
from diagnostics.tables import read_experiment
from experiments.experiment import Experiment
from experiments.train import parse

NETWORKS = {
    "paper-mnist": ["--dataset", "digits", "--arms", "modified"],
    "demo": ["--arms", "residual", "--lr", "0.1"],
}


def seconds(preset: str, trials: int, steps: int, device: str, together: str) -> float:
    """Seconds that all trials take, without starting up."""
    with tempfile.TemporaryDirectory() as scratch:
        args = [preset, "--out", f"{scratch}/out", *NETWORKS[preset], "--trials", str(trials), "--together", together]
        args += ["--steps", str(steps), "--checkpoints", "1000000", "--no-diagnostics", "--device", device]
        Experiment(parse(args)).run()
        return float(read_experiment(Path(scratch) / "out").runs["seconds"].sum())


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--trials", type=int, nargs="+", default=[2, 10, 30])
    parser.add_argument("--steps", type=int, nargs=2, default=[5, 35], help="of the short and the long run")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    short, long = options.steps
    print(environment(torch.device(options.device)))
    print("| preset | trials | one by one (s a step of all) | together | ratio |\n|---|---|---|---|---|")
    for preset in NETWORKS:
        for trials in options.trials:
            found: dict[str, list[float]] = {"no": [], "yes": []}
            for repeat in range(options.repeats):
                for together in ("no", "yes")[:: 1 if repeat % 2 == 0 else -1]:
                    took = [seconds(preset, trials, steps, options.device, together) for steps in (long, short)]
                    found[together].append((took[0] - took[1]) / (long - short))
            alone, joint = (statistics.median(found[name]) for name in ("no", "yes"))
            print(f"| {preset} | {trials} | {alone:.4g} | {joint:.4g} | {alone / joint:.2f} |", flush=True)


if __name__ == "__main__":
    main()
