"""Spectra of saved checkpoints: ``skip-conditioning analyse PATH…``.

A PATH is an experiment, a run or a checkpoint of ``skip-conditioning train``; a checkpoint of anybody else's network
needs ``--model package.module:factory --weights FILE --probe FILE``. Writes a table of spectra and their figures. Under
``torchrun --nproc-per-node N`` the processes share the work of each spectrum.
"""

import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import tyro
from matplotlib.figure import Figure
from torch import distributed
from tqdm import tqdm

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.jacobians.exact import check_method
from skip_conditioning.diagnostics.measure import spectra
from skip_conditioning.diagnostics.networks.maps import check_map
from skip_conditioning.diagnostics.support.memory import GIB
from skip_conditioning.diagnostics.tables import (
    RUN_COLUMNS,
    SCHEMAS,
    SPECTRA,
    Experiment,
    TableWriter,
    empty_frame,
    read_experiment,
    spectra_frame,
)
from skip_conditioning.experiments.analysis.shortcut_table import shortcut_report
from skip_conditioning.experiments.analysis.targets import Target, check_probe, find_targets, foreign_target, load_probe
from skip_conditioning.experiments.config.command_line import parse_options, run_command
from skip_conditioning.experiments.processes.group import is_first_process, leave, process_group
from skip_conditioning.experiments.processes.machine import choose_device, own_device
from skip_conditioning.figures import (
    NothingToDrawError,
    conditioning_heat_map,
    save,
    singular_value_histograms,
    singular_value_ridges,
)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Measure the spectra of checkpoints; print, write and draw them."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH")] = ()
    """Experiments, runs or checkpoints written by skip-conditioning train."""

    map: tuple[str, ...] = ("layer",)
    """Derivatives to measure: layer ∂output/∂input of a module, tail ∂logits/∂(its output), network
    ∂logits/∂input, param ∂output/∂(its parameters), kernel (its share of the tangent kernel)."""

    layers: tuple[str, ...] = ()
    """Module names or globs such as 'block*'; by default the blocks of the network."""

    batch_mode: str = "batch"
    """batch: the map of the whole probe at once, batch norm in train mode; sample: each sample by itself, in eval
    mode."""

    method: str = "auto"
    """How singular values are obtained: exact (all of them), lanczos (a quadrature of their density, with standard
    errors), or auto, which is exact where that fits the memory budget and does not take too long."""

    tolerance: float | None = None
    """Relative standard error of the mean singular value that lanczos is to reach, such as 0.05; by default it uses 2
    random vectors with 32 steps each."""

    seed: int = 0
    """Seed of the random vectors of lanczos."""

    spectra_dtype: Literal["model", "float64"] = "model"
    """Precision of spectra's Jacobians; float64 resolves condition numbers up to 1e12 or so, in twice the time."""

    memory_budget: float = 1.0
    """GiB that a measurement may take."""

    at_steps: tuple[int, ...] = ()
    """Only checkpoints of these steps; by default all."""

    probe_size: int | None = None
    """Number of the probe's samples to use, from the first on; by default all."""

    probe: Path | None = None
    """File of inputs: .npy (one sample a row), or .npz, .safetensors or .pt with a tensor, or with several by the names
    that the network's forward pass gives them; labels or targets may be among them. By default the probe of the
    experiment."""

    model: str | None = None
    """package.module:factory, path/to/file.py:factory, or a name listed by skip-conditioning models: for a checkpoint
    not made by skip-conditioning train, and for runs that were trained with a factory of your own."""

    model_options: tuple[str, ...] = ()
    """Options of that model, each name=value."""

    weights: Path | None = None
    """Checkpoint of that model: .safetensors, .pt, .pth, .bin, .ckpt, .pth.tar, or the .index.json of several. The
    weights may be nested, and their names have a prefix: what fits the network is taken."""

    key: str | None = None
    """Which weights of that file to take where several fit, such as ema."""

    device: str = "auto"
    """cpu, cuda, cuda:1 and so on; auto for a GPU if there is one."""

    out: Path | None = None
    """Folder for the results, which replaces earlier ones there; by default 'analysis' in the PATH, or beside the
    checkpoint."""

    shortcuts: bool = False
    """Print rank and spectrum of the shortcuts that change the shape, original against modified, in preact-resnet18
    and preact-resnet50 as initialised with --seed; takes no PATH, and half a minute."""


