from pathlib import Path

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


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another --out"):
        save(random_matrices(size=20), tmp_path / "file" / "fig")
