import sys

import pytest


@pytest.fixture(autouse=True)
def _users_modules_are_forgotten(tmp_path_factory):
    """What one test imported from a temporary folder is not another's module of the same name."""
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(folder):
            del sys.modules[name]
