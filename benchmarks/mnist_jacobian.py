"""All 320 singular values of the paper's MNIST Jacobian (320 × 23 040, batch of 32), against the released recipe.

The peer is what the released code of the paper does: ``torch.autograd.functional.jacobian``, row by row, then
``torch.linalg.svdvals`` in float32. Both sides run alternately in this process; the ratio is of medians. Errors are
relative to singular values from float64 autograd.

``python -m benchmarks.mnist_jacobian [--repeats N] [--device cuda]``
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.environment import environment
from skip_conditioning import spectra
from skip_conditioning.models import build_model


def released_recipe(model: torch.nn.Module, x: Tensor) -> Tensor:
    """Singular values of ∂logits/∂(stem output), as the paper's released code computes them."""
    with torch.no_grad():
        point = model.stem(x)
    jacobian = torch.autograd.functional.jacobian(model[1:], point)
    return torch.linalg.svdvals(jacobian.reshape(-1, point.numel()))


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="calls of each side (default: 9)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(environment(device))
    print("| arm | released recipe (s) | spectra (s) | ratio | error of recipe | error of spectra |")
    print("|---|---|---|---|---|---|")
    for arm in ("chain", "residual", "modified"):
        torch.manual_seed(0)
        model = build_model("paper-mnist", arm=arm).to(device)
        x = torch.rand(32, 1, 28, 28, device=device)
        ours = lambda: spectra(model, x, map="tail", layers="stem")["stem"].values  # noqa: B023, E731
        peer = lambda: released_recipe(model, x)  # noqa: B023, E731
        truth = spectra(model, x, map="tail", layers="stem", dtype=torch.float64)["stem"].values
        errors = [float(np.max(np.abs(np.asarray(values) - truth) / truth)) for values in (peer().cpu(), ours())]
        times = [(seconds(peer, device), seconds(ours, device)) for _ in range(options.repeats)]
        recipe, mine = (statistics.median(side) for side in zip(*times, strict=True))
        print(f"| {arm} | {recipe:.3f} | {mine:.3f} | {recipe / mine:.2f} | {errors[0]:.1e} | {errors[1]:.1e} |")


if __name__ == "__main__":
    main()