def analyse(options: Options) -> None:
    """Measure every checkpoint, then write the table and the figures and print a summary.

    Raises:
        InputError: Anything wrong with options, checkpoints or probes, before anything is measured or written.
    """
    if options.shortcuts:
        if options.paths or options.weights is not None:
            raise InputError("--shortcuts is about fresh networks; give it without a PATH and without --weights")
        if is_first_process():
            print(shortcut_report(seed=options.seed))
        return
    device = own_device(choose_device(options.device))
    _check(options)
    targets = _targets(options)
    for target in targets:
        network = target.build(options.model, options.model_options, options.key)
        check_probe(network, load_probe(options.probe, target, options.probe_size))
    out = options.out or _default_out(targets, options.paths)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; choose a folder")

    rows: list[dict[str, Any]] = []
    with process_group(device) as group, tqdm(targets, unit="checkpoint", dynamic_ncols=True) as bar:
        for target in bar:
            bar.set_description(f"{target.run['run_id']} step {target.step}")
            rows += _measure(target, options, device, group)

    if not is_first_process():
        return
    _write_spectra(rows, out)
    tables = _analysed_tables(targets, rows)
    print(layer_step_table(tables.spectra, tables.runs).to_string(index=False))
    paths = _draw_spectra(tables, out)
    print(f"\nspectra: {out / 'spectra'}" + "".join(f"\nfigure: {path}" for path in paths))


def _check(options: Options) -> None:
    for name in options.map:
        check_map(name, options.batch_mode)
    check_method(options.method, options.tolerance)
    if options.memory_budget <= 0:
        raise InputError(f"--memory-budget is in GiB and must be positive; it is {options.memory_budget}")


def _targets(options: Options) -> list[Target]:
    if options.weights is None:
        if not options.paths:
            raise InputError("nothing to analyse; give a PATH, or --model, --weights and --probe")
        return find_targets(options.paths, options.at_steps)
    missing = [name for name in ("model", "probe") if getattr(options, name) is None]
    if missing:
        raise InputError(f"--weights needs --{missing[0]} too; the file alone does not say")
    if options.paths:
        raise InputError(f"give either a PATH or --weights; both {options.paths[0]} and {options.weights} are given")
    return [foreign_target(options.weights)]


def _default_out(targets: Sequence[Target], paths: Sequence[Path]) -> Path:
    if len(paths) > 1:
        raise InputError("several PATHs are given; say by --out where their results go")
    return (paths[0] if paths and paths[0].is_dir() else targets[0].directory) / "analysis"


def _measure(
    target: Target, options: Options, device: torch.device, group: distributed.ProcessGroup | None
) -> list[dict[str, Any]]:
    """Rows of the spectra table for one checkpoint."""
    model = target.build(options.model, options.model_options, options.key).to(device)
    probe = load_probe(options.probe, target, options.probe_size)
    rows: list[dict[str, Any]] = []
    for name in options.map:
        by_layer = spectra(
            model,
            probe,
            map=name,
            layers=list(options.layers) or None,
            batch_mode=options.batch_mode,
            method=options.method,
            tolerance=options.tolerance,
            seed=options.seed,
            dtype=torch.float64 if options.spectra_dtype == "float64" else None,
            memory_budget=int(options.memory_budget * GIB),
            progress=True,
            group=group,
        )
        for spectrum in by_layer.values():
            rows.append({"run_id": target.run["run_id"], "step": target.step, **spectrum.as_row()})
    return rows


