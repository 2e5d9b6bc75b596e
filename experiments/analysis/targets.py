"""The checkpoints that ``spectrum_analysis`` measures, each with the network it belongs to and a probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.diagnostics.tables import run_directories
from skip_conditioning.experiments.analysis.probe_file import read_probe_file
from skip_conditioning.experiments.config.train_config import ONLY_ARM
from skip_conditioning.experiments.records.checkpoints import list_checkpoints
from skip_conditioning.experiments.records.directory import is_described, read_probe, read_run
from skip_conditioning.experiments.records.fitting_weights import load_into
from skip_conditioning.experiments.records.tensor_files import quoted
from skip_conditioning.experiments.training.frozen_batch_norm import hold_batch_norms
from skip_conditioning.experiments.training.networks import build_network, parse_model_options
from skip_conditioning.models import build_model, model_names


@dataclass(frozen=True)
class Target:
    """One checkpoint to measure.

    Attributes:
        run: Columns of the ``runs`` table; at least ``run_id``.
        step: Optimiser steps it was saved after; 0 if unknown.
        weights: The file.
        directory: The run's directory, or the file's own folder for a foreign checkpoint.
    """

    run: dict[str, Any]
    step: int
    weights: Path
    directory: Path

    @property
    def is_foreign(self) -> bool:
        """Whether the checkpoint comes from elsewhere than ``skip-conditioning train``."""
        return "model" not in self.run

    def build(self, model: str | None = None, options: Sequence[str] = (), key: str | None = None) -> nn.Module:
        """The network with the checkpoint's weights, in train mode; batch norm as frozen as it was in training.

        Args:
            model: Name or factory, from the command line; needed for a foreign checkpoint, and for a run whose network
                is not of the registry, as a file's word is not enough to run code.
            options: Options of that model; by default those of the run.
            key: Which weights of the file to take where several fit.

        Raises:
            InputError: Nothing says which network it is, or the weights do not fit it.
        """
        if not self.is_foreign:
            network = self._network_of_run(model, options)
        elif model is not None:
            network = build_model(model, **parse_model_options(options)).train()
        else:
            raise InputError(f"{self.weights}: nothing beside it says what network it belongs to; give --model")
        load_into(network, self.weights, key)
        if self.run.get("batch_norm") == "frozen":
            hold_batch_norms(network, str(self.run["model"]))
        return network

    def _network_of_run(self, model: str | None, options: Sequence[str]) -> nn.Module:
        own = self._described("model", str)
        if model is None and own not in model_names():
            raise InputError(
                f"{self.weights}: the run was trained with {quoted(own)}, and code that a file names is not run; "
                "give it by --model yourself"
            )
        if model is None or (model == own and not options):
            options = self._described("model_options", str, "").split()
        return build_network(
            model or own,
            self._described("arm", str, ONLY_ARM),
            options,
            num_classes=self._described("num_classes", int),
            input_shape=self._described("input_shape", list),
        )

    def _described(self, name: str, kind: type, default: Any = None) -> Any:
        """An entry of the run's description.

        Raises:
            InputError: It is missing or not of its kind.
        """
        value = self.run.get(name, default)
        sizes = value if kind is list and isinstance(value, list) else [value] if kind is int else []
        if not isinstance(value, kind) or not all(type(size) is int and size > 0 for size in sizes):
            reason = "lacks" if value is None else "has a wrong"
            raise InputError(f"{self.directory / 'config.json'} {reason} {name}; restore it, or analyse by --weights")
        return value


def find_targets(paths: Sequence[Path], steps: Sequence[int]) -> list[Target]:
    """The checkpoints of experiments, runs, or single files.

    Args:
        paths: Experiments, runs, and checkpoint files of runs, in any mixture.
        steps: Only checkpoints of these steps; empty for all.

    Raises:
        InputError: A path does not exist or holds no checkpoints (of these steps).
    """
    chosen: list[Target] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give an experiment, a run or a checkpoint")
        targets = [_of_file(path)] if path.is_file() else [t for run in run_directories(path) for t in _of_run(run)]
        at_steps = [target for target in targets if not steps or target.step in steps]
        if not at_steps:
            wanted = " ".join(map(str, steps)) or "any"
            there = ", ".join(map(str, sorted({target.step for target in targets}))) or "none"
            raise InputError(f"{path} holds no checkpoint of step {wanted}; there: {there}")
        chosen += at_steps
    return chosen


def foreign_target(weights: Path) -> Target:
    """A checkpoint that no run of ours made."""
    return Target({"run_id": weights.stem}, 0, weights, weights.parent)


def load_probe(path: Path | None, target: Target, size: int | None) -> Any:
    """The probe in a file, or the inputs that the run was measured on.

    Args:
        path: As for ``probe_file.read_probe_file``; None for the experiment's own probe.
        target: The checkpoint it is for.
        size: Number of samples to take, from the first on; None for all.

    Returns:
        What the measuring functions take as a probe.

    Raises:
        InputError: It is missing, unreadable, or has fewer samples, or none.
    """
    batch = read_probe(target.directory)[0] if path is None else read_probe_file(path)
    try:
        probe = batch if isinstance(batch, Probe) else Probe(batch)
    except InputError as error:
        raise InputError(f"{path or target.directory}: {error}") from error
    count = len(probe)
    if size is None:
        return batch
    if not 1 <= size <= count:
        raise InputError(f"--probe-size {size} of a probe of {count} samples; give a number from 1 to {count}")
    first = probe.mapped(lambda tensor: tensor[:size] if tensor.dim() and len(tensor) == count else tensor)
    return first if isinstance(batch, Probe) else first.inputs


def check_probe(model: nn.Module, batch: Any) -> None:
    """Check that a network, whose buffers this may change, can be applied to the probe.

    Raises:
        InputError: It cannot; the message is the network's own, with the shape of the probe.
    """
    probe = Probe.of(batch, model)
    positional, named = probe.arguments
    try:
        with torch.no_grad():
            model(*positional, **named)
    except Exception as error:  # whatever the network's code raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the network cannot be applied to the probe {probe.description()}: {reason}") from error


def _of_file(path: Path) -> Target:
    """A checkpoint of a run, recognised by its path ``RUN/checkpoints/step_*.safetensors``, or a foreign one."""
    run = path.absolute().parent.parent
    for step, checkpoint in list_checkpoints(run):
        if checkpoint == path.absolute() and is_described(run):
            return Target(read_run(run), step, path, run)
    return foreign_target(path)


def _of_run(run: Path) -> list[Target]:
    description = read_run(run)
    return [Target(description, step, path, run) for step, path in list_checkpoints(run)]
