"""Writing figures to disk: whole or not at all, and the same bytes for the same figure."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.figures.drawing.style import SETTINGS

#: Metadata that would differ between two runs (SVG) or two versions of matplotlib (PNG) is left out.
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}

#: The same identifiers every time, and text that stays text: to be searched, read aloud and edited, and much shorter.
_SVG = {"svg.hashsalt": "skip-conditioning", "svg.fonttype": "none"}


class NothingToDrawError(InputError):
    """Tables that lack what one figure needs; the command line then goes on with the other figures."""


def save(
    figure: Figure, stem: str | os.PathLike[str], formats: Sequence[Literal["png", "svg"]] = ("png", "svg")
) -> list[Path]:
    """Write a figure as PNG (200 dpi) and SVG.

    Args:
        figure: What to write.
        stem: Path without suffix; missing folders are made.
        formats: Which of the two.

    Returns:
        The paths, in the order of the formats.

    Raises:
        InputError: The folder cannot be written, or the disk is full.
    """
    return [_write(figure, Path(f"{os.fspath(stem)}.{suffix}"), suffix) for suffix in formats]


def save_drawable(directory: Path, makers: Mapping[str, Callable[[], Figure]]) -> tuple[Path, ...]:
    """Draw figures and save them as SVG; those for which the tables do not suffice are left out.

    Args:
        directory: Where they are saved.
        makers: What draws each, by the name of its file.

    Returns:
        The paths of those drawn.

    Raises:
        InputError: They cannot be written.
    """
    paths: list[Path] = []
    for name, make in makers.items():
        try:
            figure = make()
        except InputError:  # spectra that do not fit into one histogram, say
            continue
        paths += save(figure, directory / name, ["svg"])
    return tuple(paths)


def _write(figure: Figure, path: Path, suffix: str) -> Path:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with matplotlib.rc_context(SETTINGS | _SVG), temporary.open("wb") as file:
                figure.savefig(file, format=suffix, dpi=200, metadata=_METADATA[suffix])
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write {path} ({reason}); free some space or choose another --out") from error
    return path
