"""The checkpoints that ``spectrum_analysis`` measures, each with the network it belongs to and a probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import run_directories
from skip_conditioning.experiments.records.checkpoints import list_checkpoints
from skip_conditioning.experiments.records.directory import is_described, read_probe, read_run
from skip_conditioning.experiments.records.fitting_weights import load_into
from skip_conditioning.experiments.training.frozen_batch_norm import hold_batch_norms
from skip_conditioning.experiments.training.networks import ONLY_ARM, build_network, parse_model_options
from skip_conditioning.models import build_model


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

    def build(self, model: str | None, options: Sequence[str]) -> nn.Module:
        """The network with the checkpoint's weights, in train mode; batch norm as frozen as it was in training.

        Args:
            model: Name or factory that overrides what the run says; needed for a foreign checkpoint.
            options: Options of that model.

        Raises:
            InputError: Nothing says which network it is, or the weights do not fit it.
        """
        if model is not None:
            network = build_model(model, **parse_model_options(options)).train()
        else:
            network = self._own_network()
        load_into(network, self.weights)
        if self.run.get("batch_norm") == "frozen":
            hold_batch_norms(network, str(self.run["model"]))
        return network

    def _own_network(self) -> nn.Module:
        try:
            return build_network(
                self.run["model"],
                self.run.get("arm", ONLY_ARM),
                str(self.run.get("model_options", "")).split(),
                num_classes=self.run["num_classes"],
                input_shape=self.run["input_shape"],
            )
        except KeyError as error:
            raise InputError(
                f"{self.weights}: nothing beside it says what network it belongs to; give --model"
            ) from error


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


def load_probe(path: Path | None, target: Target, size: int | None) -> Tensor:
    """The probe's inputs, from a NumPy file, or those that the run was measured on.

    Args:
        path: A ``.npy`` file; None for the experiment's own probe.
        target: The checkpoint it is for.
        size: Number of samples to take, from the first on; None for all.

    Returns:
        Shape ``(N, *input_shape)``; floating-point arrays as the default dtype, others as they are.

    Raises:
        InputError: It is missing, unreadable, or has fewer samples.
    """
    x = read_probe(target.directory)[0] if path is None else _load_array(path)
    if size is not None and not 1 <= size <= len(x):
        raise InputError(f"--probe-size {size} of a probe of {len(x)} samples; give a number from 1 to {len(x)}")
    return x[:size]


def _load_array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as a NumPy array ({reason}); write it with numpy.save") from error
    x = torch.from_numpy(np.asarray(array))
    return x.to(torch.get_default_dtype()) if x.is_floating_point() else x


def check_probe(model: nn.Module, x: Tensor) -> None:
    """Check that a network, whose buffers this may change, can be applied to the probe.

    Raises:
        InputError: It cannot; the message is the network's own, with the shape of the probe.
    """
    try:
        with torch.no_grad():
            model(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"the network cannot be applied to a probe of shape {tuple(x.shape)}: {reason}") from error


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
