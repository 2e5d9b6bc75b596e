"""The directory of an experiment: what may be written there, and the small files that describe it.

``experiment.json`` holds the options, ``probe.safetensors`` the probe, ``speed.parquet`` the speed table and ``runs/``
one directory per run. In a run's, ``config.json`` describes it and ``status.json`` says how it stands.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import read_json, write_json
from skip_conditioning.diagnostics.tables.files import shortened
from skip_conditioning.diagnostics.tables.lock import FolderLock
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.records.tensor_files import read_checkpoint, save_checkpoint

_DESCRIPTION = "experiment.json"
_RUN = "config.json"
_STATUS = "status.json"
_PROBE = "probe.safetensors"
_PROCESSES = "torchrun_processes"
#: The file that is locked. It exists while a process writes the directory, and after one was killed.
LOCK = ".lock"
#: Options in a message at most.
_MOST_NAMED = 12

#: Options that may change on resuming: where things are, what is logged beside the tables, how many runs there are.
_MAY_CHANGE = frozenset(
    (
        *("out", "data_dir", "device", "processes", "workers", "skip_corrupt", "log"),
        *("resume", "overwrite", "estimate", "arms", "lr", "arm_lr", "trials"),
    )
)


def check_out(config: TrainConfig, processes: int = 1) -> None:
    """Check that ``--out`` can be used; nothing is written.

    Args:
        config: The options.
        processes: Number of processes that train each run. It decides how batches are split, also for batch norm, so
            it must not change on resuming.

    Raises:
        InputError: It exists and neither ``--resume`` nor ``--overwrite`` is given, holds something else than an
            experiment, cannot be written, or holds an experiment with other options.
    """
    out = config.output.out
    if config.output.resume and config.output.overwrite:
        raise InputError("--resume keeps what --overwrite removes; give one of them")
    folder = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not folder.is_dir():
        raise InputError(f"--out {out} cannot be made: {folder} is a file; choose another directory")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--out {out} cannot be made: {folder} is not writable; choose another directory")
    is_experiment = (out / _DESCRIPTION).exists()
    # Killed at its very start, an experiment leaves no more than these.
    if out.exists() and any(entry.name not in (LOCK, f".{_DESCRIPTION}.tmp") for entry in out.iterdir()):
        if not is_experiment:
            raise InputError(f"--out {out} exists and holds no experiment; choose another directory")
        if not (config.output.resume or config.output.overwrite):
            raise InputError(f"--out {out} exists; continue it with --resume or replace it with --overwrite")
    if config.output.resume and is_experiment:
        _check_same(config, processes, read_options(out))


def prepare_out(config: TrainConfig, probe: tuple[Tensor, Tensor], processes: int = 1) -> None:
    """Make the experiment's directory, emptied first with ``--overwrite``, and describe it.

    The caller holds its lock.

    Args:
        config: The options.
        probe: The fixed batch ``(x, y)``.
        processes: Number of processes that train each run.

    Raises:
        InputError: It cannot be made, emptied or written, another process writes one of its runs, or the training
            images are not those that it was started with.
    """
    out = config.output.out
    check_unlocked((out / "runs").glob("*"))
    if (out / _PROBE).exists() and not config.output.overwrite:
        _check_same_data(out, probe)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if config.output.overwrite:
            # The description goes last, so that --overwrite can be repeated when it was interrupted.
            entries = [entry for entry in out.iterdir() if entry.name != LOCK]
            for entry in sorted(entries, key=lambda entry: entry.name == _DESCRIPTION):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for leftover in (*out.rglob(".*.tmp"), *out.rglob(".tmp??????")):  # the latter are safetensors' own
            leftover.unlink()
    except OSError as error:
        raise InputError(f"--out {out} cannot be used ({error.strerror}); choose another directory") from error
    write_json(_options(config, processes), out / _DESCRIPTION)
    if not (out / _PROBE).exists():
        save_checkpoint(out / _PROBE, {"x": probe[0], "y": probe[1]}, {})


def read_probe(directory: Path) -> tuple[Tensor, Tensor]:
    """The probe ``(x, y)`` of an experiment, or of the experiment a run belongs to.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    for path in (folder / _PROBE for folder in (directory, *directory.absolute().parents[:2])):
        if path.exists():
            try:
                tensors, _ = read_checkpoint(path)
                return tensors["x"], tensors["y"]
            except (InputError, KeyError) as error:
                why = str(error).removeprefix(f"{path} ")
                raise InputError(f"{path} cannot be read as a probe ({shortened(why)}); give one by --probe") from error
    raise InputError(f"{directory} has no {_PROBE}; give a probe by --probe f.npy")


