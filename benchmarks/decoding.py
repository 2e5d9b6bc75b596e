"""Whether decoding images keeps up with training on them: images per second of each, on ImageNet photographs.

Decodes random parts as in training, in this process and in workers of their own, and trains a ResNet-18 in float32 on
batches that are there already. The photographs of the sample are stored at 224×224; most of ImageNet's are larger, so
decoding is timed also for the same photographs enlarged to 500×375.

``SKIP_DATA_DIR=DIR python -m benchmarks.decoding [--images N] [--steps N] [--device cpu]``
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from benchmarks.environment import environment
from skip_conditioning.experiments.data.batches import BatchOrder, Pixels
from skip_conditioning.experiments.data.image_index import StreamedData, open_images
from skip_conditioning.experiments.data.streaming import StreamedBatches
from skip_conditioning.models.registry import build_model

BATCH = 32


def decoding_rate(data: StreamedData, images: int, workers: int, device: torch.device) -> float:
    """Images per second, decoded, moved to the device and normalised there; starting the workers is not counted."""
    order = BatchOrder(len(data.train.labels), BATCH, 0, "resized-crop")
    batches = StreamedBatches(data, order, Pixels(data.mean, data.std), device, workers)
    ahead = 2 * workers  # what is decoded while the clock stands still, and what is when it stops, cancel
    for step in range(ahead + 1):
        batches.at(step)
    steps = max(images // BATCH, 1)
    started = time.perf_counter()
    for step in range(ahead + 1, ahead + 1 + steps):
        batches.at(step)
    return steps * BATCH / (time.perf_counter() - started)


def training_rate(steps: int, device: torch.device) -> float:
    """Images per second of forward pass, backward pass and update, from the second step on."""
    torch.manual_seed(0)
    model = build_model("preact-resnet18", num_classes=1000, stem="imagenet").to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.randn(BATCH, 3, 224, 224, device=device), torch.randint(1000, (BATCH,), device=device)
    started = 0.0
    for step in range(steps + 1):
        optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device
        if step == 0:
            started = time.perf_counter()
    return steps * BATCH / (time.perf_counter() - started)


def enlarged(data: StreamedData, folder: Path) -> StreamedData:
    """The same photographs at 500×375, as many of ImageNet's are."""
    for index in range(len(data.train.labels)):
        source = data.train.encoded(index)
        for split in ("train", "val"):
            (folder / split / str(int(data.train.labels[index]))).mkdir(parents=True, exist_ok=True)
        path = folder / "train" / str(int(data.train.labels[index])) / f"{index}.jpg"
        with Image.open(source) as image:
            image.convert("RGB").resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=92)
        link = folder / "val" / path.parent.name / path.name
        link.symlink_to(path)
    return open_images("imagenet", folder)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=960, help="images to decode for each number (default: 960)")
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps to time (default: 5)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="to train on (default: cpu)")
    options = parser.parse_args()
    if not os.environ.get("SKIP_DATA_DIR"):
        sys.exit("set SKIP_DATA_DIR to the folder that holds imagenet-sample")
    sample = open_images("imagenet", Path(os.environ["SKIP_DATA_DIR"]))
    print(environment(options.device))
    print("| what | images per second |\n|---|---|")
    best = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for size, data in (("224×224", sample), ("500×375", enlarged(sample, Path(scratch)))):
            for workers, name in ((0, "in the training process"), (1, "1 worker"), (2, "2 workers")):
                rate = decoding_rate(data, options.images, workers, options.device)
                print(f"| decoding, {size}, {name} | {rate:.0f} |", flush=True)
                best = max(rate, best) if size == "500×375" else best
    training = training_rate(options.steps, options.device)
    print(f"| training preact-resnet18, batch {BATCH} of 224×224, float32 | {training:.1f} |\n")
    slower, faster = ("Training", "decoding") if training < best else ("Decoding", "training")
    ratio = max(training, best) / min(training, best)
    print(f"{slower} is the limit: {faster} is {ratio:.0f} times as fast, at 500×375 and its best number of workers.")


if __name__ == "__main__":
    main()
