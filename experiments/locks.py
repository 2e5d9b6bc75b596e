"""Locks of directories, so that two processes never write one: held on a file in it until the process ends."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from diagnostics.errors import InputError
from diagnostics.tables import clear_disk_errors

#: Descriptors of the locks that are held. A process forked from this one would hold them on when this one is killed.
_HELD: set[int] = set()


def _let_go() -> None:
    """Close them in a forked process; closing does not unlock what the parent holds."""
    for file in _HELD:
        os.close(file)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)

#: The file that is locked. It is there while a process writes the directory, and after one that was killed.
LOCK = ".lock"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory inside, which is made if missing; the kernel frees it when the process dies.

    Raises:
        InputError: Another process holds it, or the directory cannot be written.
    """
    file = _acquire(directory / LOCK)
    _HELD.add(file)
    try:
        yield
    finally:
        if file in _HELD:  # else this is a forked process that leaves the block, and the lock is its parent's
            # Removed while it is still held: whoever opened it meanwhile sees that it is gone.
            with contextlib.suppress(FileNotFoundError):
                (directory / LOCK).unlink()
            _HELD.remove(file)
            os.close(file)


def check_unlocked(directories: Iterable[Path]) -> None:
    """See that no process writes any of some directories; what killed processes left of their locks is removed.

    Raises:
        InputError: A process writes one of them.
    """
    for directory in directories:
        if (directory / LOCK).exists():
            with locked(directory):
                pass


def _acquire(path: Path) -> int:
    """Open and lock a file, and write into it who holds it; return its descriptor."""
    while True:
        with clear_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with clear_disk_errors(path):
                _lock(file, path)
                if _is_still(file, path):
                    os.ftruncate(file, 0)
                    os.pwrite(file, f"pid {os.getpid()} on host {platform.node()}".encode(), 0)
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(file, 500, 0).decode(errors="replace") or "unknown"
        raise InputError(
            f"{path.parent} is being written by another process ({holder}); wait for it, or choose another --out"
        ) from error


def _is_still(file: int, path: Path) -> bool:
    """Whether a path leads to an open file, which its former holder may have removed before it could be locked."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
