"""A slice of ``make fuzz``: damaged files of every kind are refused in one line or survived."""

import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.models import ModelOptionError
from tests.fuzz.__main__ import FAILED, REFUSED, count, table
from tests.fuzz.kinds import make_kinds

#: Of an input of each kind; others than those of the table in benchmarks/results.
_FIRST = 70_000


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return make_kinds(tmp_path_factory.mktemp("fuzz"))


def test_no_damaged_file_is_a_traceback_or_takes_long(kinds):
    counts, failures = count(kinds, 2, _FIRST)
    assert failures == []
    assert sum(row[REFUSED] for row in counts.values()) > 15
    assert sum(row[FAILED] for row in counts.values()) == 0
    assert table(counts).splitlines()[-1].startswith("| **all** |")


@pytest.mark.parametrize("error", [InputError, ModelOptionError])
def test_a_message_is_short_and_obeyed_by_no_terminal(error):
    message = str(error(f"cannot read {'x' * 1000} or \x1b[31mred\ud800\u202e"))
    assert message == f"cannot read {'x' * 60}… or \\x1b[31mred\\ud800\\u202e"
