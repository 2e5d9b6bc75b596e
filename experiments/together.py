"""Several runs trained at once, as one vmapped network: each with its own data order, learning rate and tables.

The numbers are those of the runs one by one, to rounding. So that a resumed group takes the same path to the last bit,
it is always computed whole, also when some of its runs have ended.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.batches import Batches
from experiments.random_streams import rng_states
from experiments.resuming import last_common_step
from experiments.stacked import StackedNetwork, apply_with, attributes, same_structure, unchanged
from experiments.step_log import Block, DivergedError, Progress
from experiments.training import Trainer, mixed_precision, unit_divisor

#: How far a network's outputs may move when it is vmapped, in float32.
_TOLERANCE = 1e-3


@dataclass(eq=False)
class Member:
    """A run of a group.

    Attributes:
        model: Its network, freshly initialised.
        trainer: Trains it; None for a run that has ended, which is only computed along.
        progress: Told of every step.
    """

    model: nn.Module
    trainer: Trainer | None
    progress: Progress


class JointTrainer:
    """Trains the runs of a group together.

    Args:
        members: Runs whose networks have the same structure, those of one learning rate one after another; at least
            one of them has a trainer, and all have the same options.
        lrs: Their learning rates.
    """

    def __init__(self, members: Sequence[Member], lrs: Sequence[float]) -> None:
        self.members = list(members)
        self.active = {row: one.trainer for row, one in enumerate(members) if one.trainer is not None}
        self.lead = next(iter(self.active.values()))
        self.batches = [held_batches(one.trainer or self.lead) for one in members]
        self.lrs = list(lrs)
        self.block = Block(self.lead.block.size)
        self._started = time.perf_counter()

    def run(self) -> dict[int, str]:
        """Train to the end; returns for each run that was to be trained how it ended."""
        first = last_common_step(trainer.directory for trainer in self.active.values())
        for trainer in self.active.values():
            trainer.load(first)
        self.network = StackedNetwork([one.model for one in self.members], [*map(self.lrs.index, self.lrs)])
        self.optimizer = self._optimizer()
        self.ended: dict[int, str] = {}
        for row, trainer in self.active.items():
            trainer.open_log(first, self.members[row].progress)
        try:
            for step in range(first, self.lead.total_steps + 1):
                self._step(step)
                if not self.active:
                    break
            self._fetch()
        finally:
            for trainer in self.active.values():
                trainer.log.close()
        for row in list(self.active):
            self._end(row, "finished")
        return self.ended

    def _step(self, step: int) -> None:
        """Look at the state after so many updates, then make the next one unless it is the last."""
        if self.lead.checkpoint_due(step) or self.lead.evaluation_due(step):
            self._fetch()
            if not self.active:  # all have diverged in the block just fetched
                return
        if self.lead.checkpoint_due(step):
            self.save(step)
        if self.lead.evaluation_due(step):
            for trainer in self.active.values():
                trainer.evaluate(step)
        last = step == self.lead.total_steps
        started = time.perf_counter()
        numbers = self._look(step) if last else self._gradients(step)
        seconds = (time.perf_counter() - started) / len(self.members)
        turn = step % len(self.active)  # the budget that they share is not to be always the same runs'
        for trainer in (list(self.active.values()) * 2)[turn : turn + len(self.active)]:
            trainer.log.measure(step)
        self.block.add(step, numbers, seconds)
        if self.block.full:
            self._fetch()
        if not last:
            for group, lr in zip(self.optimizer.param_groups, dict.fromkeys(self.lrs), strict=True):
                group["lr"] = lr * self.lead.decay_at(step)
            self.optimizer.step()

    def _fetch(self) -> None:
        """Record the steps that wait for the device; runs that have diverged end."""
        for step, rows, seconds in self.block.fetch():
            for row, trainer in list(self.active.items()):
                try:
                    loss, accuracy, grad_norm = rows[row]
                    trainer.record(step, loss, accuracy, grad_norm, seconds)
                except DivergedError:
                    trainer.log.close()
                    self._end(row, "diverged")
                    self._silence(row)

    def _end(self, row: int, status: str) -> None:
        """Record how a run ended; its time is its share of the group's."""
        seconds = (time.perf_counter() - self._started) / len(self.members)
        self.active.pop(row).finish(status, seconds)
        self.ended[row] = status

    def _gradients(self, step: int) -> Tensor:
        """Loss, accuracy and gradient norm of each run, shape ``(T, 3)``; what SGD is to use is left in the stacks."""
        self.optimizer.zero_grad(set_to_none=True)
        losses, accuracies = self._losses(step)
        # No run's loss depends on another's parameters, so that the sum's gradient is that of each.
        losses.sum().backward()
        norms = self.network.norms()
        if self.lead.config.fixed_length_steps:
            self.network.divide_gradients(unit_divisor(norms))
        return torch.stack([losses.detach().double(), accuracies, norms], dim=1)

    def _look(self, step: int) -> Tensor:
        """Loss and accuracy of each run in train mode, and nan; batch norm's buffers are put back."""
        before = {name: buffer.clone() for name, buffer in self.network.buffers.items()}
        with torch.no_grad():
            losses, accuracies = self._losses(step)
            for name, buffer in self.network.buffers.items():
                buffer.copy_(before[name])
        return torch.stack([losses.double(), accuracies, torch.full_like(accuracies, torch.nan)], dim=1)

    def _losses(self, step: int) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy of each run's batch, shape ``(T,)``."""
        chosen, drawn = zip(*(one.order.at(step) for one in self.batches), strict=True)
        images, labels = self.batches[0].take(torch.cat(chosen), None if drawn[0] is None else torch.cat(drawn, dim=-1))
        images, labels = (part.unflatten(0, (len(self.batches), -1)) for part in (images, labels))
        with mixed_precision(self.lead.config.precision, self.lead.device):
            logits = self.network(images)
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)
        return losses, (logits.detach().argmax(2) == labels).double().mean(1)

    def save(self, step: int) -> None:
        """Save every run before an older state of any is removed: a killed group resumes from a step that all have."""
        for row, trainer in self.active.items():
            for parameter, (stack, place) in self.network.places(row).items():
                trainer.optimizer.state[parameter] = {
                    name: value[place] for name, value in self.optimizer.state[stack].items() if value is not None
                }
            trainer.save(step)
        for trainer in self.active.values():
            trainer.drop_older(step)

    def _optimizer(self) -> torch.optim.Optimizer:
        """SGD of the stacks, in the state of the runs' own optimisers."""
        config = self.lead.config
        groups = [
            {"params": [*part.values()], "lr": lr}
            for part, lr in zip(self.network.parameters, dict.fromkeys(self.lrs), strict=True)
        ]
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
        for row, trainer in self.active.items():
            for parameter, (stack, place) in self.network.places(row).items():
                for name, value in trainer.optimizer.state[parameter].items():
                    optimizer.state[stack].setdefault(name, torch.zeros_like(stack))[place] = value
        return optimizer

    def _silence(self, row: int) -> None:
        """Put zeros in the place of a run that has diverged, which then goes on as any network does."""
        with torch.no_grad():
            for stack, place in self.network.places(row).values():
                for tensor in (stack, stack.grad, *self.optimizer.state[stack].values()):
                    if tensor is not None:
                        tensor[place] = 0
            for buffer in self.network.buffers.values():
                buffer[row] = 0


