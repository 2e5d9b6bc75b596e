"""The tangent kernel against peers: seconds, memory and error, every method in a process of its own.

``python -m benchmarks.tangent_kernel [mlp] [tutorial] [paper-mnist] [resnet18] [resnet18-batch]`` (default: all), with
``--samples N`` and ``--repeats N``. Memory is the peak of the resident set during the first call, less what was
resident before it. Errors are against float64 autograd, row by row (of the first samples' block where samples do not
interact), relative to the kernel's largest entry. The peers are in ``benchmarks.kernel_peers``; ``make peers`` installs
the libraries among them.
"""

import argparse
import ctypes
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from benchmarks.kernel_peers import PEERS, UnsupportedError, library_versions
from benchmarks.matrix_free import peak_memory, resident_memory
from benchmarks.mnist_jacobian import seconds
from skip_conditioning import tangent_kernel
from skip_conditioning.models import build_model

_CPU = torch.device("cpu")

#: Seconds after which a call is not repeated.
_LONG = 20

#: Samples, where they do not interact, whose block of the kernel is compared with the reference.
_REFERENCE_SAMPLES = 4

#: Bytes of the float64 Jacobian that the reference has in memory at a time.
_REFERENCE_BYTES = 2 * 10**9

OURS = "tangent_kernel"
METHODS = (OURS, *PEERS)


@dataclass(frozen=True)
class Network:
    """A network to measure.

    Attributes:
        title: What it is, for the table's heading.
        build: Makes it, in train mode.
        shape: Shape of one input, entries uniform in [0, 1].
        samples: Sizes of the batch, a table for each.
        batch_mode: As in ``tangent_kernel``.
    """

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    samples: tuple[int, ...]
    batch_mode: str = "sample"

    def make(self, samples: int) -> tuple[nn.Module, Tensor]:
        """The network, in the mode that it is measured in, and a batch."""
        torch.manual_seed(0)
        return self.build().train(self.batch_mode == "batch"), torch.rand(samples, *self.shape)


