"""The data of an experiment as its runs need them: batches to train on, batches to evaluate on, and a probe."""

from dataclasses import replace
from typing import Any

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
from skip_conditioning.experiments.data.own_data import load_own
from skip_conditioning.experiments.data.sources import find_source
from skip_conditioning.experiments.data.streaming import StreamedBatches, StreamedImages, decode_at
from skip_conditioning.experiments.processes.group import processes_here
from skip_conditioning.experiments.processes.machine import usable_cores
from skip_conditioning.experiments.processes.ranks import Ranks

#: Most processes that decode by default; more were of no use on machines shared by several jobs.
_MOST_WORKERS = 16


class TrainingData:
    """A data set as an experiment uses it.

    Attributes:
        num_classes: Number of classes.
        input_shape: ``(C, H, W)`` of an image as the network sees it.

    Args:
        data: Its images, decoded or not.
        config: The experiment's options.
        device: Device that batches are moved to.
        ranks: The processes that share each batch.
    """

    input_shape: tuple[int, ...]

    def __init__(self, data: ImageData | StreamedData, config: TrainConfig, device: torch.device, ranks: Ranks) -> None:
        self.config, self.device, self.ranks = config, device, ranks
        self.num_classes, self._count = data.num_classes, len(data.train.labels)
        mean, std = (data.mean, data.std) if config.data.normalise else (None, None)
        constant = [channel for channel, deviation in enumerate(std or ()) if not deviation]
        if constant:
            raise InputError(
                f"channel {constant[0]} of {data.name} has the same value in every pixel, so that --normalise would "
                "divide by zero; leave --normalise out"
            )
        self._pixels = Pixels(mean, std, memory_format(config))

    def __len__(self) -> int:
        """Number of training images."""
        return self._count

    def batches(self, seed: int) -> TrainingBatches:
        """The training batches of a run, from its seed."""
        raise NotImplementedError

    def test(self) -> EvaluationBatches:
        """The test images."""
        raise NotImplementedError

    def probe(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Some training images by their indices, as the network sees them without augmentation, and their labels.

        Both are on the host; of images that are decoded while training these are the centres.
        """
        images, labels = self._decoded(chosen)
        return replace(self._pixels, memory_format=torch.contiguous_format)(images), labels

    def _decoded(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _order(self, seed: int, device: torch.device) -> BatchOrder:
        options = self.config.optimisation
        augment = self.config.data.augment
        return BatchOrder(
            len(self), options.batch_size, seed, augment, device, rank=self.ranks.rank, ranks=self.ranks.count
        )


class HeldData(TrainingData):
    """A data set that is held whole on the training device, as uint8."""

    def __init__(self, data: ImageData, config: TrainConfig, device: torch.device, ranks: Ranks) -> None:
        super().__init__(data, config, device, ranks)
        self.input_shape = tuple(data.train.images.shape[1:])
        self._on_host = data.train
        self._train, self._test = (
            Split(split.images.to(device), split.labels.to(device)) for split in (data.train, data.test)
        )

    def batches(self, seed: int) -> Batches:
        """The training batches of a run, from its seed."""
        return Batches(self._train, self._pixels, self._order(seed, self.device))

    def test(self) -> HeldImages:
        """The test images."""
        return HeldImages(self._test, self._pixels, self.ranks.rank, self.ranks.count)

    def _decoded(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return self._on_host.images[chosen], self._on_host.labels[chosen]


class DecodedData(TrainingData):
    """A data set that is decoded while training."""

    def __init__(self, data: StreamedData, config: TrainConfig, device: torch.device, ranks: Ranks) -> None:
        super().__init__(data, config, device, ranks)
        self.input_shape = (3, data.size, data.size)
        self._data, given = data, config.data.workers
        self._workers = min(usable_cores() // processes_here(), _MOST_WORKERS) if given is None else given

    def batches(self, seed: int) -> StreamedBatches:
        """The training batches of a run, from its seed."""
        order = self._order(seed, torch.device("cpu"))
        return StreamedBatches(self._data, order, self._pixels, self.device, self._workers)

    def test(self) -> StreamedImages:
        """The test images."""
        return StreamedImages(self._data, self._pixels, self.device, self._workers, self.ranks.rank, self.ranks.count)

    def _decoded(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return decode_at(self._data, chosen)


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
    if config.data.data is not None:
        own = load_own(config.data.data)
        if config.output.evaluate_epochs and not len(own.test):
            raise InputError(
                f"--data {config.data.data} returns no test data; return {{'train': ..., 'test': ...}}, or give "
                "--evaluate-epochs None"
            )
        chosen = options["draw"](len(own.train)) if "draw" in options else slice(None)
        train = Split(own.train.images[chosen], own.train.labels[chosen])
        data = HeldData(replace(own, train=train), config, device, ranks)
    elif find_source(config.data.dataset).stream:
        data = DecodedData(open_images(config.data.dataset, config.data.data_dir, **options), config, device, ranks)
    else:
        data = HeldData(load_data(config.data.dataset, config.data.data_dir, **options), config, device, ranks)
    smallest = min(config.optimisation.batch_size or len(data), len(data))
    if smallest < 2 * ranks.count and ranks.count > 1:
        raise InputError(f"{ranks.count} processes need {2 * ranks.count} images a step; there are {smallest}")
    return data


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
