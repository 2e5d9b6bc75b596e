"""Training with torch.compile: the same numbers to rounding, and a clear word where there is no compiler."""

import os
import shutil
import subprocess
import sys

import pytest

from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.train import main


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_runs_are_those_of_plain_ones_and_resume(train, small):
    plain, compiled = train("plain"), train("compiled", "--compile")
    columns = ["loss", "grad_norm", "accuracy"]
    one, other = (read_experiment(out).metrics[columns] for out in (plain, compiled))
    assert other.to_numpy() == pytest.approx(one.to_numpy(), rel=1e-3, nan_ok=True)
    assert main([*small, "--out", "compiled", "--compile", "--resume"]) == 0


@pytest.mark.slow
def test_without_a_compiler_it_is_refused_before_anything_is_written(small, nets):
    command = [sys.executable, "-m", "skip_conditioning.experiments.train", *small, "--out", "o", "--compile"]
    without = os.environ | {"CXX": "/nowhere", "CC": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(nets / "empty")}
    without["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env=without, check=False, timeout=120)
    assert done.returncode == 2
    assert "--compile does not work here" in done.stderr.splitlines()[-1]
    assert "C++ compiler" in done.stderr
    assert not (nets / "o").exists()
