"""The public front: one page of names, each of which is there and is loaded only when it is used."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import skip_conditioning

STUB = ast.parse(Path(skip_conditioning.__file__).with_suffix(".pyi").read_text())
NAMES = [alias.name for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_page_is_there(name):
    assert getattr(skip_conditioning, name).__name__.split(".")[-1] == name


def test_the_names_can_be_explored():
    assert len(set(NAMES)) == len(NAMES)
    assert set(NAMES) <= set(dir(skip_conditioning))
    assert set(NAMES) <= set(skip_conditioning.__all__)


def test_the_version_is_that_of_the_installation():
    assert skip_conditioning.__version__ == importlib.metadata.version("skip-conditioning")


def test_every_error_can_be_caught_as_one():
    errors = [name for name in NAMES if name.endswith("Error")]
    assert {"InputError", "LayerCallError"} < set(errors)
    assert all(issubclass(getattr(skip_conditioning, name), skip_conditioning.InputError) for name in errors)


WITHOUT_TORCH = """
import sys

for statement in (
    "import skip_conditioning",
    "from skip_conditioning import tables; tables.read_experiment",
    "import skip_conditioning; skip_conditioning.tables.STATISTICS",
    "from skip_conditioning import read_experiment",
    "from skip_conditioning import Experiment, InputError",
):
    exec(statement)
    print(statement if "torch" in sys.modules else ".", end="")
"""


def test_tables_and_errors_load_no_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    assert done.stdout == 5 * "."


def test_a_star_import_gives_every_name():
    names = {}
    exec("from skip_conditioning import *", names)
    assert set(NAMES) <= set(names)
