"""A journal: rows in a file at once, until they are many enough for a part."""

import json
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any


class Journal:
    """Rows in one file, a line of JSON each: once ``append`` has returned, they survive a kill of the process.

    They need not survive a loss of power, as nothing waits for the disk.

    Args:
        path: The file; made by the first ``append``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows: all of them, or none if the disk does not take them.

        Raises:
            OSError: The disk does not take them.
        """
        lines = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        if self._file is None:
            self._file = FileIO(self.path, "a")
        size = self._file.seek(0, 2)
        try:
            while lines:
                lines = lines[self._file.write(lines) :]
        except OSError:
            self._file.truncate(size)
            raise

    def remove(self) -> None:
        """Delete the file, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.path.unlink(missing_ok=True)