def _write_spectra(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Write rows of spectra to ``out/spectra``, in place of those of an earlier analysis."""
    if (out / "spectra").exists():
        shutil.rmtree(out / "spectra")
    table = TableWriter(out / "spectra", SPECTRA)
    for row in rows:
        table.append(row)
    table.flush()


def _analysed_tables(targets: Sequence[Target], rows: Sequence[dict[str, Any]]) -> Experiment:
    """The tables of the runs that the checkpoints belong to, with the spectra of the analysis.

    Args:
        targets: The checkpoints; of a foreign one only its name is known.
        rows: Of the spectra table.
    """
    directories = dict.fromkeys(target.directory for target in targets if not target.is_foreign)
    foreign_runs = [target.run["run_id"] for target in targets if target.is_foreign]
    names = [{"run_id": name, "arm": name, "trial": 0} for name in foreign_runs]
    foreign = Experiment(pd.DataFrame(names, columns=RUN_COLUMNS), *(empty_frame(name) for name in SCHEMAS))
    experiments = [read_experiment(directory) for directory in directories] or [foreign]
    joined = {
        field.name: pd.concat([getattr(experiment, field.name) for experiment in experiments], ignore_index=True)
        for field in dataclasses.fields(Experiment)
    }
    return Experiment(**joined | {"spectra": spectra_frame(rows)})


def _draw_spectra(tables: Experiment, out: Path) -> list[Path]:
    """Draw the figures of each map into a folder and return their files; what has nothing to show is logged."""
    makers: dict[str, Callable[..., Figure]] = {
        "singular_value_histograms": singular_value_histograms,
        "singular_value_ridges": singular_value_ridges,
        "conditioning_heat_map": conditioning_heat_map,
        "mean_sigma_map": functools.partial(conditioning_heat_map, measure="sigma_mean"),
    }
    paths: list[Path] = []
    for name in tables.spectra["map"].unique():
        for figure, draw in makers.items():
            try:
                paths += save(draw(tables, map=name), out / f"{figure}_{name}")
            except NothingToDrawError as reason:
                _LOG.warning("skipped %s of %s: %s", figure, name, reason)
    return paths


def layer_step_table(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Layer × step: σ_max, σ_min, mean σ and κ, medians over trials and samples.

    ``±`` is the standard error of an estimate. ``≤`` marks a smallest singular value, and ``≥`` a condition number,
    that is only a bound in some of them.

    Args:
        frame: Spectra, columns of ``tables.SPECTRA``.
        runs: Columns ``run_id`` and, of experiments, ``arm`` and ``lr``.
    """
    groups = [name for name in ("lr", "arm") if name in runs and runs[name].notna().any()]
    keys = [*groups, "map", "layer", "step"]
    joined = frame.merge(runs[["run_id", *groups]], on="run_id")
    table = joined.groupby(keys, sort=False, dropna=False).agg(
        sigma_max=("sigma_max", "median"),
        sigma_min=("sigma_min", "median"),
        mean=("sigma_mean", "median"),
        error=("sigma_mean_se", "median"),
        kappa=("condition_number", "median"),
        resolved=("resolved", "all"),
        spectra=("resolved", "size"),
    )
    table = table.reset_index()
    bound = table.pop("resolved").map({True: ("", ""), False: ("≤", "≥")})
    table["sigma_min"] = [f"{mark}{value:.3g}" for (mark, _), value in zip(bound, table["sigma_min"], strict=True)]
    table["kappa"] = [f"{mark}{value:.3g}" for (_, mark), value in zip(bound, table["kappa"], strict=True)]
    for name in ("sigma_max", "mean"):
        table[name] = table[name].map("{:.3g}".format)
    errors = table.pop("error").map("{:.1g}".format)
    table["mean"] += [f" ±{error}" if error != "nan" else "" for error in errors]
    return table.rename(columns={"sigma_max": "σ max", "sigma_min": "σ min", "mean": "σ mean", "kappa": "κ"})


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 for bad input."""
    return run_command(analyse, lambda: parse_options(Options, "skip-conditioning analyse", args))


if __name__ == "__main__":
    leave(main())
