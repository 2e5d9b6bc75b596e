from pathlib import Path

import matplotlib
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.figures import random_matrices, save


def test_same_figure_same_bytes_and_nothing_else_left(tmp_path: Path) -> None:
    first, again = (save(random_matrices(size=20), tmp_path / name / "fig") for name in ("a", "b"))
    assert [path.name for path in first] == ["fig.png", "fig.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in first[1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["fig.png", "fig.svg"]


def test_a_users_matplotlibrc_changes_nothing(tmp_path: Path) -> None:
    plain = save(random_matrices(size=20), tmp_path / "plain")
    users = {"text.usetex": True, "font.family": ["no such font"], "font.size": 40, "axes.grid": True, "figure.dpi": 30}
    with matplotlib.rc_context({**users, "savefig.transparent": True, "lines.linewidth": 9}):
        hostile = save(random_matrices(size=20), tmp_path / "hostile")
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in hostile]


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another --out"):
        save(random_matrices(size=20), tmp_path / "file" / "fig")
