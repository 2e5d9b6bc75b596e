"""What holds for every test."""

import gc
import sys

import pytest

from tests import unchanged

_lasting_modules: set[str] = set()


def pytest_collection_finish() -> None:
    """Libraries and tests live as long as the process: garbage collection need not go through them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _users_modules_are_forgotten(tmp_path_factory):
    """What one test imported from a temporary folder is not another's module of the same name."""
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in sys.modules.keys() - _lasting_modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(folder):
            del sys.modules[name]
        else:
            _lasting_modules.add(name)


@pytest.fixture
def nothing_changes():
    """A context in which a model, its probe and the process stay as they are."""
    return unchanged.nothing_changes
