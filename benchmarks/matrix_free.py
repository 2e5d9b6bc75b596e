"""The matrix-free engine: its errors beside the stated ones, its cost, its growth, and peers on the leading values.

``python -m benchmarks.matrix_free [accuracy] [products] [growth] [leading] [--device cuda]`` (default: all). The
peers are ``scipy.sparse.linalg.svds`` on the same operator and ``torch.svd_lowrank`` on the dense Jacobian.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from benchmarks.mnist_jacobian import seconds
from skip_conditioning import JacobianOperator, jacobian, spectra
from skip_conditioning.diagnostics.linalg.extremes import largest_singular_value, smallest_singular_value
from skip_conditioning.diagnostics.linalg.sketching import randomized_svd
from skip_conditioning.diagnostics.linalg.slq import lanczos_density
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.spectrum import estimates, jacobian_floor
from skip_conditioning.models import build_model

#: Sides of the images and their number in the growth benchmark, for 10³ to 10⁶ entries of 64 channels.
_SIZES = ((4, 1), (8, 1), (16, 1), (32, 1), (32, 4), (32, 16))


def accuracy(device: torch.device) -> None:
    """Estimates of a real Jacobian's statistics against the exact ones, for growing probes and steps."""
    torch.manual_seed(0)
    model, x = build_model("paper-mnist").to(device), torch.rand(4, 1, 28, 28, device=device)
    options = {"map": "layer", "layers": "block1", "dtype": torch.float64}
    exact = spectra(model, x, method="exact", **options)["block1"]
    operator = JacobianOperator(model, x, map="layer", layer="block1", dtype=torch.float64)
    print(f"Block1 of the paper's MNIST network, 4 images: {exact.rows}×{exact.cols}, float64. Relative error of each")
    print("statistic (stated standard error); σ_max by its residual, σ_min an upper bound.\n")
    names = ("sigma_mean", "sigma_rms", "sigma_median", "effective_rank", "sigma_max", "sigma_min")
    print("| probes | steps | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names))
    for probes in (1, 2, 8):
        for steps in (8, 16, 32, 64):
            measured = lanczos_density(operator, vectors=probes, steps=steps)
            floor = jacobian_floor(exact.sigma_rms * exact.cols**0.5, torch.finfo(operator.dtype).eps)
            cells = []
            for name in names:
                estimate, truth = estimates(measured, floor)[name], getattr(exact, name)
                stated = "bound" if name == "sigma_min" else f"{estimate.error / truth:.1e}"
                cells.append(f"{(estimate.value - truth) / truth:+.1e} ({stated})")
            print(f"| {probes} | {steps} | " + " | ".join(cells) + " |", flush=True)
    for name, extreme in (
        ("σ_max", largest_singular_value(operator)),
        ("σ_min", smallest_singular_value(operator)),
    ):
        truth = exact.sigma_max if name == "σ_max" else float(exact.values[-1])
        print(
            f"\n{name} by {extreme.method}: relative error {(extreme.value - truth) / truth:+.1e}, residual"
            f" {extreme.residual / truth:.1e}, {extreme.products} products, converged: {extreme.converged}"
        )


def products(device: torch.device) -> None:
    """What a product costs, in evaluations of the same map's gradient (forward and backward by autograd)."""
    print("\n| map | size | gradient (ms) | J v | Jᵀu | JᵀJ v | naive jvp |\n|---|---|---|---|---|---|---|")
    cases = [
        ("preact-resnet18", {"num_classes": 10}, (32, 3, 32, 32), "layer", ("layer1.0", "layer2.0", "layer4.1")),
        ("preact-resnet18", {"num_classes": 10}, (32, 3, 32, 32), "tail", ("layer1.0",)),
        ("paper-mnist", {}, (32, 1, 28, 28), "tail", ("stem",)),
        ("residual-mlp", {"width": 512}, (64, 1, 28, 28), "layer", ("blocks.0",)),
    ]
    for name, options, shape, map, layers in cases:
        torch.manual_seed(0)
        model, x = build_model(name, **options).to(device), torch.rand(shape, device=device)
        for layer in layers:
            operator = JacobianOperator(model, x, map=map, layer=layer)
            with measuring(model, x) as probed:
                (one,) = probed.maps(map, [layer])
                v, u = (torch.randn(side, device=device) for side in reversed(operator.shape))
                gradient = _gradient(one.function, one.point, u.view(one.output_shape))
                tangent = v.view(one.point.shape)
                naive = lambda: torch.func.jvp(one.function, (one.point,), (tangent,))  # noqa: B023, E731
                sides = [
                    gradient,
                    lambda: operator.matvec(v),  # noqa: B023
                    lambda: operator.rmatvec(u),  # noqa: B023
                    lambda: operator.gram_matvec(v),  # noqa: B023
                    naive,
                ]
                times = _medians(sides, device, 9)
            ratios = " | ".join(f"{time / times[0]:.2f}" for time in times[1:])
            size = f"{operator.shape[0]}×{operator.shape[1]}"
            print(f"| {name} {map} {layer} | {size} | {1e3 * times[0]:.1f} | {ratios} |", flush=True)


def growth(device: torch.device) -> None:
    """Time and memory against the number of columns, each size in a process of its own."""
    print("\n| columns | seconds | per product (ms) | peak memory (MB) |\n|---|---|---|---|")
    sizes, times, peaks = [], [], []
    for index in range(len(_SIZES)):
        command = [sys.executable, "-m", "benchmarks.matrix_free", "--one-size", str(index), "--device", str(device)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        size, time, peak = map(float, output.split())
        print(f"| {size:.0f} | {time:.2f} | {1e3 * time / 128:.2f} | {peak / 1e6:.0f} |", flush=True)
        sizes.append(size), times.append(time), peaks.append(peak)
    for name, values in (("time", times), ("memory", peaks)):
        slope = np.polyfit(np.log(sizes[2:]), np.log(values[2:]), 1)[0]
        print(f"\nSlope of log {name} against log columns, the four largest: {slope:.2f}")


def one_size(index: int, device: torch.device) -> None:
    """Columns, seconds of a density (2 random vectors × 32 steps), and peak memory above that of a forward pass."""
    side, count = _SIZES[index]
    model = nn.Sequential(build_model("preact-resnet18", num_classes=10).layer1[0]).to(device)
    x = torch.randn(count, 64, side, side, device=device)
    model(x)
    before = resident_memory(device)
    options = {"map": "layer", "layers": "0", "method": "lanczos"}
    time = seconds(lambda: spectra(model, x, **options), device)
    print(x.numel(), time, peak_memory(device) - before)


def leading(device: torch.device) -> None:
    """σ_max and the leading ten values, against scipy and torch."""
    torch.manual_seed(0)
    model, x = build_model("paper-mnist").to(device), torch.rand(32, 1, 28, 28, device=device)
    operator = JacobianOperator(model, x, map="tail", layer="stem")
    dense = lambda: jacobian(model, x, map="tail", layer="stem")  # noqa: E731
    truth = torch.linalg.svdvals(dense().double()).cpu().numpy()
    scipy_operator = operator.to_scipy()
    svds = lambda k: scipy.sparse.linalg.svds(scipy_operator, k=k, return_singular_vectors=False, rng=0)  # noqa: E731
    rows = [
        ("σ_max", "largest_singular_value", 1, lambda: [largest_singular_value(operator).value]),
        ("σ_max", "scipy svds, k=1", 1, lambda: svds(1)),
        ("σ_max", "torch.svd_lowrank of the dense J, q=6", 1, lambda: torch.svd_lowrank(dense(), q=6, niter=2)[1]),
        ("ten leading", "randomized_svd", 10, lambda: randomized_svd(operator, 10).S),
        ("ten leading", "scipy svds, k=10", 10, lambda: svds(10)),
        ("ten leading", "torch.svd_lowrank, q=20", 10, lambda: torch.svd_lowrank(dense(), q=20, niter=2)[1]),
    ]
    print(f"\nTail of the stem of the paper's MNIST network, {operator.shape[0]}×{operator.shape[1]}\n")
    print("| what | method | seconds | largest relative error |\n|---|---|---|---|")
    times = _medians([row[3] for row in rows], device, 5)
    for (what, method, count, compute), time in zip(rows, times, strict=True):
        values = compute()
        values = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        measured = np.sort(values)[::-1][:count]
        error = np.max(np.abs(measured - truth[:count]) / truth[:count])
        print(f"| {what} | {method} | {time:.3f} | {error:.1e} |", flush=True)


def _gradient(function: Callable[[Tensor], Tensor], point: Tensor, cotangent: Tensor) -> Callable[[], Tensor]:
    def evaluate() -> Tensor:
        leaf = point.detach().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf, cotangent)[0]

    return evaluate


def _medians(functions: list[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """Median seconds of each, called in turn."""
    for function in functions:
        function()
    times = [[seconds(function, device) for function in functions] for _ in range(repeats)]
    return [statistics.median(side) for side in zip(*times, strict=True)]


def resident_memory(device: torch.device) -> int:
    """Bytes in use; the peak is counted from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


PARTS = {"accuracy": accuracy, "products": products, "growth": growth, "leading": leading}


def main() -> None:
    """Measure and print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which tables (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.one_size is not None:
        one_size(options.one_size, device)
        return
    print(environment(device))
    for part in options.parts or PARTS:
        PARTS[part](device)


if __name__ == "__main__":
    main()
