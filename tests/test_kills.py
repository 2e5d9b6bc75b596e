"""A slice of ``benchmarks/kills.py``: what was killed goes on, and ends with the same rows."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kills.py"


def test_a_loop_that_is_killed_twice_ends_with_the_same_rows():
    words = [sys.executable, str(SCRIPT), "--only", "loop", "--kills", "2", "--seed", "5"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ)
    assert ended.returncode == 0, ended.stderr
    name, *counts = ended.stdout.splitlines()[2].strip("| ").split(" | ")
    assert name == "a loop with SpectrumMonitor"
    assert sum(map(int, counts[:2])) == 2
    assert counts[2:] == ["1", "0"]
