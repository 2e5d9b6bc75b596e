"""The data of an experiment as its runs need them: batches to train on, batches to evaluate on, and a probe."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.data.batches import (
    SUBSET,
    Batches,
    BatchOrder,
    EvaluationBatches,
    HeldImages,
    Pixels,
    TrainingBatches,
    generator,
)
from skip_conditioning.experiments.data.datasets import ImageData, Split, load_data
from skip_conditioning.experiments.data.image_index import StreamedData, open_images
from skip_conditioning.experiments.data.sources import find_source
from skip_conditioning.experiments.data.streaming import StreamedBatches, StreamedImages, decode_at
from skip_conditioning.experiments.processes.group import processes_here
from skip_conditioning.experiments.processes.machine import usable_cores
from skip_conditioning.experiments.processes.ranks import Ranks

#: Most processes that decode by default; more were of no use on machines shared by several jobs.
_MOST_WORKERS = 16


class TrainingData(Protocol):
    """A data set as an experiment uses it.

    Attributes:
        num_classes: Number of classes.
        input_shape: ``(C, H, W)`` of an image as the network sees it.
    """

    num_classes: int
    input_shape: tuple[int, ...]

    def __len__(self) -> int:
        """Number of training images."""

    def batches(self, seed: int) -> TrainingBatches:
        """The training batches of a run, from its seed."""

    def test(self) -> EvaluationBatches:
        """The test images."""

    def probe(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Some training images by their indices, as the network sees them without augmentation, and their labels."""


@dataclass(eq=False)
class HeldData:
    """A data set that is held whole on the training device, as uint8.

    Attributes:
        data: In host memory.
        config: The experiment's options.
        device: Device that it is moved to.
        ranks: The processes that share each batch.
    """

    data: ImageData
    config: TrainConfig
    device: torch.device
    ranks: Ranks

    def __post_init__(self) -> None:
        self.num_classes, self.input_shape = self.data.num_classes, tuple(self.data.train.images.shape[1:])
        mean, std = (self.data.mean, self.data.std) if self.config.data.normalise else (None, None)
        self._pixels = Pixels(mean, std, memory_format(self.config))
        self._train, self._test = (
            Split(split.images.to(self.device), split.labels.to(self.device))
            for split in (self.data.train, self.data.test)
        )

    def __len__(self) -> int:
        """Number of training images."""
        return len(self.data.train)

    def batches(self, seed: int) -> Batches:
        """The training batches of a run, from its seed."""
        return Batches(self._train, self._pixels, batch_order(self.config, len(self), seed, self.ranks, self.device))

    def test(self) -> HeldImages:
        """The test images."""
        return HeldImages(self._test, self._pixels, self.ranks.rank, self.ranks.count)

    def probe(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Some training images by their indices, on the host, and their labels."""
        images, labels = self.data.train.images[chosen], self.data.train.labels[chosen]
        return replace(self._pixels, memory_format=torch.contiguous_format)(images), labels


@dataclass(eq=False)
class DecodedData:
    """A data set that is decoded while training.

    Attributes:
        data: Its encoded images.
        config: The experiment's options.
        device: Device that batches are moved to.
        ranks: The processes that share each batch.
    """

    data: StreamedData
    config: TrainConfig
    device: torch.device
    ranks: Ranks

    def __post_init__(self) -> None:
        self.num_classes = self.data.num_classes
        self.input_shape: tuple[int, ...] = (3, self.data.size, self.data.size)
        mean, std = (self.data.mean, self.data.std) if self.config.data.normalise else (None, None)
        self._pixels = Pixels(mean, std, memory_format(self.config))
        given = self.config.data.workers
        self._workers = min(usable_cores() // processes_here(), _MOST_WORKERS) if given is None else given

    def __len__(self) -> int:
        """Number of training images."""
        return len(self.data.train.labels)

    def batches(self, seed: int) -> StreamedBatches:
        """The training batches of a run, from its seed."""
        order = batch_order(self.config, len(self), seed, self.ranks, torch.device("cpu"))
        return StreamedBatches(self.data, order, self._pixels, self.device, self._workers)

    def test(self) -> StreamedImages:
        """The test images."""
        return StreamedImages(self.data, self._pixels, self.device, self._workers, self.ranks.rank, self.ranks.count)

    def probe(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The centres of some training images by their indices, on the host, and their labels."""
        images, labels = decode_at(self.data, chosen)
        return replace(self._pixels, memory_format=torch.contiguous_format)(images), labels


def open_data(config: TrainConfig, device: torch.device, ranks: Ranks) -> TrainingData:
    """The data set that the options name, with the subset that they draw.

    Raises:
        InputError: The data are missing, unreadable or not as described, or too few for ``--subset`` or the processes.
    """
    options: dict[str, Any] = {
        "limit_train": config.data.limit_train,
        # A missing test split is an error even if it is never evaluated.
        "limit_test": config.data.limit_test if config.output.evaluate_epochs else 1,
        "skip_corrupt": config.data.skip_corrupt,
    }
    if config.data.subset is not None:
        options["draw"] = lambda count: draw_indices(
            count, config.data.subset, config.optimisation.seed, SUBSET, "--subset"
        )
    data: TrainingData
    if find_source(config.data.dataset).stream:
        data = DecodedData(open_images(config.data.dataset, config.data.data_dir, **options), config, device, ranks)
    else:
        data = HeldData(load_data(config.data.dataset, config.data.data_dir, **options), config, device, ranks)
    smallest = min(config.optimisation.batch_size or len(data), len(data))
    if smallest < 2 * ranks.count and ranks.count > 1:
        raise InputError(f"{ranks.count} processes need {2 * ranks.count} images a step; there are {smallest}")
    return data


def batch_order(config: TrainConfig, count: int, seed: int, ranks: Ranks, device: torch.device) -> BatchOrder:
    """The order of ``count`` images in a run's batches."""
    return BatchOrder(count, config.optimisation.batch_size, seed, config.data.augment, device, ranks.rank, ranks.count)


def memory_format(config: TrainConfig) -> torch.memory_format:
    """Memory format of images and convolutions."""
    return torch.channels_last if config.optimisation.channels_last else torch.contiguous_format


def draw_indices(count: int, size: int | None, seed: int, purpose: int, option: str) -> Tensor:
    """Indices of some of ``count`` images, drawn once for the whole experiment; all in order for None.

    Raises:
        InputError: There are fewer; the message names the option.
    """
    if size is None or size == count:
        return torch.arange(count)
    if size > count:
        raise InputError(f"{option} {size} is more than the {count} training images there are")
    return torch.randperm(count, generator=generator(seed, purpose))[:size]
