"""Claim: a skip moves the singular values away from 0 (docs/paper.md §3 and §4). Nothing is trained for it.

Random matrices A against I + A at several sizes, and the Jacobians of residual blocks with the skip on and off, at the
same weights and the same input of the block: only the block measured loses its skip, those before it keep theirs.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.measure import spectra
from skip_conditioning.diagnostics.spectrum import Spectrum
from skip_conditioning.diagnostics.tables import Experiment, empty_frame, spectra_frame, write_table
from skip_conditioning.experiments.claims.statistics.median_intervals import median_interval
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs, DecisionRule, Plan, Size
from skip_conditioning.experiments.claims.verdict.comparisons import judge_comparisons
from skip_conditioning.experiments.claims.verdict.outcome import (
    Comparison,
    Direction,
    Finding,
    Judgement,
    Verdict,
    combine,
)
from skip_conditioning.experiments.claims.verdict.paired_claim import answer, change
from skip_conditioning.experiments.data.datasets import load_data, to_float
from skip_conditioning.experiments.processes.machine import one_thread
from skip_conditioning.experiments.theory.random_matrices import uniform_matrix
from skip_conditioning.experiments.training.networks import build_network
from skip_conditioning.figures.drawing.saving import save_drawable
from skip_conditioning.figures.random_matrices import random_matrices

_ON, _OFF = "skip on", "skip off"
_COMPARISON = Comparison("sigma_min", _ON, _OFF, Direction.LARGER)
#: σ_min ~ n^p counts as bounded away from 0 if p is above this, and as tending to 0 if it is below.
_BOUNDED = -0.25
_TABLE = "smallest_singular_values.parquet"


@dataclass(frozen=True)
class _Network:
    """A network whose blocks are measured."""

    name: str  # in words
    model: str  # of the arm residual
    options: tuple[str, ...]
    blocks: tuple[str, ...]  # those with an identity skip
    images: int  # in the probe


_MLP, _MLP_BLOCKS = "residual-mlp", tuple(f"blocks.{number}" for number in range(4))
_NETWORKS: tuple[_Network, ...] = (
    _Network("residual MLP, no norm, tanh", _MLP, ("width=32", "depth=4", "activation=tanh"), _MLP_BLOCKS, 4),
    _Network("residual MLP, batch norm, ReLU", _MLP, ("width=32", "depth=4", "normaliser=batch"), _MLP_BLOCKS, 8),
    _Network("paper's MNIST network, block1", "paper-mnist", (), ("block1",), 2),
)


@dataclass(frozen=True)
class _Scale:
    """How much is measured."""

    networks: tuple[_Network, ...]
    trials: int  # initialisations of each network
    draws: int  # random matrices of each size
    sizes: tuple[int, ...]  # rows of random matrices


#: The convolutional block takes a second for each of its Jacobians.
_DEMO = _Scale(_NETWORKS[:2], 10, 30, (32, 64, 128, 256))
_FULL = _Scale(_NETWORKS, 30, 100, (32, 64, 128, 256, 512))


@dataclass
class SkipShiftsSpectrum:
    """σ(I + A) is bounded away from 0, σ(A) is not."""

    id: str = "skip-shifts-spectrum"
    statement: str = (
        "The singular values of a map with an identity skip, I + A, are bounded away from 0; those of A are not."
    )
    source: str = "MacDonald et al. 2023, section 5 and the histogram of random matrices; docs/paper.md §3"
    predicted: str = (
        "σ_min(I + A) tends to a positive number and σ_min(A) to 0 as random matrices grow; the smallest singular "
        "value of a block is larger with its skip than without"
    )
    controls: tuple[str, ...] = (
        "same weights and same input of the block, with the skip and without",
        "with and without batch norm, smooth and not",
        "several sizes of random matrices; each draw is a pair",
    )
    rule: DecisionRule = field(default_factory=DecisionRule)

    def plans(self, size: Size) -> dict[str, Plan]:
        """No experiments: nothing is trained."""
        return {}

    def registered(self, size: Size) -> dict[str, Any]:
        """The random matrices and networks measured, and the rule."""
        return {
            "measured": asdict(_scale(size)),
            "comparison": asdict(_COMPARISON),
            "rule": asdict(self.rule),
            "combined": "random matrices by size, and each network, get an equal share of the level; reversed where "
            "any part is, no effect where any has none, supported where all are, undecided otherwise. A network's "
            "σ_min is the geometric mean over its blocks",
            "sizes": f"p of σ_min ~ n^p is fitted to each draw; the interval of its median must lie above {_BOUNDED} "
            f"for I + A and below for A; reversed where either lies wholly on the other side",
        }

    def judge(self, inputs: ClaimInputs, size: Size) -> Judgement:
        """The verdict from singular values, which are measured now; their table is written into the claim's folder.

        Raises:
            InputError: The table cannot be written.
        """
        table = _measured(size, inputs.seed)
        write_table(table, inputs.directory / _TABLE)
        networks = _scale(size).networks
        rule = replace(self.rule, level=self.rule.level / (1 + len(networks)))
        findings = [_growth(table[table["what"] == "random matrices"], rule)]
        for network in networks:
            tables = _as_experiment(table[table["what"] == network.name])
            findings += judge_comparisons(tables, (_COMPARISON,), rule, experiment=network.name)
        whole = combine([finding.verdict for finding in findings])
        largest = max(_scale(size).sizes)
        figures = save_drawable(inputs.directory, {"random_matrices": lambda: random_matrices(largest, inputs.seed)})
        return Judgement(whole, tuple(findings), answer(findings), change(whole, findings, 0), figures)


SKIP_SHIFTS_SPECTRUM = SkipShiftsSpectrum()


def _scale(size: Size) -> _Scale:
    return _DEMO if size == "demo" else _FULL


def _measured(size: Size, seed: int) -> pd.DataFrame:
    with one_thread():
        return pd.DataFrame(_rows(size, seed))


def _rows(size: Size, seed: int) -> Iterator[dict[str, Any]]:
    """One row per map: what, arm, trial, index (a matrix's size or a block's number), and its spectrum's statistics."""
    scale, random = _scale(size), np.random.default_rng(seed)
    for trial in range(scale.draws):
        for count in scale.sizes:
            matrix = uniform_matrix(count, random)
            for arm, shift in ((_ON, 1), (_OFF, 0)):
                yield _row("random matrices", arm, trial, count, _matrix_spectrum(matrix + shift * np.eye(count)))
    for network in scale.networks:
        for trial in range(scale.trials):
            yield from _block_rows(network, trial, seed)


