"""The preset ``paper-mnist`` whole: wall-clock time and peak memory, beside what the released recipe would take.

The recipe's time is its time for one spectrum, measured in the same run, times the number of spectra; its training
and plotting come on top.

``SKIP_DATA_DIR=DIR python -m benchmarks.paper_mnist [--trials N] [--keep DIR]``
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.environment import environment
from benchmarks.mnist_jacobian import released_recipe, seconds
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.models import build_model


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10, help="trials of each arm (default: 10, as the preset has)")
    parser.add_argument("--keep", type=Path, help="keep the experiment in this new directory (default: do not)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = options.keep or Path(scratch) / "paper-mnist"
        command = [sys.executable, "-m", "experiments.train", "paper-mnist", "--out", str(out)]
        start = time.perf_counter()
        subprocess.run([*command, "--trials", str(options.trials)], check=True)
        whole = time.perf_counter() - start
        count = len(read_experiment(out).spectra)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    model, x, cpu = build_model("paper-mnist"), torch.rand(32, 1, 28, 28), torch.device("cpu")
    recipe = statistics.median(seconds(lambda: released_recipe(model, x), cpu) for _ in range(15))
    print(environment(cpu))
    print("| runs | spectra | seconds | peak memory (GB) | recipe's spectra alone (s) | ratio |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {3 * options.trials} | {count} | {whole:.0f} | {peak / 1e9:.2f} | {recipe * count:.0f} | "
        f"{recipe * count / whole:.2f} |"
    )


if __name__ == "__main__":
    main()
