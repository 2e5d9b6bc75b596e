"""Locks of directories, so that two processes never write to the same: a lock on a file in it."""

import contextlib
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import clear_disk_errors

#: The file that is locked. It exists while a process writes the directory, and after one was killed.
LOCK = ".lock"
#: Seconds to keep trying, as the former holder may have removed the file before it could be locked.
_PATIENCE = 0.1


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory inside, which is made if missing; the kernel frees it when the process dies.

    Raises:
        InputError: Another process holds it, or the directory cannot be written.
    """
    path = directory / LOCK
    lock = FileLock(path)
    with clear_disk_errors(path):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_PATIENCE, poll_interval=_PATIENCE / 4)
        except Timeout as error:
            raise InputError(
                f"{directory} is being written by another process ({_holder(path)}); wait for it, or choose another "
                "--out"
            ) from error
        path.write_text(f"pid {os.getpid()} on host {platform.node()}")
    try:
        yield
    finally:
        if lock.is_locked:  # else this is a forked process that leaves the block, and the lock is its parent's
            # Removed while it is still held: whoever opened it meanwhile sees that it is gone.
            path.unlink(missing_ok=True)
            lock.release()


def check_unlocked(directories: Iterable[Path]) -> None:
    """Check that no process writes any of some directories; lock files of killed processes are removed.

    Raises:
        InputError: A process writes one of them.
    """
    for directory in directories:
        if (directory / LOCK).exists():
            with locked(directory):
                pass


def _holder(path: Path) -> str:
    """Process and host that hold a lock, as written into its file."""
    try:
        return path.read_text(errors="replace")[:500] or "unknown"
    except OSError:
        return "unknown"
