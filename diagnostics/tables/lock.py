"""A folder is written by one process, and within it by one writer, at a time."""

import os
import platform
from pathlib import Path

from filelock import FileLock, Timeout

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables.files import clear_disk_errors, shortened

#: Seconds to keep trying, as the former holder may have removed the file before it could be locked.
_PATIENCE = 0.1


class FolderLock:
    """The right to write a folder; the kernel takes it back when its holder's process dies.

    Args:
        directory: The folder.
        name: Of the file that is locked. It exists while the lock is held, and after its holder was killed.
        holder: Who holds it, for the message: ``another process``, say.
        advice: What to do when the lock is held, for the message.
    """

    def __init__(self, directory: Path, name: str, holder: str, advice: str) -> None:
        self._directory, self._path = directory, directory / name
        self._holder, self._advice = holder, advice
        self._lock = FileLock(self._path, thread_local=False)

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock; in a process forked from the holder's it does not."""
        return self._lock.is_locked

    def acquire(self) -> None:
        """Take the lock; the folder is made if missing.

        Raises:
            InputError: It is held already, or the folder cannot be written.
        """
        with clear_disk_errors(self._path):
            self._directory.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=_PATIENCE, poll_interval=_PATIENCE / 4)
            except Timeout as error:
                raise InputError(
                    f"{self._directory} is being written by {self._holder} ({self._who()}); {self._advice}"
                ) from error
            self._path.write_text(f"pid {os.getpid()} on host {platform.node()}")

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self.is_held:
            # Removed while it is still held: whoever opened it meanwhile sees that it is gone.
            self._path.unlink(missing_ok=True)
            self._lock.release()

    def _who(self) -> str:
        """Process and host of the holder, as written into the file."""
        try:
            return shortened(self._path.read_text(errors="replace")) or "unknown"
        except OSError:
            return "unknown"
