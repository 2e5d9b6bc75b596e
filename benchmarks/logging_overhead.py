"""What logging costs a run: tables alone, with TensorBoard, with Weights & Biases, against the bare training.

A run of the demo's residual MLP, whose steps are short, so that what logging adds to each shows; the bare loop does the
same updates and logs nothing. Times are differences between a long and a short run, medians over repeats.

``python -m benchmarks.logging_overhead [--steps 100 600]``
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from benchmarks.environment import environment
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.data.datasets import load_data
from skip_conditioning.experiments.train import parse
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.models import build_model


def bare(steps: int) -> float:
    """Seconds of the same updates without any logging."""
    data = load_data("digits").train
    model = build_model("residual-mlp", arm="residual", depth=16, normaliser="batch", in_features=784).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    started = time.perf_counter()
    for _ in range(steps):
        images, labels = data.images[:256] / 255, data.labels[:256]
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    return time.perf_counter() - started


def logged(steps: int, *options: str) -> float:
    """Seconds of a run of ``skip-conditioning train``, without diagnostics."""
    with tempfile.TemporaryDirectory() as scratch:
        args = ["demo", "--out", f"{scratch}/out", "--arms", "residual", "--lr", "0.1", "--trials", "1"]
        args += ["--steps", str(steps), "--checkpoints", "1000000", "--no-diagnostics", "--device", "cpu", *options]
        Runner(parse(args)).run_all()
        return float(read_experiment(Path(scratch) / "out").runs["seconds"].iloc[0])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs=2, default=[100, 600], help="of the short and the long run")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    short, long = options.steps
    sides: dict[str, Callable[[int], float]] = {"bare": bare, "tables": logged}
    for service in ("tensorboard", "wandb"):
        if importlib.util.find_spec(service):
            sides[f"tables and {service}"] = lambda steps, service=service: logged(steps, "--log", service)
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, measure in sides.items():
            measured[name].append((measure(long) - measure(short)) / (long - short))
    print(environment(torch.device("cpu")))
    print("| logging | milliseconds a step | against bare |\n|---|---|---|")
    least = statistics.median(measured["bare"])
    for name, times in measured.items():
        print(f"| {name} | {1e3 * statistics.median(times):.3g} | {statistics.median(times) / least:.3f} |")


if __name__ == "__main__":
    main()