def is_described(run: Path) -> bool:
    """Whether a directory holds the description of a run."""
    return (run / _RUN).exists()


def read_run(run: Path) -> dict[str, Any]:
    """The description of a run, columns of the runs table; of a directory without one, only ``run_id``.

    Raises:
        InputError: The description cannot be read.
    """
    return {"run_id": run.name, **(read_json(run / _RUN) if is_described(run) else {})}


def read_options(directory: Path) -> dict[str, Any]:
    """The options that an experiment was started with, by their names.

    Raises:
        InputError: They cannot be read.
    """
    try:
        return _flat(read_json(directory / _DESCRIPTION))
    except InputError as error:
        raise InputError(f"{error}, or start anew by --overwrite or with another --out") from error


def write_status(run: Path, status: str, **more: Any) -> None:
    """Record the status of a run: ``running``, ``finished``, ``diverged`` or ``failed``."""
    write_json({"status": status, **more}, run / _STATUS)


def clear_status(run: Path) -> None:
    """Remove the status of a run, before it is continued."""
    (run / _STATUS).unlink(missing_ok=True)


def read_status(run: Path) -> dict[str, Any]:
    """A run's ``status`` and what else is recorded with it; empty if there is none that can be read."""
    try:
        return read_json(run / _STATUS)
    except InputError:
        return {}


def is_over(run: Path) -> bool:
    """Whether a run has finished or diverged."""
    return read_status(run).get("status") in ("finished", "diverged")


def _check_same_data(out: Path, probe: tuple[Tensor, Tensor]) -> None:
    """Check that the training images are the same, by the probe, which is drawn from all of them."""
    x, y = read_probe(out)
    same = x.shape == probe[0].shape and torch.equal(y, probe[1])
    # Versions of image decoders may differ slightly.
    if not same or not torch.allclose(x, probe[0], rtol=1e-2, atol=1e-1):
        raise InputError(
            f"the training images are not those that {out} was started with (its probe would change); "
            "restore them, or start anew with another --out"
        )


def _options(config: TrainConfig, processes: int) -> dict[str, Any]:
    """What describes an experiment: its options in their groups, but the measurements, which hold functions."""
    groups = {group.name: _plain(getattr(config, group.name)) for group in dataclasses.fields(config)}
    return groups | {_PROCESSES: processes}


def _plain(group: Any) -> dict[str, Any]:
    values = {option.name: getattr(group, option.name) for option in dataclasses.fields(group)}
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if name != "measurements"
    }


def _flat(groups: dict[str, Any]) -> dict[str, Any]:
    """Options by their own names, without their groups."""
    flat = {_PROCESSES: groups.get(_PROCESSES)}
    for group in groups.values():
        flat |= group if isinstance(group, dict) else {}
    return flat


def _check_same(config: TrainConfig, processes: int, before: dict[str, Any]) -> None:
    now = _flat(json.loads(json.dumps(_options(config, processes))))
    changed = [name for name in now if name not in _MAY_CHANGE and now[name] != before.get(name)]
    if changed:
        sides = {name: [shortened(side.get(name), 40) for side in (before, now)] for name in changed}
        differences = [f"{name.replace('_', '-')} {' → '.join(own)}" for name, own in sides.items()]
        more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
        raise InputError(
            f"--resume needs the options that {config.output.out} was started with, and these have changed: "
            f"{', '.join(differences[:_MOST_NAMED])}{more}; give the former, or start anew with another --out"
        )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory inside, which is made if missing; the kernel frees it when the process dies.

    Raises:
        InputError: Another process holds it, or the directory cannot be written.
    """
    lock = FolderLock(directory, LOCK, "another process", "wait for it, or choose another --out")
    lock.acquire()
    try:
        yield
    finally:
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
