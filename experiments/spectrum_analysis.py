"""Spectra of saved checkpoints: ``python experiments/spectrum_analysis.py PATH…``.

A PATH is an experiment, a run or a checkpoint of ``experiments.train``; a checkpoint of anybody else's network needs
``--model package.module:factory --weights FILE --probe FILE``. Writes a table of spectra and their figures. Under
``torchrun --nproc-per-node N`` the processes share the work of each spectrum.
"""

import dataclasses
import functools
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.jacobians.exact import check_method
from skip_conditioning.diagnostics.measure import GIB, spectra
from skip_conditioning.diagnostics.networks.maps import check_map
from skip_conditioning.diagnostics.spectrum import Spectrum
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
from skip_conditioning.experiments.analysis.shortcut_table import print_shortcut_table
from skip_conditioning.experiments.analysis.targets import Target, check_probe, find_targets, foreign_target, load_probe
from skip_conditioning.experiments.config.command_line import parse_options, run_command
from skip_conditioning.experiments.processes.group import (
    choose_device,
    is_first_process,
    leave,
    own_device,
    process_group,
)
from skip_conditioning.figures import conditioning_heat_map, save, singular_value_histograms, singular_value_ridges
from skip_conditioning.figures.drawing.errors import NothingToDrawError

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Options:
    """Measure the spectra of checkpoints; print, write and draw them."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH")] = ()
    """Experiments, runs or checkpoints written by experiments.train."""

    map: tuple[str, ...] = ("tail",)
    """Derivatives to measure: layer ∂output/∂input of a module, tail ∂logits/∂(its output), network
    ∂logits/∂input, param ∂output/∂(its parameters), kernel (its share of the tangent kernel)."""

    layers: tuple[str, ...] = ()
    """Module names or globs such as 'block*'; by default the blocks of the network."""

    batch_mode: str = "batch"
    """batch: the map of the whole probe at once, batch norm in train mode; sample: each sample by itself, in eval
    mode."""

    method: str = "auto"
    """How singular values are obtained: exact (all of them), lanczos (a quadrature of their density, with standard
    errors), or auto, which is exact where that fits the memory budget and is not too dear."""

    tolerance: float | None = None
    """Relative standard error of the mean singular value that lanczos is to reach, such as 0.05; by default it uses 2
    probe vectors with 32 steps each."""

    seed: int = 0
    """Of the probe vectors of lanczos."""

    dtype: str | None = None
    """Precision of the Jacobians, float32 or float64; by default the weights' own."""

    memory_budget: float = 1.0
    """GiB that a measurement may take."""

    steps: tuple[int, ...] = ()
    """Only checkpoints of these steps; by default all."""

    samples: int | None = None
    """Only so many of the probe's first samples; by default all."""

    probe: Path | None = None
    """NumPy file (.npy) of inputs, one sample a row; by default the probe of the experiment."""

    model: str | None = None
    """package.module:factory, or a name listed by python -m models, for a checkpoint not made by
    experiments.train."""

    model_options: tuple[str, ...] = ()
    """Options of that model, each name=value."""

    weights: Path | None = None
    """Checkpoint of that model: .safetensors, or a .pt/.pth state dict."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda and so on."""

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
        return print_shortcut_table(seed=options.seed) if is_first_process() else None
    device, dtype = own_device(choose_device(options.device)), _dtype(options.dtype)
    for name in options.map:
        check_map(name, options.batch_mode)
    check_method(options.method, options.tolerance)
    if options.memory_budget <= 0:
        raise InputError(f"--memory-budget is in GiB and must be positive; it is {options.memory_budget}")
    targets = _targets(options)
    for target in targets:
        check_probe(
            target.build(options.model, options.model_options), load_probe(options.probe, target, options.samples)
        )
    out = options.out or _default_out(targets, options.paths)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; choose a folder")

    rows: list[dict] = []
    with process_group(device) as group, tqdm(targets, unit="checkpoint", dynamic_ncols=True) as bar:
        for target in bar:
            bar.set_description(f"{target.run['run_id']} step {target.step}")
            model = target.build(options.model, options.model_options).to(device)
            probe = load_probe(options.probe, target, options.samples).to(device)
            for name in options.map:
                found = spectra(
                    model,
                    probe,
                    map=name,
                    layers=list(options.layers) or None,
                    batch_mode=options.batch_mode,
                    method=options.method,
                    tolerance=options.tolerance,
                    seed=options.seed,
                    dtype=dtype,
                    memory_budget=int(options.memory_budget * GIB),
                    progress=True,
                    group=group,
                )
                rows += [_row(target, spectrum) for spectrum in found.values()]

    if not is_first_process():
        return
    _write(rows, out)
    tables = dataclasses.replace(_tables(targets), spectra=spectra_frame(rows))
    print(layer_step_table(tables.spectra, tables.runs).to_string(index=False))
    paths = _draw(tables, out)
    print(f"\nspectra: {out / 'spectra'}" + "".join(f"\nfigure: {path}" for path in paths))


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


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise InputError(f"--dtype {name} is unknown; known are {', '.join(DTYPES)}")
    return None if name is None else DTYPES[name]


def _targets(options: Options) -> list[Target]:
    if options.weights is None:
        if not options.paths:
            raise InputError("nothing to analyse; give a PATH, or --model, --weights and --probe")
        return find_targets(options.paths, options.steps)
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


def _row(target: Target, spectrum: Spectrum) -> dict:
    return {"run_id": target.run["run_id"], "step": target.step, **spectrum.as_row()}


def _write(rows: list[dict], out: Path) -> None:
    """Replace an earlier analysis by this one, whole."""
    if (out / "spectra").exists():
        shutil.rmtree(out / "spectra")
    table = TableWriter(out / "spectra", SPECTRA)
    for row in rows:
        table.append(row)
    table.flush()


def _tables(targets: Sequence[Target]) -> Experiment:
    """The tables of the runs that the checkpoints belong to; of a foreign one there is nothing but its name."""
    own = {target.directory: target for target in targets if "model" in target.run}
    read = [read_experiment(directory) for directory in own]
    names = [{"run_id": target.run["run_id"]} for target in targets if "model" not in target.run]
    foreign = Experiment(pd.DataFrame(names, columns=RUN_COLUMNS), *(empty_frame(name) for name in SCHEMAS))
    return Experiment(
        *(
            pd.concat([getattr(table, field.name) for table in (read or [foreign])], ignore_index=True)
            for field in dataclasses.fields(Experiment)
        )
    )


def _draw(tables: Experiment, out: Path) -> list[Path]:
    """The figures of each map that was measured; those there is nothing to draw for are named."""
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
                print(f"skipped {figure} of {name}: {reason}", file=sys.stderr)
    return paths


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 for bad input."""
    return run_command(analyse, lambda: parse_options(Options, "python experiments/spectrum_analysis.py", args))


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))  # so that --model finds factories beside the user
    leave(main())
