"""The folder of a run: who may write there, whether it holds a run already, and what the run says of itself."""

import math
import numbers
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables.files import read_json, shortened, write_json
from skip_conditioning.diagnostics.tables.lock import FolderLock
from skip_conditioning.diagnostics.tables.parts import delete_table, first_step, last_step
from skip_conditioning.diagnostics.tables.schemas import SCHEMAS

_DESCRIPTION = "config.json"
_LOCK = ".tables.lock"
#: What a monitor records of a run.
_FIELDS = frozenset({"run_id", "arm", "trial", "lr"})


class RunFolder:
    """The folder that a monitor writes.

    Args:
        path: The folder.
        resume: Whether a run in it is to be continued.
        overwrite: Whether the tables of a run in it are to be deleted.

    Raises:
        InputError: Both are to be done.
    """

    def __init__(self, path: Path, *, resume: bool, overwrite: bool) -> None:
        if resume and overwrite:
            raise InputError("resume keeps the run that overwrite deletes; give one of them")
        self.path, self.resume, self.overwrite = path, resume, overwrite
        self._lock = FolderLock(path, _LOCK, "another monitor", "close that one, or choose another out")

    def check(self) -> None:
        """Check that a run may be written here; nothing is changed.

        Raises:
            InputError: It holds a run that is neither to be continued nor to be deleted.
        """
        step = None if self.resume or self.overwrite else self._outermost(last_step, max)
        if step is not None:
            raise InputError(
                f"{self.path} holds a run up to step {step} already; give resume=True to go on with it, "
                "overwrite=True to replace it, or another out"
            )

    def open(self, given: Mapping[str, Any]) -> str:
        """Lock the folder, delete the tables if they are to be overwritten, and record what the run is.

        Args:
            given: As ``checked_description`` returns it.

        Returns:
            Name of the run: as given, or as recorded if it is resumed, or that of the folder.

        Raises:
            InputError: Another monitor writes there, it holds a run or somebody else's ``config.json``, the run that is
                resumed has another description, or the folder cannot be written.
        """
        self.lock()
        try:
            self.check()
            run_id = given.get("run_id") or (self.resume and self._recorded().get("run_id"))
            run_id = str(run_id or self.path.resolve().name)
            description = self._description(given, run_id)
            if self.overwrite:
                for name in SCHEMAS:
                    delete_table(self.path / name)
            if description is not None:
                write_json(description, self.path / _DESCRIPTION)
        except BaseException:
            self.unlock()
            raise
        return run_id

    def lock(self) -> None:
        """Hold the lock of the folder from now on.

        Raises:
            InputError: Another monitor holds it.
        """
        self._lock.acquire()

    @property
    def is_locked(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.is_held

    def unlock(self) -> None:
        """Give the lock back, if it is held."""
        self._lock.release()

    @property
    def first_step(self) -> int | None:
        """The first step that the run has rows of; None where it has none."""
        return self._outermost(first_step, min)

    def _description(self, given: Mapping[str, Any], run_id: str) -> dict[str, Any] | None:
        """What the run's ``config.json`` is to hold; None if it is to stay as it is.

        Raises:
            InputError: It is somebody else's file, or contradicts what is given.
        """
        path, recorded = self.path / _DESCRIPTION, self._recorded()
        if self.overwrite and "run_id" in recorded and recorded.keys() <= _FIELDS:
            # What a monitor recorded of the run that is deleted.
            recorded = {}
        elif not given:
            return None
        elif path.exists() and "run_id" not in recorded:
            raise InputError(f"{path} describes no run; choose another out, or leave out arm, trial, lr and name")
        for name, value in given.items():
            if self.resume and recorded.get(name, value) != value:
                raise InputError(
                    f"{self.path} holds a run of {name} {recorded[name]!r}, not {value!r}; give the same to resume it, "
                    "or another out"
                )
        description = {**recorded, "run_id": run_id, **given}
        return None if description == recorded else description

    def _recorded(self) -> dict[str, Any]:
        path = self.path / _DESCRIPTION
        return read_json(path) if path.exists() else {}

    def _outermost(
        self, step_of: Callable[[Path, pa.Schema], int | None], choose: Callable[..., int | None]
    ) -> int | None:
        steps = [step_of(self.path / name, schema) for name, schema in SCHEMAS.items()]
        return choose((step for step in steps if step is not None), default=None)


def checked_description(*, name: Any, arm: Any, trial: Any, lr: Any) -> dict[str, Any]:
    """What a run says of itself in its ``config.json``; what is None is left out.

    Args:
        name: Of the run.
        arm: The variant under comparison.
        trial: Number of the seed that it shares with the runs it is compared with.
        lr: Learning rate.

    Returns:
        Fields ``run_id, arm, trial, lr``, of the types that JSON has.

    Raises:
        InputError: One is not what it should be.
    """
    texts = {"name": name, "arm": arm}
    for key, value in texts.items():
        if value is not None and (not isinstance(value, str) or not value.isprintable() or not value.strip()):
            raise InputError(f"{key} must be a text that can be printed; it is {shortened(repr(value), 40)}")
    if trial is not None and (not isinstance(trial, numbers.Integral) or isinstance(trial, bool) or trial < 0):
        raise InputError(f"trial must be a whole number from 0; it is {shortened(repr(trial), 40)}")
    if lr is not None and (not isinstance(lr, numbers.Real) or isinstance(lr, bool) or not 0 <= float(lr) < math.inf):
        raise InputError(f"lr must be a number from 0; it is {shortened(repr(lr), 40)}")
    fields = {
        "run_id": name,
        "arm": arm,
        "trial": None if trial is None else int(trial),
        "lr": None if lr is None else float(lr),
    }
    return {key: value for key, value in fields.items() if value is not None}
