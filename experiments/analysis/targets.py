"""What ``spectrum_analysis`` is to measure: checkpoints, each with the network it belongs to and a probe."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import run_directories
from skip_conditioning.experiments.records.checkpoints import list_checkpoints, load_into
from skip_conditioning.experiments.records.directory import read_probe
from skip_conditioning.experiments.training.frozen_batch_norm import hold_batch_norms
from skip_conditioning.experiments.training.networks import ONLY_ARM, build_network, parse_model_options
from skip_conditioning.models import build_model


@dataclass(frozen=True)
class Target:
    """One checkpoint to measure.

    Attributes:
        run: Columns of the ``runs`` table; at least ``run_id``.
        step: Optimiser steps it was saved after; 0 where nobody knows.
        weights: The file.
        directory: The run's, or the file's own folder for a foreign checkpoint.
    """

    run: dict[str, Any]
    step: int
    weights: Path
    directory: Path

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
        InputError: A path that is not there or holds no checkpoints (of these steps).
    """
    found = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give an experiment, a run or a checkpoint")
        targets = [_of_file(path)] if path.is_file() else [t for run in run_directories(path) for t in _of_run(run)]
        chosen = [target for target in targets if not steps or target.step in steps]
        if not chosen:
            there = ", ".join(map(str, sorted({target.step for target in targets}))) or "none"
            raise InputError(f"{path} holds no checkpoint of step {' '.join(map(str, steps)) or 'any'}; there: {there}")
        found += chosen
    return found


def foreign_target(weights: Path) -> Target:
    """A checkpoint that no run of ours made."""
    return Target({"run_id": weights.stem}, 0, weights, weights.parent)


def load_probe(path: Path | None, target: Target, samples: int | None) -> Tensor:
    """The probe's inputs, shape ``(N, *input_shape)``: from a NumPy file, or the one the run was measured on.

    Args:
        path: A ``.npy`` file; None for the experiment's own probe.
        target: The checkpoint it is for.
        samples: Only so many of its first samples; None for all.

    Raises:
        InputError: It is missing, unreadable, or has fewer samples.
    """
    if path is None:
        x = read_probe(target.directory)[0]
    else:
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} cannot be read as a NumPy array ({reason}); write it with numpy.save") from error
        x = torch.from_numpy(np.asarray(array))
        x = x.to(torch.get_default_dtype()) if x.is_floating_point() else x
    if samples is not None and not 1 <= samples <= len(x):
        raise InputError(f"--samples {samples} of a probe of {len(x)}; give a number from 1 to {len(x)}")
    return x[:samples]


def check_probe(model: nn.Module, x: Tensor) -> None:
    """See that a network, which is thrown away afterwards, can be applied to the probe.

    Raises:
        InputError: It cannot; the message is the network's own, and the shape of the probe.
    """
    try:
        with torch.no_grad():
            model(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"the network cannot be applied to a probe of shape {tuple(x.shape)}: {reason}") from error


def _of_file(path: Path) -> Target:
    """A checkpoint of a run, known by its place ``RUN/checkpoints/step_*.safetensors``, or a foreign one."""
    run = path.absolute().parent.parent
    for step, checkpoint in list_checkpoints(run):
        if checkpoint == path.absolute() and (run / "config.json").exists():
            return Target(_read_config(run), step, path, run)
    return foreign_target(path)


def _of_run(run: Path) -> list[Target]:
    config = _read_config(run)
    return [Target(config, step, path, run) for step, path in list_checkpoints(run)]


def _read_config(run: Path) -> dict[str, Any]:
    if not (run / "config.json").exists():
        return {"run_id": run.name}
    try:
        return {"run_id": run.name, **json.loads((run / "config.json").read_text())}
    except ValueError as error:
        raise InputError(f"{run / 'config.json'} is not readable ({error}); give --model and --weights") from error
