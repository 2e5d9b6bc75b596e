"""Images per second of training a ResNet-18 on CIFAR-10: this project's loop against a plain one, in one run.

The plain loop is what one would write first: a ``DataLoader`` whose workers augment image by image, float32, channels
first, ``loss.item()`` at every step. Both train the same network with the same optimiser and log loss and accuracy.
Each side is timed as the difference between a long and a short run, so that starting up does not count.

``SKIP_DATA_DIR=DIR python -m benchmarks.training_throughput [--device cuda] [--options --compile …]``
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.environment import environment
from skip_conditioning.experiments.data.datasets import Split, load_data
from skip_conditioning.experiments.train import parse
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.models import build_model


class Augmented(Dataset[tuple[Tensor, int]]):
    """Images normalised, cropped and flipped one by one, as each is asked for."""

    def __init__(self, split: Split, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.split, self.mean, self.std = split, torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = functional.pad(self.split.images[index], (4, 4, 4, 4))
        top, left, flip = (int(torch.randint(n, ())) for n in (9, 9, 2))
        image = image[:, top : top + 32, left : left + 32]
        image = image.flip(2) if flip else image
        return (image.float() / 255 - self.mean) / self.std, int(self.split.labels[index])


def plain_seconds(options: argparse.Namespace, device: torch.device, steps: int) -> float:
    """Seconds that the plain loop takes, from the start of its workers."""
    data = load_data("cifar10", options.data_dir, limit_train=options.images, limit_test=1)
    model = build_model("preact-resnet18", arm="modified", width=options.width).train().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader = DataLoader(
        Augmented(data.train, data.mean, data.std),
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        pin_memory=device.type == "cuda",
        persistent_workers=options.workers > 0,
    )
    started, taken, losses = time.perf_counter(), 0, []
    while True:
        for images, labels in loader:
            if taken == steps:
                return time.perf_counter() - started
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            losses.append((loss.item(), (logits.argmax(1) == labels).float().mean().item()))
            taken += 1


def own_seconds(options: argparse.Namespace, device: torch.device, steps: int) -> float:
    """Seconds that a run of ``skip-conditioning train`` takes, without diagnostics."""
    with tempfile.TemporaryDirectory() as scratch:
        args = ["paper-cifar10", "--out", f"{scratch}/out", "--arms", "modified", "--lr", "0.05", "--trials", "1"]
        args += ["--steps", str(steps), "--limit-train", str(options.images), "--device", device.type]
        args += ["--batch-size", str(options.batch_size), "--model-options", f"width={options.width}"]
        args += ["--no-diagnostics", "--evaluate-epochs", "None", "--checkpoints", "1000000", *options.options]
        Runner(parse(args)).run_all()
        status = next(Path(scratch).glob("out/runs/*/status.json"))
        return float(json.loads(status.read_text())["seconds"])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (default: 64)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=5120, help="training images (default: 5120)")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="of the plain loop")
    parser.add_argument("--steps", type=int, nargs=2, help="of the short and the long run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SKIP_DATA_DIR"))
    parser.add_argument(
        "--options", nargs=argparse.REMAINDER, default=[], help="more options of skip-conditioning train"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    short, long = options.steps or ((200, 1200) if device.type == "cuda" else (2, 7))
    rates: dict[str, list[float]] = {"plain": [], "own": []}
    for repeat in range(options.repeats):
        # The order alternates, so that a machine growing slower or faster favours neither side.
        for name in ("plain", "own")[:: 1 if repeat % 2 == 0 else -1]:
            measure = plain_seconds if name == "plain" else own_seconds
            seconds = measure(options, device, long) - measure(options, device, short)
            rates[name].append((long - short) * options.batch_size / seconds)
    print(environment(device))
    print(f"ResNet-18 of width {options.width}, batches of {options.batch_size}, {long - short} steps timed\n")
    print("| loop | images per second (median) | all repeats |\n|---|---|---|")
    for name, measured in rates.items():
        print(f"| {name} | {statistics.median(measured):.4g} | {', '.join(f'{rate:.4g}' for rate in measured)} |")
    print(f"\nRatio of medians: {statistics.median(rates['own']) / statistics.median(rates['plain']):.2f}")


if __name__ == "__main__":
    main()