def held_batches(trainer: Trainer) -> Batches:
    """A run's batches, which are to be of images held on the device."""
    assert isinstance(trainer.batches, Batches)
    return trainer.batches


def obstacle(models: Sequence[nn.Module], images: Tensor) -> str:
    """Why networks of one structure cannot be trained together; empty if they can. They are spoilt by finding out.

    Args:
        models: Two at least, in train mode.
        images: A batch that each can be applied to.
    """
    if not same_structure(models[0], models[1]):
        return "its networks differ in more than their weights"
    with torch.no_grad():
        copies = [{name: buffer.clone() for name, buffer in model.named_buffers()} for model in models]
        before, streams = attributes(models[0]), rng_states()
        alone = [apply_with(model, held, images) for model, held in zip(models, copies, strict=True)]
        if not unchanged(before, attributes(models[0])):
            return "its forward pass changes attributes that are no buffers"
        if any(not torch.equal(state, streams[name]) for name, state in rng_states().items()):
            return "its forward pass draws random numbers"
        try:
            stacked = StackedNetwork(models, [0] * len(models))(torch.stack([images] * len(models)))
        except Exception as error:  # alone it could be applied, so that whatever is raised comes from vmap
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            return f"it cannot be vmapped ({reason})"
    if not torch.allclose(stacked, torch.stack(alone), rtol=_TOLERANCE, atol=_TOLERANCE):
        return "vmapped it computes something else"
    return ""
