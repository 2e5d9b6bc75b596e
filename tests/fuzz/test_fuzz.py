"""A slice of ``make fuzz``: damaged files of every kind are refused in one line or survived."""

import pytest

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