def mlp() -> nn.Module:
    """784 → 512 → 512 → 512 → 10 with ReLU."""
    sides = (784, 512, 512, 512, 10)
    layers = [layer for pair in itertools.pairwise(sides) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def tutorial() -> nn.Module:
    """The network of PyTorch's tutorial on neural tangent kernels, on 3×32×32."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.Flatten(),
        nn.Linear(21632, 10),
    )


def _paper_mnist() -> nn.Module:
    return build_model("paper-mnist", arm="residual")


def _resnet18() -> nn.Module:
    return build_model("preact-resnet18", arm="original", num_classes=10, stem="cifar")


NETWORKS: dict[str, Network] = {
    "mlp": Network("MLP of four layers, width 512", mlp, (784,), (64,)),
    "tutorial": Network("Convolutional network of PyTorch's tutorial", tutorial, (3, 32, 32), (20, 64)),
    "paper-mnist": Network(
        "The paper's MNIST network, residual, batch norm in train mode", _paper_mnist, (1, 28, 28), (32,), "batch"
    ),
    "resnet18": Network("Pre-activation ResNet-18, running statistics", _resnet18, (3, 32, 32), (32,)),
    "resnet18-batch": Network(
        "Pre-activation ResNet-18, batch norm in train mode", _resnet18, (3, 32, 32), (4,), "batch"
    ),
}
"""By the name on the command line."""


def reference_kernel(network: Network, samples: int) -> Tensor:
    """The kernel by plain autograd in float64, from a few columns of the Jacobian at a time.

    Of samples that do not interact only the first few, whose kernel is a block of the whole.
    """
    model, x = network.make(samples)
    model, x = model.double(), x.double()
    x = x if network.batch_mode == "batch" else x[:_REFERENCE_SAMPLES]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = model(x).numel()
    step, total = max(1, _REFERENCE_BYTES // (8 * rows)), torch.zeros(rows, rows, dtype=torch.float64)
    batches = [x] if network.batch_mode == "batch" else list(x.split(1))
    for start in range(0, sum(parameter.numel() for parameter in parameters), step):
        jacobian = torch.stack([row for batch in batches for row in _rows(model(batch), parameters, start, step)])
        total += jacobian @ jacobian.T
    return total


def _rows(outputs: Tensor, parameters: list[nn.Parameter], start: int, step: int) -> Iterator[Tensor]:
    """Columns ``start`` to ``start + step`` of the Jacobian with respect to all parameters, row by row."""
    touched, first, before = [], 0, 0
    for parameter in parameters:
        if before < start + step and before + parameter.numel() > start:
            first = first if touched else before
            touched.append(parameter)
        before += parameter.numel()
    for output in outputs.flatten():
        gradients = torch.autograd.grad(output, touched, retain_graph=True, allow_unused=True, materialize_grads=True)
        yield torch.cat([gradient.flatten() for gradient in gradients])[max(0, start - first) :][:step].clone()


def measured(
    method: str, network: Network, samples: int, reference: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Median seconds, extra bytes and error of one method, or the reason that there are none."""
    model, x = network.make(samples)
    if method == OURS:
        call = lambda: tangent_kernel(model, x, batch_mode=network.batch_mode).total  # noqa: E731
    else:
        call = lambda: PEERS[method].kernel(model, x)  # noqa: E731
    outcome: list[Tensor] = []
    try:
        with torch.no_grad():
            model(x)
        ctypes.CDLL(None).malloc_trim(0)  # memory that the forward pass left with the allocator would not be counted
        before = resident_memory(_CPU)
        times = [seconds(lambda: outcome.append(call().detach()), _CPU)]
        peak = peak_memory(_CPU) - before
        if times[0] < _LONG:
            times = [seconds(call, _CPU) for _ in range(options.repeats)]
    except UnsupportedError as error:
        return {"reason": str(error)}
    except ModuleNotFoundError as error:
        return {"reason": f"not installed ({error.name})"}
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return {"reason": f"ran out of {options.memory_limit:g} GB"}
        raise
    truth = torch.load(reference)
    block = outcome[0][: len(truth), : len(truth)].double()
    error = float((block - truth).abs().max() / truth.abs().max())
    return {"seconds": statistics.median(times), "peak": peak, "error": error}


def in_child(method: str, name: str, samples: int, reference: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What ``measured`` returns, from a fresh process; it may be stopped by time."""
    command = [sys.executable, "-m", "benchmarks.tangent_kernel", name, "--samples", str(samples)]
    command += ["--repeats", str(options.repeats), "--memory-limit", str(options.memory_limit)]
    command += ["--one-method", method, "--reference", str(reference)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.time_limit)
    except subprocess.TimeoutExpired:
        return {"reason": f"more than {options.time_limit:g} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"reason": f"failed: {last[:100]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def jacobian_bytes(network: Network, samples: int) -> int:
    """Bytes of the float32 Jacobian, ``N·O·P·4``."""
    model, x = network.make(samples)
    with torch.no_grad():
        rows = model(x).numel()
    return 4 * rows * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def table(name: str, samples: int, options: argparse.Namespace) -> None:
    """Measure every method on one network and print the rows as they come."""
    network, need = NETWORKS[name], jacobian_bytes(NETWORKS[name], samples)
    print(f"\n{network.title} (`{name}`), {samples} samples; its float32 Jacobian has {need / 1e9:.2g} GB\n")
    print("| method | seconds | extra memory (MB) | error | time / ours |\n|---|---|---|---|---|", flush=True)
    ours = None
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "reference.pt"
        torch.save(reference_kernel(network, samples), reference)
        for method in options.methods or METHODS:
            if method != OURS and PEERS[method].keeps_jacobian and need > options.memory_limit * 1e9:
                result = {"reason": f"needs about {need / 1e9:.0f} GB"}
            else:
                result = in_child(method, name, samples, reference, options)
            if "reason" in result:
                print(f"| {method} | {result['reason']} | | | |", flush=True)
                continue
            ours = result["seconds"] if method == OURS else ours
            ratio = f"{result['seconds'] / ours:.2f}" if ours else ""
            cells = f"{result['seconds']:.3f} | {result['peak'] / 1e6:.0f} | {result['error']:.1e} | {ratio}"
            print(f"| {method} | {cells} |", flush=True)


def main() -> None:
    """Measure and print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []], help="which networks (default: all)")
    parser.add_argument("--samples", type=int, help="size of the batch (default: as in the table of networks)")
    parser.add_argument("--repeats", type=int, default=5, help=f"calls after the first, if it takes < {_LONG} s (5)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="which methods (default: all)")
    parser.add_argument("--memory-limit", type=float, default=16, help="GB that a method may have (default: 16)")
    parser.add_argument("--time-limit", type=float, default=900, help="seconds for all calls of a method (900)")
    parser.add_argument("--one-method", help=argparse.SUPPRESS)
    parser.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_method:
        limit = int(options.memory_limit * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        network = NETWORKS[options.networks[0]]
        print(json.dumps(measured(options.one_method, network, options.samples, options.reference, options)))
        return
    print(environment(_CPU).strip() + f"; {library_versions()}")
    for name in options.networks or NETWORKS:
        for samples in (options.samples,) if options.samples else NETWORKS[name].samples:
            table(name, samples, options)


if __name__ == "__main__":
    main()