def _row(what: str, arm: str, trial: int, index: int, spectrum: Spectrum) -> dict[str, Any]:
    # The statistics are all that is used; the lists of values would be most of the file.
    row = spectrum.as_row() | {"values": None, "nodes": None, "weights": None}
    return {"what": what, "arm": arm, "trial": trial, "index": index, **row}


def _matrix_spectrum(matrix: np.ndarray) -> Spectrum:
    values = np.linalg.svd(matrix, compute_uv=False)
    floor = len(matrix) * float(np.finfo(float).eps) * float(values[0])
    return Spectrum.of_values(values, matrix.shape, torch.float64, floor=floor, map="layer", layer="A")


def _block_rows(network: _Network, trial: int, seed: int) -> Iterator[dict[str, Any]]:
    model, x = _built(network, seed + trial)
    for index, block in enumerate(network.blocks):
        yield _row(network.name, _ON, trial, index, _block_spectrum(model, x, block))
        module = model.get_submodule(block)
        shortcut = module.shortcut
        module.shortcut = _NoSkip()
        try:
            yield _row(network.name, _OFF, trial, index, _block_spectrum(model, x, block))
        finally:
            module.shortcut = shortcut


class _NoSkip(nn.Module):
    """A skip that is switched off."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the shape of x."""
        return torch.zeros_like(x)


def _built(network: _Network, seed: int) -> tuple[nn.Module, Tensor]:
    """The network in float64 and its probe, digits drawn with the seed."""
    images = load_data("digits", limit_test=1).train.images
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: network.images]
    x = to_float(images[drawn], dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_network(network.model, "residual", network.options, num_classes=10, input_shape=x.shape[1:])
    return model.double(), x


def _block_spectrum(model: nn.Module, x: Tensor, block: str) -> Spectrum:
    (spectrum,) = spectra(model, x, map="layer", layers=[block]).values()
    return spectrum


def _as_experiment(rows: pd.DataFrame) -> Experiment:
    """Rows as tables for paired comparisons: the arms are skip on and off, and a block's number stands for the step."""
    ids = rows["arm"] + "-" + rows["trial"].astype(str)
    runs = pd.DataFrame({"run_id": ids, "arm": rows["arm"], "trial": rows["trial"]}).drop_duplicates(ignore_index=True)
    runs = runs.assign(lr=0.0, status="finished", seed=runs["trial"])
    columns = [name for name in empty_frame("spectra") if name in rows]
    frame = rows[columns].assign(layer="blocks", run_id=ids, step=rows["index"])
    measured = spectra_frame({str(name): value for name, value in row.items()} for row in frame.to_dict("records"))
    return Experiment(runs, empty_frame("metrics"), measured, empty_frame("skipped"))


def _growth(rows: pd.DataFrame, rule: DecisionRule) -> Finding:
    """How the smallest singular value of a random matrix depends on its size."""
    numbers: dict[str, float] = {}
    sides: list[tuple[float, float]] = []
    for name, arm in (("with_skip", _ON), ("without", _OFF)):
        own = rows[rows["arm"] == arm]
        values = own.pivot(index="trial", columns="index", values="sigma_min")
        slopes = np.polyfit(np.log(values.columns.to_numpy(float)), np.log(values.to_numpy().T), 1)[0]
        low, high = median_interval(slopes, slopes, 1 - rule.level)
        smallest = own[own["index"] == own["index"].max()].nsmallest(1, "sigma_min").iloc[0]
        numbers |= {f"exponent_{name}": float(np.median(slopes)), f"exponent_{name}_low": low}
        numbers |= {f"exponent_{name}_high": high, f"smallest_{name}": float(smallest["sigma_min"])}
        if not smallest["resolved"]:
            numbers[f"smallest_{name}_bound"] = -1.0
        sides.append((low, high))
    (on_low, on_high), (off_low, off_high) = sides
    verdict = Verdict.UNDECIDED
    if on_low > _BOUNDED and off_high < _BOUNDED:
        verdict = Verdict.SUPPORTED
    elif on_high < _BOUNDED or off_low > _BOUNDED:
        verdict = Verdict.REVERSED
    note = f"σ_min ~ n^p at n from {rows['index'].min()} to {rows['index'].max()}, {rows['trial'].nunique()} draws"
    return Finding("σ_min(I + A) and σ_min(A) of random matrices by size", verdict, numbers, note=note)
