"""A skip moves the singular values away from 0 (PAPER.md, sections 3 and 4); nothing is trained for it.

Random matrices A against I + A at several sizes, and the Jacobians of residual blocks with the skip on and off, at the
same weights and the same input of the block: only the block measured loses its skip, those before it keep theirs.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from skip_conditioning.diagnostics.measure import spectra
from skip_conditioning.diagnostics.spectrum import Spectrum
from skip_conditioning.diagnostics.tables import Experiment, empty_frame, spectra_frame
from skip_conditioning.experiments.claims.verdict.claim import (
    Contrast,
    Evidence,
    Finding,
    Judgement,
    Plan,
    Rule,
    Size,
    Verdict,
)
from skip_conditioning.experiments.claims.verdict.claim_figures import draw
from skip_conditioning.experiments.claims.verdict.paired_claim import change, summary
from skip_conditioning.experiments.claims.verdict.rules import combine, judge_contrasts
from skip_conditioning.experiments.data.datasets import load_data, to_float
from skip_conditioning.experiments.processes.threads import one_thread
from skip_conditioning.experiments.theory.random_matrices import uniform_matrix
from skip_conditioning.experiments.theory.report import write_table
from skip_conditioning.experiments.training.networks import build_network
from skip_conditioning.figures.random_matrices import random_matrices

_ON, _OFF = "skip on", "skip off"
_CONTRAST = Contrast("sigma_min", _ON, _OFF, "larger")
#: σ_min ~ n^p counts as bounded away from 0 for p above this, and as going to 0 below.
_BOUNDED = -0.25
_TABLE = "smallest_singular_values.parquet"


@dataclass(frozen=True)
class _Network:
    """A network whose blocks are measured.

    Attributes:
        name: In words.
        model: In ``models``; its arm is ``residual``.
        options: Of the model.
        blocks: Those with an identity skip.
        images: In the probe.
    """

    name: str
    model: str
    options: tuple[str, ...]
    blocks: tuple[str, ...]
    images: int


_MLP, _MLP_BLOCKS = "residual-mlp", tuple(f"blocks.{place}" for place in range(4))
_NETWORKS: tuple[_Network, ...] = (
    _Network("residual MLP, no norm, tanh", _MLP, ("width=32", "depth=4", "activation=tanh"), _MLP_BLOCKS, 4),
    _Network("residual MLP, batch norm, ReLU", _MLP, ("width=32", "depth=4", "normaliser=batch"), _MLP_BLOCKS, 8),
    _Network("paper's MNIST network, block1", "paper-mnist", (), ("block1",), 2),
)


@dataclass(frozen=True)
class _Scale:
    """How much is measured: networks, their initialisations, random matrices of each size, and these sizes."""

    networks: tuple[_Network, ...]
    seeds: int
    draws: int
    sizes: tuple[int, ...]


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
    source: str = "MacDonald et al. 2023, section 5 and the histogram of random matrices; PAPER.md, section 3"
    predicted: str = (
        "σ_min(I + A) tends to a positive number and σ_min(A) to 0 as random matrices grow; the smallest singular "
        "value of a block is larger with its skip than without"
    )
    controls: tuple[str, ...] = (
        "same weights and same input of the block, with the skip and without",
        "batch norm and none, smooth and not",
        "several sizes of random matrices, each draw its own pair",
    )
    rule: Rule = field(default_factory=Rule)

    def plans(self, size: Size) -> dict[str, Plan]:
        """Nothing is trained."""
        return {}

    def registered(self, size: Size) -> dict[str, Any]:
        """What is drawn and measured, and the rule."""
        return {
            "measured": asdict(_scale(size)),
            "contrast": asdict(_CONTRAST),
            "rule": asdict(self.rule),
            "combined": "random matrices by size, and each network, get an equal share of the level; contradicted "
            "where one is, supported where all are, vacuous where all are, inconclusive otherwise. A network's σ_min "
            "is the geometric mean over its blocks",
            "sizes": f"p of σ_min ~ n^p is fitted to each draw; the interval of its median must lie above {_BOUNDED} "
            f"for I + A and below for A; contradicted where either lies wholly on the other side",
        }

    def judge(self, evidence: Evidence, size: Size) -> Judgement:
        """The verdict from singular values measured for it; their table is written beside it.

        Raises:
            InputError: The table cannot be written.
        """
        table = _measured(size, evidence.seed)
        write_table(table, evidence.directory / _TABLE)
        networks = _scale(size).networks
        rule = replace(self.rule, level=self.rule.level / (1 + len(networks)))
        findings = [_growth(table[table["what"] == "random matrices"], rule)]
        verdicts: list[Verdict] = [findings[0].verdict]
        for network in networks:
            tables = _as_experiment(table[table["what"] == network.name])
            verdict, found = judge_contrasts(tables, (_CONTRAST,), rule, evidence.seed)
            verdicts.append(verdict)
            findings += [replace(finding, what=f"{finding.what}, {network.name}") for finding in found]
        whole = combine(verdicts)
        largest = max(_scale(size).sizes)
        figures = draw(evidence.directory, {"random_matrices": lambda: random_matrices(largest, evidence.seed)})
        return Judgement(whole, tuple(findings), summary(findings), change(whole, findings, 0), figures)


SKIP_SHIFTS_SPECTRUM = SkipShiftsSpectrum()


def _scale(size: Size) -> _Scale:
    return _DEMO if size == "demo" else _FULL


def _measured(size: Size, seed: int) -> pd.DataFrame:
    with one_thread():
        return pd.DataFrame(_rows(size, seed))


def _rows(size: Size, seed: int) -> Iterator[dict[str, Any]]:
    """One row per map: what, arm, trial, place (a size or a block's number) and its spectrum's statistics."""
    scale, random = _scale(size), np.random.default_rng(seed)
    for trial in range(scale.draws):
        for count in scale.sizes:
            matrix = uniform_matrix(count, random)
            for arm, shift in ((_ON, 1), (_OFF, 0)):
                yield _row("random matrices", arm, trial, count, _matrix_spectrum(matrix + shift * np.eye(count)))
    for network in scale.networks:
        for trial in range(scale.seeds):
            yield from _block_rows(network, trial, seed)


def _row(what: str, arm: str, trial: int, place: int, spectrum: Spectrum) -> dict[str, Any]:
    # All values are in the statistics that are kept; the lists would make most of the file.
    row = spectrum.as_row() | {"values": None, "nodes": None, "weights": None}
    return {"what": what, "arm": arm, "trial": trial, "place": place, **row}


def _matrix_spectrum(matrix: np.ndarray) -> Spectrum:
    values = np.linalg.svd(matrix, compute_uv=False)
    rows, cols = matrix.shape
    floor = rows * float(np.finfo(float).eps) * float(values[0])
    return Spectrum("layer", "A", "batch", rows, cols, values, floor, "exact: svd", "float64")


def _block_rows(network: _Network, trial: int, seed: int) -> Iterator[dict[str, Any]]:
    model, x = _built(network, seed + trial)
    for place, block in enumerate(network.blocks):
        yield _row(network.name, _ON, trial, place, _block_spectrum(model, x, block))
        module = model.get_submodule(block)
        shortcut = module.shortcut
        module.shortcut = _Nothing()
        try:
            yield _row(network.name, _OFF, trial, place, _block_spectrum(model, x, block))
        finally:
            module.shortcut = shortcut


class _Nothing(nn.Module):
    """What is left of an identity skip that is switched off."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(x)


def _built(network: _Network, seed: int) -> tuple[nn.Module, Tensor]:
    """The network in float64 and its probe, digits drawn by the seed."""
    images = load_data("digits", limit_test=1).train.images
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: network.images]
    x = to_float(images[drawn], dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_network(network.model, "residual", network.options, num_classes=10, input_shape=x.shape[1:])
    return model.double(), x


def _block_spectrum(model: nn.Module, x: Tensor, block: str) -> Spectrum:
    (found,) = spectra(model, x, map="layer", layers=[block]).values()
    return found


def _as_experiment(rows: pd.DataFrame) -> Experiment:
    """Rows as tables for paired comparisons: arms are the skip, and a block's number takes the place of the step."""
    ids = rows["arm"] + "-" + rows["trial"].astype(str)
    runs = pd.DataFrame({"run_id": ids, "arm": rows["arm"], "trial": rows["trial"]}).drop_duplicates(ignore_index=True)
    runs = runs.assign(lr=0.0, status="finished", seed=runs["trial"])
    columns = [name for name in empty_frame("spectra") if name in rows]
    frame = rows[columns].assign(layer="blocks", run_id=ids, step=rows["place"])
    measured = spectra_frame({str(name): value for name, value in row.items()} for row in frame.to_dict("records"))
    return Experiment(runs, empty_frame("metrics"), measured, empty_frame("skipped"))


def _growth(rows: pd.DataFrame, rule: Rule) -> Finding:
    """How the smallest singular values of random matrices go with their size."""
    numbers: dict[str, float] = {}
    sides: list[tuple[float, float]] = []
    for name, arm in (("with_skip", _ON), ("without", _OFF)):
        values = rows[rows["arm"] == arm].pivot(index="trial", columns="place", values="sigma_min")
        slopes = np.polyfit(np.log(values.columns.to_numpy(float)), np.log(values.to_numpy().T), 1)[0]
        low, high = _median_interval(slopes, 1 - rule.level)
        largest = values.columns.max()
        numbers |= {f"exponent_{name}": float(np.median(slopes)), f"exponent_{name}_low": low}
        numbers |= {f"exponent_{name}_high": high, f"smallest_{name}": float(values[largest].min())}
        sides.append((low, high))
    (on_low, on_high), (off_low, off_high) = sides
    verdict: Verdict = "inconclusive"
    if on_low > _BOUNDED and off_high < _BOUNDED:
        verdict = "supported"
    elif on_high < _BOUNDED or off_low > _BOUNDED:
        verdict = "contradicted"
    note = f"σ_min ~ n^p at n from {rows['place'].min()} to {rows['place'].max()}, {rows['trial'].nunique()} draws"
    return Finding("σ_min(I + A) and σ_min(A) of random matrices by size", verdict, numbers, note)


def _median_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Exact interval of the median between two order statistics; infinite where there are too few values."""
    interval = stats.quantile_test(values, q=0.0, p=0.5).confidence_interval(confidence)
    low, high = float(interval.low), float(interval.high)
    return (-np.inf if np.isnan(low) else low), (np.inf if np.isnan(high) else high)
