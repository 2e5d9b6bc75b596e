"""One run: train a network with plain SGD, log every step, measure on schedule, leave checkpoints to resume from.

Step s of the tables is the state after s updates: its row holds the loss and the spectra at θ_s, before the next
update. Everything random is a function of the seed and the step, so a resumed run takes the same path, on a CPU to
the same bits.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from diagnostics.monitor import SpectrumMonitor
from diagnostics.spectrum import Spectrum
from experiments.batches import Batches, Pixels
from experiments.checkpoints import (
    checkpoint_path,
    list_checkpoints,
    load_into,
    load_training_state,
    rng_states,
    save_checkpoint,
    save_training_state,
    set_rng_states,
    training_state_path,
)
from experiments.config import TrainConfig
from experiments.data import Split
from experiments.loggers import Logger, open_loggers, spectrum_scalars
from experiments.outputs import write_status

_EVALUATION_BATCH = 500

#: Called after every step with the step, its loss and the latest spectra.
Progress = Callable[[int, float, dict[str, Spectrum]], None]


@dataclass(eq=False)
class Trainer:
    """Trains one run in its directory.

    Attributes:
        config: The experiment's options.
        model: In train mode, freshly initialised, on its device.
        batches: The run's training batches.
        test: Test images and labels on the device.
        pixels: Makes floats of test images.
        monitor: Measures and writes tables.
        directory: The run's.
        lr: Learning rate at the start.
        total_steps: Steps to take.
    """

    config: TrainConfig
    model: nn.Module
    batches: Batches
    test: Split
    pixels: Pixels
    monitor: SpectrumMonitor
    directory: Path
    lr: float
    total_steps: int

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.lr,
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
        )
        self._loggers: list[Logger] = []

    def run(self, progress: Progress) -> str:
        """Train to the end, from the last checkpoint if there is one; return ``finished`` or ``diverged``."""
        started = time.perf_counter()
        first = self._resume()
        self._loggers = open_loggers(self.config.log, self.directory, first)
        try:
            status = self._steps(first, progress)
        finally:
            for logger in self._loggers:
                logger.close()
        self.monitor.close()
        write_status(
            self.directory,
            status,
            seconds=time.perf_counter() - started,
            diagnostics_share=self.monitor.overhead,
        )
        return status

    def _steps(self, first: int, progress: Progress) -> str:
        for step in range(first, self.total_steps + 1):
            if self._checkpoint_due(step):
                self._save(step)
            if self._evaluation_due(step):
                self._evaluate(step)
            last = step == self.total_steps
            self._set_lr(step)
            lr = self.optimizer.param_groups[0]["lr"]
            started = time.perf_counter()
            loss, accuracy = self._look(step) if last else self._gradients(step)
            found = math.isfinite(value := loss.item())
            spectra = self.monitor.step(
                step,
                epoch=step / self.batches.per_epoch,
                loss=loss,
                accuracy=accuracy,
                lr=lr,
                grad_norm=None if last else torch.nn.utils.get_total_norm(self._gradient_tensors()),
                seconds=time.perf_counter() - started,
            )
            for logger in self._loggers:
                train = {"train/loss": value, "train/accuracy": accuracy.item(), "train/lr": lr}
                logger.log(step, train | spectrum_scalars(spectra))
            if not found:
                return "diverged"
            if not last:
                self.optimizer.step()
            progress(step, value, spectra)
        return "finished"

    def _gradients(self, step: int) -> tuple[Tensor, Tensor]:
        images, labels = self.batches.at(step)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(images)
        loss = cross_entropy(logits, labels)
        loss.backward()
        return loss.detach(), _accuracy(logits, labels)

    def _look(self, step: int) -> tuple[Tensor, Tensor]:
        """Loss and accuracy in train mode, on copies of the buffers so that batch norm's statistics stay."""
        images, labels = self.batches.at(step)
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with torch.no_grad():
            logits = functional_call(self.model, buffers, (images,))
        return cross_entropy(logits, labels), _accuracy(logits, labels)

    def _gradient_tensors(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    def _set_lr(self, step: int) -> None:
        every, factor = self.config.decay_epochs, self.config.decay_factor
        decays = 0 if every is None else step // (every * self.batches.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor**decays

    def _evaluation_due(self, step: int) -> bool:
        every = self.config.evaluate_epochs
        if every is None or step == 0:
            return False
        return step == self.total_steps or step % (every * self.batches.per_epoch) == 0

    def _evaluate(self, step: int) -> None:
        self.model.eval()
        loss, right = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(self.test), _EVALUATION_BATCH):
                chosen = slice(start, start + _EVALUATION_BATCH)
                logits = self.model(self.pixels(self.test.images[chosen]))
                labels = self.test.labels[chosen]
                loss += cross_entropy(logits, labels, reduction="sum").item()
                right += int((logits.argmax(1) == labels).sum())
        self.model.train()
        found = {"loss": loss / len(self.test), "accuracy": right / len(self.test)}
        self.monitor.log(step, split="test", epoch=step / self.batches.per_epoch, **found)
        for logger in self._loggers:
            logger.log(step, {f"test/{name}": value for name, value in found.items()})

    def _checkpoint_due(self, step: int) -> bool:
        interval = self.config.checkpoints or self.batches.per_epoch
        return step in (0, self.total_steps) or step % interval == 0

    def _save(self, step: int) -> None:
        """Rows before the checkpoint first, then its weights, then what resuming needs, which makes it whole."""
        self.monitor.flush(step)
        save_checkpoint(checkpoint_path(self.directory, step), self.model.state_dict(), {"step": str(step)})
        save_training_state(training_state_path(self.directory, step), self.optimizer, step, rng_states())
        for older, _ in list_checkpoints(self.directory):
            if older < step:
                training_state_path(self.directory, older).unlink(missing_ok=True)

    def _resume(self) -> int:
        """Go back to the last whole checkpoint and forget what was logged from there on; 0 if there is none."""
        whole = [step for step, _ in list_checkpoints(self.directory) if self._state_path(step).exists()]
        step = max(whole, default=0)
        self.monitor.rewind(step - 1)
        if whole:
            load_into(self.model, checkpoint_path(self.directory, step))
            set_rng_states(load_training_state(self._state_path(step), self.optimizer).rng)
        return step

    def _state_path(self, step: int) -> Path:
        return training_state_path(self.directory, step)


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).double().mean()
