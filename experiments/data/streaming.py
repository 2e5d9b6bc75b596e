"""Batches of images that do not fit in memory, decoded while training: in worker processes, ahead of the steps.

The pixels of an image at a step are a function of the run's seed, the epoch and the image alone, so the number of
workers changes nothing, and a resumed run sees the same pixels. They are those of torchvision's ``RandomResizedCrop``
for training and ``Resize`` and ``CenterCrop`` for evaluation (scaling is bilinear with antialiasing), of images as a
viewer shows them (``image_decoding.as_displayed``).
"""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.data.batches import (
    AUGMENTATION,
    BatchOrder,
    Pixels,
    TrainingBatches,
    generator,
    share,
)
from skip_conditioning.experiments.data.image_decoding import (
    UnreadableImageError,
    decode_centre,
    decode_part,
    unreadable,
)
from skip_conditioning.experiments.data.image_index import EncodedImages, StreamedData

_EVALUATION_BATCH = 250


class Request(NamedTuple):
    """Images to decode: their indices, and the seed and the epoch of their random parts, or None for the centres."""

    indices: list[int]
    seed: tuple[int, int] | None


class Decoded(NamedTuple):
    """Images, uint8, shape ``(n, 3, size, size)``; labels, shape ``(n,)``; and the errors of those missing."""

    images: Tensor
    labels: Tensor
    problems: list[str]


@dataclass(eq=False)
class Decoder(Dataset[Decoded]):
    """Decodes images on request, in any process; each image has a random stream of its own.

    Attributes:
        images: The images of a split.
        size: Side of the squares to scale to.
    """

    images: EncodedImages
    size: int

    def __getitem__(self, request: Request) -> Decoded:
        """The images of a request, without those that cannot be read."""
        squares = np.empty((len(request.indices), 3, self.size, self.size), np.uint8)
        kept: list[int] = []
        problems = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, several a second with ImageNet
            for index in request.indices:
                try:
                    squares[len(kept)] = self._decode(index, request.seed)
                    kept.append(index)
                except MemoryError:
                    raise
                except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, zlib.error, ...
                    problems.append(str(unreadable(self.images.where(index), error)))
        return Decoded(torch.from_numpy(squares[: len(kept)]), self.images.labels[kept], problems)

    def _decode(self, index: int, seed: tuple[int, int] | None) -> np.ndarray:
        file = self.images.encoded(index)
        if seed is None:
            return decode_centre(file, self.size)
        base, epoch = seed
        return decode_part(file, self.size, generator(base, AUGMENTATION, epoch, index))


