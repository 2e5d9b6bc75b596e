"""Kills commands at random moments, half of them at file operations, and compares: ``python benchmarks/kills.py``.

Every command is run once without a kill. Then it is killed, with all its processes, after a random time or at a random
renaming of a file, and continued by the same command, which is killed too; after three kills it may end, and its tables
have to hold the same rows, each once, to the bit but for times. Prints a table of what was tried.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import KEYS, read_experiment

#: Kills between two comparisons.
_IN_A_ROW = 3
_SMALL = (
    *("--arms", "chain", "residual", "--trials", "2", "--steps", "6", "--subset", "40", "--probe-size", "2"),
    *("--limit-test", "20", "--layers", "blocks.0", "--model-options", "depth=2", "width=8", "--lr", "0.1"),
)
_CLAIM = """
from skip_conditioning.experiments.claims import Comparison, PairedClaim, Plan, preset
CONFIG = preset(
    "demo", arms=("chain", "residual"), trials=6, lr=(0.1,), steps=3, subset=40, probe_size=2, layers=("blocks.0",),
    model_options=("depth=2", "width=8"),
)
CLAIM = PairedClaim(
    "tiny", "t.", "nowhere", "so", (), {"demo": {"tiny": Plan(CONFIG)}},
    (Comparison("loss_at_step_2", "residual", "chain", "smaller"),), figures=(),
)
"""
_LOOP = """
import sys, torch
from skip_conditioning import SpectrumMonitor, every
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
x, y = torch.randn(16, 4), torch.randint(3, (16,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with SpectrumMonitor(model, (x, y), sys.argv[1], maps="tail", layers=["0"], resume=True) as monitor:
    for step in range(400):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        monitor.step(step, loss=loss)
        print(step, flush=True)
        optimizer.step()
"""
#: A sweep whose jobs are processes of this machine instead of a cluster's.
_SWEEP = """
import sys
from submitit import LocalExecutor
from skip_conditioning.experiments.sweep import main
from skip_conditioning.experiments.sweeps import jobs
def local(options, folder, gpus):
    executor = LocalExecutor(folder)
    executor.update_parameters(timeout_min=30)
    return executor
jobs._slurm_executor, jobs._CHECK_EVERY = local, 0.2
sys.exit(main(sys.argv[1:]))
"""
#: Kills its process group at the n-th renaming of a file; a process that ends writes down how many there were.
_SITE = """
import atexit, os, signal
_at, _count, _replace = int(os.environ.get("KILL_AT", "0")), 0, os.replace
def replace(*args, **kwargs):
    global _count
    _count += 1
    if _count == _at:
        os.killpg(0, signal.SIGKILL)
    return _replace(*args, **kwargs)
os.replace = replace
@atexit.register
def write_down():
    with open(os.path.join(os.path.dirname(__file__), "renamings"), "a") as file:
        print(_count, file=file)
"""


def commands(folder: Path) -> dict[str, list[str]]:
    """What is killed, by name; ``OUT`` stands for its directory."""
    python = sys.executable
    (folder / "tiny_claim.py").write_text(_CLAIM)
    (folder / "loop.py").write_text(_LOOP)
    (folder / "sweep.py").write_text(_SWEEP)
    (folder / "srun").write_text("#!/bin/sh\n")
    (folder / "srun").chmod(0o755)
    train = [python, "-m", "skip_conditioning", "train", "demo", *_SMALL, "--device", "cpu", "--resume", "--out", "OUT"]
    verify = [python, "-m", "skip_conditioning", "verify", "tiny_claim:CLAIM", "--out", "OUT", "--device", "cpu"]
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    return {
        "train": [*train, "--processes", "1"],
        "train, two processes": [*train, "--processes", "2"],
        "verify --processes 2": [*verify, "--processes", "2"],
        "sweep, jobs of this machine": [python, str(folder / "sweep.py"), *train[4:], "--jobs", "2"],
        "torchrun, two ranks": [*torchrun, *train[2:]],
        "a loop with SpectrumMonitor": [python, str(folder / "loop.py"), "OUT"],
    }


def run(command: list[str], out: Path, folder: Path, *, kill_at: int = 0, after: float | None = None) -> int | None:
    """Run a command in a process group of its own; None if it was killed.

    Args:
        command: Its words.
        out: Its directory.
        folder: The current folder, with ``sitecustomize.py``.
        kill_at: The renaming at which it kills itself; 0 for none.
        after: Seconds after which it is killed; None for never.
    """
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "KILL_AT": str(kill_at), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{folder}{os.pathsep}{environment.get('PATH', os.defpath)}"
    words = [str(out) if word == "OUT" else word for word in command]
    process = subprocess.Popen(
        words, cwd=folder, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        code = process.wait(timeout=120 if after is None else after)
    except subprocess.TimeoutExpired:
        code = -signal.SIGKILL
    with_group = code == -signal.SIGKILL
    if with_group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return None if with_group else code


def rows(out: Path) -> dict[str, pd.DataFrame]:
    """The rows of all experiments in a directory, without what differs between two runs of the same."""
    folders = sorted((out / "experiments").iterdir()) if (out / "experiments").is_dir() else [out]
    frames = {name: [getattr(read_experiment(folder), name) for folder in folders] for name in KEYS}
    volatile = ["seconds", "peak_bytes", "note", "estimated_seconds"]
    joined = {name: pd.concat(each, ignore_index=True) for name, each in frames.items()}
    return {name: frame.drop(columns=[c for c in volatile if c in frame]) for name, frame in joined.items()}


def difference(out: Path, whole: dict[str, pd.DataFrame]) -> str:
    """How the rows differ from those of a run that was not killed; empty if they do not."""
    try:
        own = rows(out)
    except InputError as error:
        return str(error)
    for name, frame in whole.items():
        keys = list(KEYS[name])
        if own[name].duplicated(keys).any():
            return f"{name} holds rows twice"
        if len(own[name]) != len(frame):
            return f"{name} holds {len(own[name])} rows instead of {len(frame)}"
        first, second = (each.sort_values(keys, ignore_index=True) for each in (own[name], frame))
        if not first.astype(str).equals(second.astype(str)):
            return f"{name} holds other values"
    return ""


def _kill(source: random.Random, number: int, seconds: float, renamings: int) -> dict[str, Any]:
    """When to kill: every other time at a renaming, else within the time that the command takes."""
    return {"kill_at": source.randint(1, renamings)} if number % 2 else {"after": source.uniform(0.3, 1) * seconds}


def main() -> int:
    """Print the table; the exit code is 1 if a run did not come out the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=36, help="of each command")
    parser.add_argument("--only", default="", help="commands whose names contain this")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    source, failures, started = random.Random(options.seed), [], time.monotonic()
    print("| command | kills | over before | ended with the same rows | not |\n|---|--:|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(_SITE)
        for title, command in commands(folder).items():
            if options.only not in title:
                continue
            before = time.monotonic()
            (folder / "renamings").unlink(missing_ok=True)
            assert run(command, folder / "whole" / "run", folder) == 0, title
            # A later process finds some of the work done.
            renamings = max(1, max(map(int, (folder / "renamings").read_text().split())) * 2 // 3)
            seconds, whole, counts = time.monotonic() - before, rows(folder / "whole" / "run"), Counter[str]()
            out = folder / "killed" / "run"  # rows hold the name of a loop's directory
            for number in range(0, options.kills, _IN_A_ROW):
                numbers = range(number, min(number + _IN_A_ROW, options.kills))
                kills = [_kill(source, n, seconds, renamings) for n in numbers]
                for kill in kills:
                    counts["late" if run(command, out, folder, **kill) == 0 else "kills"] += 1
                again = run(command, out, folder)
                problem = f"exit code {again}" if again else difference(out, whole)
                counts["not" if problem else "same"] += 1
                if problem:
                    failures.append(f"{title}, {kills}: {problem}")
                shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(folder / "whole")
            print(
                f"| {title} | {counts['kills']} | {counts['late']} | {counts['same']} | {counts['not']} |", flush=True
            )
    print(f"\nseed {options.seed}, {time.monotonic() - started:.0f} s", flush=True)
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
