"""What the witness and the isolation of a measurement cost, and what its measured floor hides.

``python -m benchmarks.witness [cost] [floor]`` (default: both). The cost is that of the same spectra without a witness,
in the same run; the floor is compared with an assumed one, ``16 · eps · ‖J‖_F``, against float64.
"""

import argparse
import statistics
import time
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from benchmarks.environment import environment
from skip_conditioning import Spectrum, spectra
from skip_conditioning.diagnostics.jacobians import operator, rows
from skip_conditioning.diagnostics.networks.isolation import quiet
from skip_conditioning.diagnostics.spectrum import ROUNDING_UNITS
from skip_conditioning.models import build_model

CASES = {
    "paper-mnist, 32 images, tail": (
        "paper-mnist",
        {"arm": "modified"},
        (32, 1, 28, 28),
        {"map": "tail", "layers": ["stem"]},
    ),
    "the same, float64": (
        "paper-mnist",
        {"arm": "modified"},
        (32, 1, 28, 28),
        {"map": "tail", "layers": ["stem"], "dtype": torch.float64},
    ),
    "paper-mnist, 4 images, sample by sample": (
        "paper-mnist",
        {"arm": "modified"},
        (4, 1, 28, 28),
        {"map": "tail", "layers": ["stem"], "batch_mode": "sample"},
    ),
    "preact-resnet18 of width 16, 8 images, all tails": (
        "preact-resnet18",
        {"num_classes": 10, "width": 16},
        (8, 3, 32, 32),
        {"map": "tail"},
    ),
    "the same, all layers, Lanczos": (
        "preact-resnet18",
        {"num_classes": 10, "width": 16},
        (8, 3, 32, 32),
        {"map": "layer", "method": "lanczos"},
    ),
}


def cost(repeats: int) -> None:
    """Seconds of spectra with and without a witness, and of the isolation alone."""
    print("| spectra | without a witness (s) | with | ratio | isolation (ms) |\n|---|---|---|---|---|")
    for name, (network, options, shape, asked) in CASES.items():
        torch.manual_seed(0)
        model, x = build_model(network, **options), torch.rand(shape)
        without, witnessed, isolated = [], [], []
        for _ in range(repeats + 1):
            with (
                patch.object(rows, "witness_of", lambda map: None),
                patch.object(operator, "witness_of", lambda map: None),
            ):
                without.append(_seconds(lambda: spectra(model, x, **asked)))  # noqa: B023
            witnessed.append(_seconds(lambda: spectra(model, x, **asked)))  # noqa: B023
            isolated.append(_seconds(lambda: _isolate(model)))  # noqa: B023
        before, after, alone = (statistics.median(times[1:]) for times in (without, witnessed, isolated))
        print(f"| {name} | {before:.2f} | {after:.2f} | {after / before:.2f} | {1e3 * alone:.1f} |", flush=True)


def floor(seeds: int) -> None:
    """Of float32 values right to 10 %, the share that each floor hides; and of the others, the share it shows."""
    print("\n| network | values | floor / assumed | right, hidden | (assumed) | wrong, shown | (assumed) |")
    print("|---|---|---|---|---|---|---|")
    for network, options, shape in (
        ("paper-mnist", {"arm": "chain"}, (16, 1, 28, 28)),
        ("paper-mnist", {"arm": "modified"}, (16, 1, 28, 28)),
        ("residual-mlp", {"arm": "chain"}, (16, 1, 28, 28)),
        ("residual-mlp", {"arm": "residual"}, (16, 1, 28, 28)),
        ("preact-resnet18", {"num_classes": 10, "width": 8}, (8, 3, 32, 32)),
    ):
        pairs: list[tuple[Spectrum, Spectrum]] = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            model, x = build_model(network, **options), torch.rand(shape)
            single, double = (
                spectra(model, x, map="tail", method="exact", dtype=dtype) for dtype in (None, torch.float64)
            )
            pairs += [(single[layer], double[layer]) for layer in single]
        values = np.concatenate([one.values for one, _ in pairs])
        right = np.abs(values / np.concatenate([two.values for _, two in pairs]) - 1) <= 0.1
        measured = np.concatenate([np.full(len(one.values), one.floor) for one, _ in pairs])
        assumed = np.concatenate([np.full(len(one.values), _assumed(one)) for one, _ in pairs])
        ratio = float(np.exp(np.mean(np.log(measured / assumed))))
        hidden = [f"{np.mean(values[right] <= level[right]):.3f}" for level in (measured, assumed)]
        shown = [
            f"{np.mean(values[~right] > level[~right]) if (~right).any() else 0:.3f}" for level in (measured, assumed)
        ]
        shares = " | ".join((*hidden, *shown))
        print(f"| {network} {options.get('arm', '')} | {len(values)} | {ratio:.2f} | {shares} |", flush=True)


def _assumed(spectrum: Spectrum) -> float:
    return ROUNDING_UNITS * torch.finfo(torch.float32).eps * float(np.linalg.norm(spectrum.values))


def _isolate(model: nn.Module) -> None:
    with quiet(model, batch_mode="batch"):
        pass


def _seconds(function) -> float:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["cost", "floor"], metavar="cost|floor")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(environment(torch.device("cpu")), "\n")
    if "cost" in arguments.parts:
        cost(arguments.repeats)
    if "floor" in arguments.parts:
        floor(3)