def decode_at(data: StreamedData, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The centres of some training images, uint8, shape ``(n, 3, size, size)``, and their labels.

    Raises:
        InputError: One of them cannot be read and ``skip_corrupt`` is off, or none can be read.
    """
    decoded = Decoder(data.train, data.size)[Request(indices.tolist(), None)]
    return _accept(decoded, data, torch.device("cpu"))


@dataclass(eq=False)
class StreamedBatches(TrainingBatches):
    """The batches of one run, decoded while it trains.

    Each worker holds up to two batches decoded ahead, in shared memory (``/dev/shm``): 38 MB for 256 images. The steps
    should be taken in order; any other step starts the workers anew. The same step may be taken again.

    Attributes:
        data: Whose training images.
        order: Which images make a batch; its ``augment`` is ``resized-crop``, or ``none`` for the centres.
        pixels: Makes floats of them.
        device: Where images and labels go.
        workers: Processes that decode; 0 decodes in this one, when a step is taken.
    """

    data: StreamedData
    order: BatchOrder
    pixels: Pixels
    device: torch.device
    workers: int = 0
    _decoded: Generator[Decoded, None, None] | None = field(default=None, init=False)
    _next: int = field(default=0, init=False)
    _held: tuple[int, Tensor, Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.order.augment not in ("none", "resized-crop"):
            raise InputError(
                f"{self.data.name} is decoded while training, which --augment {self.order.augment} does not suit;"
                " use resized-crop or none"
            )

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's part of the batch of a step: images, float32, and labels, on the device.

        Raises:
            InputError: An image cannot be read and ``skip_corrupt`` is off, none can be read, or a worker died.
        """
        if self._held is None or self._held[0] != step:
            self._held = (step, *self._fetch(step))
        _, images, labels = self._held
        return self.pixels(images), labels

    def _fetch(self, step: int) -> tuple[Tensor, Tensor]:
        decoded, self._decoded = self._decoded, None
        if decoded is None or step != self._next:
            decoded = None  # its workers end before others start
            decoder = Decoder(self.data.train, self.data.size)
            decoded = _decode(decoder, _requests(self.order, step), self.workers, self.device)
        try:
            images, labels = _accept(next(decoded), self.data, self.device)
        except BaseException:
            decoded.close()  # ends the workers now, and not when the traceback is collected
            raise
        self._decoded, self._next = decoded, step + 1
        return images, labels


@dataclass(eq=False)
class StreamedImages:
    """Images to evaluate on, decoded anew each time: the centres.

    Attributes:
        data: Whose test images.
        pixels: Makes floats of them.
        device: Where images and labels go.
        workers: Processes that decode, started for each pass; 0 decodes in this one.
        rank: Rank of this process among those that share the images.
        ranks: Number of these processes; each takes a contiguous part.
    """

    data: StreamedData
    pixels: Pixels
    device: torch.device
    workers: int = 0
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        """Number of images, all processes together, unreadable ones included."""
        return len(self.data.test.labels)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's images, float32, and labels, batch by batch."""
        indices = share(len(self), self.rank, self.ranks)
        starts = range(0, len(indices), _EVALUATION_BATCH)
        requests = [Request([*indices[start : start + _EVALUATION_BATCH]], None) for start in starts]
        decoder = Decoder(self.data.test, self.data.size)
        with contextlib.closing(_decode(decoder, requests, min(self.workers, len(requests)), self.device)) as batches:
            for decoded in batches:
                images, labels = _accept(decoded, self.data, self.device)
                yield self.pixels(images), labels


def _requests(order: BatchOrder, first: int) -> Iterator[Request]:
    """The batches from a step on, without end: workers go on across epochs."""
    # Random parts are drawn image by image, with an image's true proportions, and not for the whole epoch ahead.
    indices = replace(order, augment="none", device=torch.device("cpu"))
    for step in itertools.count(first):
        epoch = step // order.per_epoch
        yield Request(indices.at(step)[0].tolist(), None if order.augment == "none" else (order.seed, epoch))


def _accept(decoded: Decoded, data: StreamedData, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch on the device; unreadable images are warned about once, or are an error."""
    for problem in decoded.problems:
        if not data.skip_corrupt:
            raise UnreadableImageError(problem)
        if problem not in data.unreadable:
            data.unreadable.add(problem)
            warnings.warn(f"{problem}; it is left out", stacklevel=4)
    if not len(decoded.labels):
        raise InputError(f"{data.name}: no image of a batch of {len(decoded.problems)} can be read")
    return decoded.images.to(device, non_blocking=True), decoded.labels.to(device, non_blocking=True)


def _decode(
    decoder: Decoder, requests: Iterable[Request], workers: int, device: torch.device
) -> Generator[Decoded, None, None]:
    """Decode requests in order, ahead by worker processes, or in this process when needed if there are none."""
    if not workers:
        yield from map(decoder.__getitem__, requests)
        return
    loader = DataLoader(
        decoder,
        batch_size=None,  # a request is a batch
        sampler=requests,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # so that it does not draw from the global stream
    )
    with _own_signal_handlers():
        batches = iter(loader)
    while True:
        try:
            decoded = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not re.search("exited unexpectedly|killed by signal", str(error)):
                raise
            raise InputError(
                f"a process that decodes images died ({str(error).partition(chr(10))[0]}), most likely for want of"
                " memory (/dev/shm included); use fewer workers or smaller batches"
            ) from error
        yield decoded


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep ``DataLoader`` from handling SIGCHLD: it would raise a worker's death anywhere in the training code.

    Without, it notices within seconds that a batch does not come.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
