"""Trains a network with plain SGD, logs every step, measures on schedule and saves checkpoints to resume from.

Step s of the tables is the state after s updates: its row holds the loss and the spectra at θ_s, before the next
update. Everything random is a function of the seed and the step, so a resumed run takes the same path, on a CPU to
the same bits. On a GPU no step waits for the device: what is logged is fetched in blocks.
"""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.monitoring.monitor import SpectrumMonitor
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.data.batches import EvaluationBatches, TrainingBatches
from skip_conditioning.experiments.processes.ranks import Ranks
from skip_conditioning.experiments.records.checkpoints import drop_older, last_whole_step, load_run, save_run
from skip_conditioning.experiments.records.directory import write_status
from skip_conditioning.experiments.records.loggers import open_loggers
from skip_conditioning.experiments.training.random_streams import rng_states, set_rng_states
from skip_conditioning.experiments.training.step_log import Block, DivergedError, Progress, StepLog

#: Images of the probe by which several processes find the parameters in use.
_EXAMPLE = 4

#: Steps whose numbers are fetched from a GPU at once; on a CPU each step is fetched.
_BLOCK = 50


@dataclass(eq=False)
class Trainer:
    """Trains one run in its directory.

    Attributes:
        config: The experiment's options.
        model: In train mode, freshly initialised, on its device.
        batches: The run's training batches.
        test: Test images, batch by batch.
        monitor: Measures and writes tables.
        directory: Directory of the run.
        lr: Learning rate at the start.
        total_steps: Steps to take.
        ranks: The processes that train the run together.
    """

    config: TrainConfig
    model: nn.Module
    batches: TrainingBatches
    test: EvaluationBatches
    monitor: SpectrumMonitor
    directory: Path
    lr: float
    total_steps: int
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.lr,
            momentum=self.config.optimisation.momentum,
            weight_decay=self.config.optimisation.weight_decay,
        )
        self.block = Block(_BLOCK if self.device.type == "cuda" else 1)

    def run(self, progress: Progress) -> str:
        """Train to the end, from the last checkpoint if there is one; return ``finished`` or ``diverged``."""
        try:
            return self._train(progress)
        except BaseException:
            with contextlib.suppress(InputError):
                self.monitor.close()  # lets go of the run's folder
            raise

    def _train(self, progress: Progress) -> str:
        started = time.perf_counter()
        first = self.ranks.agree(last_whole_step(self.directory))
        self.monitor.rewind(first - 1)
        set_rng_states(self.ranks.own(load_run(self.directory, first, self.model, self.optimizer)))
        network = self.ranks.replicate(
            self.model,
            self.device,
            self.monitor.probe.first[:_EXAMPLE],
            sync_batch_norm=self.config.network.sync_batch_norm,
        )
        if self.config.optimisation.compile:
            network = torch.compile(network, dynamic=False)  # type: ignore[assignment]
        loggers = open_loggers(self.config.output.log, self.directory, first) if self.ranks.is_first else []
        self.log = StepLog(self.monitor, loggers, progress)
        try:
            for step in range(first, self.total_steps + 1):
                self._step(network, step)
            self._fetch()
            status = "finished"
        except DivergedError:
            status = "diverged"
        finally:
            self.log.close()
        seconds = time.perf_counter() - started
        self.monitor.close()
        if self.ranks.is_first:
            write_status(self.directory, status, seconds=seconds, diagnostics_share=self.monitor.overhead)
        return status

    def lr_at(self, step: int) -> float:
        """The learning rate of the update after a step."""
        every, factor = self.config.optimisation.decay_epochs, self.config.optimisation.decay_factor
        decays: int = 0 if every is None else step // (every * self.batches.per_epoch)
        return self.lr * factor**decays

    def checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved at a step."""
        interval = self.config.output.checkpoints or self.batches.per_epoch
        return step in (0, self.total_steps) or step % interval == 0

    def evaluation_due(self, step: int) -> bool:
        """Whether the network is to be evaluated at a step."""
        every = self.config.output.evaluate_epochs
        if every is None or step == 0:
            return False
        return step == self.total_steps or step % (every * self.batches.per_epoch) == 0

    def kept(self, step: int) -> bool:
        """Whether the weights saved at a step stay when later ones have been saved."""
        every = self.config.output.keep_epochs
        return every is None or step % (every * self.batches.per_epoch) == 0

    def save(self, step: int) -> None:
        """Write the rows that wait, then the checkpoint of a step."""
        self.monitor.flush(step)
        rng = self.ranks.gathered(rng_states())
        if self.ranks.is_first:
            save_run(self.directory, step, self.model, self.optimizer, rng)

    def drop_older(self, step: int) -> None:
        """Remove the training states before a step, and the weights that ``--keep-epochs`` does not keep."""
        if self.ranks.is_first:
            drop_older(self.directory, step, self.kept)

    def evaluate(self, step: int) -> None:
        """Log loss and accuracy on all test images, in eval mode."""
        self.ranks.share_buffers(self.model)
        total = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.model.eval()
        with torch.no_grad():
            for images, labels in self.test:
                logits = self._logits(self.model, images)
                loss = cross_entropy(logits, labels, reduction="sum")
                right = (logits.argmax(1) == labels).sum()
                total += torch.stack(
                    [loss.double(), right.double(), torch.full_like(loss, len(labels), dtype=torch.float64)]
                )
        self.model.train()
        loss, right, count = self.ranks.sum(total).tolist()
        self.log.evaluation(step, epoch=step / self.batches.per_epoch, loss=loss / count, accuracy=right / count)

    def _step(self, network: nn.Module, step: int) -> None:
        """Log and measure the state after ``step`` updates, then make the next update, unless the run ends here."""
        if self.checkpoint_due(step) or self.evaluation_due(step):
            self._fetch()
        if self.checkpoint_due(step):
            self.save(step)
            self.drop_older(step)
        if self.evaluation_due(step):
            self.evaluate(step)
        last = step == self.total_steps
        started = time.perf_counter()
        numbers = self._last_metrics(network, step) if last else self._gradients(network, step)
        seconds = time.perf_counter() - started
        self.log.measure(step)
        self.block.add(step, numbers, seconds)
        if self.block.full:
            self._fetch()
        if not last:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr_at(step)
            self.optimizer.step()

    def _fetch(self) -> None:
        """Record the steps whose numbers wait on the device."""
        for step, (loss, accuracy, grad_norm), seconds in self.block.fetch():
            self.log.record(
                step,
                epoch=step / self.batches.per_epoch,
                loss=loss,
                accuracy=accuracy,
                lr=self.lr_at(step),
                grad_norm=None if step == self.total_steps else grad_norm,
                seconds=seconds,
            )

    def _gradients(self, network: nn.Module, step: int) -> Tensor:
        """Loss, accuracy and gradient norm of a step's batch; the gradients for SGD are left in the parameters."""
        images, labels = self.batches.at(step)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self._logits(network, images)
        loss = cross_entropy(logits, labels)
        whole = self.batches.size_at(step) if self.ranks.count > 1 else len(labels)
        if self.config.data.skip_corrupt:  # some may have been left out
            whole = int(self.ranks.sum(torch.tensor(len(labels), device=self.device)))
        (loss * self.ranks.loss_scale(len(labels), whole)).backward()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.optimisation.fixed_length_steps:
            torch._foreach_div_(gradients, unit_divisor(norm))
        return torch.cat([self._means(loss, logits, labels), norm.double()[None]])

    def _last_metrics(self, network: nn.Module, step: int) -> Tensor:
        """Loss and accuracy of a step's batch in train mode, and NaN for the gradient norm; buffers are restored."""
        images, labels = self.batches.at(step)
        before = [buffer.clone() for buffer in self.model.buffers()]
        with torch.no_grad():
            logits = self._logits(network, images)
            for buffer, value in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(value)
            means = self._means(cross_entropy(logits, labels), logits, labels)
        return torch.cat([means, means.new_full((1,), torch.nan)])

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        with mixed_precision(self.config.optimisation.precision, self.device):
            logits: Tensor = network(images)
        return logits.float() if logits.dtype == torch.bfloat16 else logits

    def _means(self, loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss and accuracy of the whole batch, float64, from this process's part of it."""
        accuracy = (logits.detach().argmax(1) == labels).double().mean()
        return self.ranks.weighted_mean(torch.stack([loss.detach().double(), accuracy]), len(labels))


def unit_divisor(norms: Tensor) -> Tensor:
    """Divisors that give gradients of these norms length 1: 1 for a norm of zero, NaN for an infinite one.

    Finite entries of a norm that overflowed would become zeros, and the run would stand still instead of diverging.
    """
    return torch.where(norms == 0, 1, torch.where(norms.isinf(), torch.nan, norms))


def mixed_precision(precision: str, device: torch.device) -> torch.autocast:
    """A context in which forward passes run in bfloat16, if ``--precision`` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=is_half(precision, device))


def is_half(precision: str, device: torch.device) -> bool:
    """Whether the option ``--precision`` means bfloat16."""
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
