import sys

import pytest

from tests import unchanged


@pytest.fixture(autouse=True)
def _users_modules_are_forgotten(tmp_path_factory):
    """What one test imported from a temporary folder is not another's module of the same name."""
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(folder):
            del sys.modules[name]


@pytest.fixture
def nothing_changes():
    """A context in which a model, its probe and the process stay as they are."""
    return unchanged.nothing_changes
