"""The directory of an experiment: what may be written there, and the small files that describe it.

``experiment.json`` holds the options, ``probe.safetensors`` the probe, ``speed.parquet`` the speed table and
``runs/`` one directory per run.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import write_json
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.records.checkpoints import save_checkpoint
from skip_conditioning.experiments.records.locks import LOCK, check_unlocked

_DESCRIPTION = "experiment.json"
_PROBE = "probe.safetensors"
_PROCESSES = "torchrun_processes"

#: Options that may change on resuming: where things are, what is said beside the tables, how many runs there are.
_MAY_CHANGE = frozenset(
    (
        *("out", "data_dir", "device", "processes", "workers", "skip_corrupt", "log"),
        *("resume", "overwrite", "estimate", "arms", "lr", "trials"),
    )
)


def check_out(config: TrainConfig, processes: int = 1) -> None:
    """See that ``--out`` can be used, before anything else is done; nothing is written.

    Args:
        config: The options.
        processes: How many train each run. Another number of them would make other batches, and take batch norm over
            other parts of them.

    Raises:
        InputError: It exists and neither ``--resume`` nor ``--overwrite`` is given, holds something else than an
            experiment, cannot be written, or holds an experiment with other options.
    """
    out = config.output.out
    if config.output.resume and config.output.overwrite:
        raise InputError("--resume keeps what --overwrite removes; give one of them")
    place = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not place.is_dir():
        raise InputError(f"--out {out} cannot be made: {place} is a file; choose another directory")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"--out {out} cannot be made: {place} is not writable; choose another directory")
    ours = (out / _DESCRIPTION).exists()
    # Killed at its very start, an experiment leaves no more than these.
    if out.exists() and any(entry.name not in (LOCK, f".{_DESCRIPTION}.tmp") for entry in out.iterdir()):
        if not ours:
            raise InputError(f"--out {out} exists and holds no experiment; choose another directory")
        if not (config.output.resume or config.output.overwrite):
            raise InputError(f"--out {out} exists; go on with it by --resume or replace it by --overwrite")
    if config.output.resume and ours:
        _check_same(config, processes, _read_options(out / _DESCRIPTION))


def prepare_out(config: TrainConfig, probe: tuple[Tensor, Tensor], processes: int = 1) -> None:
    """Make the experiment's directory, emptied first with ``--overwrite``, and describe it.

    Its lock is to be held meanwhile.

    Args:
        config: The options.
        probe: The fixed batch ``(x, y)``.
        processes: How many train each run.

    Raises:
        InputError: It cannot be made, emptied or written, another process writes one of its runs, or the data are not
            those that it was begun with.
    """
    out = config.output.out
    check_unlocked((out / "runs").glob("*"))
    if (out / _PROBE).exists() and not config.output.overwrite:
        _check_same_data(out, probe)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if config.output.overwrite:
            # What says that this is an experiment goes last, so that --overwrite can be repeated when interrupted.
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
    for place in (directory, *directory.absolute().parents[:2]):
        if (place / _PROBE).exists():
            try:
                tensors = load_file(place / _PROBE)
                return tensors["x"], tensors["y"]
            except (SafetensorError, KeyError, OSError) as error:
                raise InputError(f"{place / _PROBE} cannot be read ({error}); give another one by --probe") from error
    raise InputError(f"{directory} has no {_PROBE}; give a probe by --probe f.npy")


def write_status(run: Path, status: str, **more: Any) -> None:
    """Record how a run stands: ``running``, ``finished``, ``diverged`` or ``failed``."""
    write_json({"status": status, **more}, run / "status.json")


def clear_status(run: Path) -> None:
    """Forget how a run stood, before it is taken up again."""
    (run / "status.json").unlink(missing_ok=True)


def read_status(run: Path) -> dict[str, Any]:
    """How a run stands, by ``status`` and what else is recorded with it; empty if nothing readable is."""
    try:
        status = json.loads((run / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def is_over(run: Path) -> bool:
    """Whether a run has come to its end, by finishing or by diverging."""
    return read_status(run).get("status") in ("finished", "diverged")


def _check_same_data(out: Path, probe: tuple[Tensor, Tensor]) -> None:
    """See that the probe is the same: it is drawn from all training images, and another one if those are others."""
    x, y = read_probe(out)
    same = x.shape == probe[0].shape and torch.equal(y, probe[1])
    # Decoders of other versions may differ by a shade.
    if not same or not torch.allclose(x, probe[0], rtol=1e-2, atol=1e-1):
        raise InputError(
            f"the training images are not those that {out} was begun with (its probe would be another); "
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


def _read_options(path: Path) -> dict[str, Any]:
    """The options of the experiment that a description is of, by their own names."""
    try:
        return _flat(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}); start anew by --overwrite or with another --out") from error


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
        differences = ", ".join(f"{name.replace('_', '-')} {before.get(name)} → {now[name]}" for name in changed)
        raise InputError(
            f"--resume needs the options of {config.output.out}, which are others ({differences}); give those, or "
            "start anew with another --out"
        )
