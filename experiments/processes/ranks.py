"""The processes that train one run together, as ``torchrun`` starts them: each takes a part of every batch."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.networks.isolation import quiet, save_streams

Value = TypeVar("Value")

#: Words in the errors of gloo and NCCL when a process is gone, in lower case.
_GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "connection was likely closed",
    "remote process exited",
)


@dataclass(frozen=True)
class Ranks:
    """The processes that train a run together; one alone without a group.

    Every method but ``check_sync_batch_norm``, ``loss_scale`` and ``own`` is a collective: all processes have to call
    it, in the same order. On GPUs each process's own has to be the current one (``torch.cuda.set_device``), as torch
    sends objects through that.

    Attributes:
        group: The processes; None for this one alone.
    """

    group: ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """Rank of this process, from 0."""
        return 0 if self.group is None else distributed.get_rank(self.group)

    @property
    def count(self) -> int:
        """Number of processes."""
        return 1 if self.group is None else distributed.get_world_size(self.group)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def replicate(self, model: nn.Module, device: torch.device, example: Tensor, *, sync_batch_norm: bool) -> nn.Module:
        """The module whose forward pass training uses, with gradients averaged over the processes.

        ``model`` itself if this process is alone. Otherwise ``DistributedDataParallel`` of a twin: another module tree
        with the very same parameter and buffer tensors, so that ``model`` shows every update, and can be measured and
        evaluated by any process alone, without a collective. Parameters and buffers become those of the first process
        now, and buffers again before every forward pass: its running statistics count.

        The twin has its own ``training`` flags, as they are now, and its own copies of the hooks on ``model``: those
        registered later, and ``model.eval()``, do not reach it.

        A process's share of a batch may be empty, if no layer but batch norm minds. Batch norm that is not synchronised
        needs none or at least two values a channel in every share: two images, to be safe.

        Args:
            model: On its device, with a parameter to train.
            device: The model's.
            example: Some inputs, on any device, at which it is seen whether there are parameters that the outputs do
                not depend on; in a process alone they do not matter.
            sync_batch_norm: Batch norm over the whole batch, instead of over each share apart, by torch's
                ``SyncBatchNorm``: on GPUs only, and without the hooks on batch norms.

        Raises:
            InputError: The model cannot be copied.
        """
        if self.group is None:
            return model
        twin = _twin(model)
        if sync_batch_norm:
            twin = nn.SyncBatchNorm.convert_sync_batchnorm(twin, self.group)
        # Parameters that an arm leaves unused keep the gradient None, as in one process, and weight decay spares them.
        unused = self.agree(self.is_first and _may_leave_unused(model, example.to(device)))
        return DistributedDataParallel(twin, process_group=self.group, find_unused_parameters=unused)

    def check_sync_batch_norm(self, device: torch.device) -> None:
        """Raise ``InputError`` where torch cannot take batch norm over the whole batch: in processes without a GPU."""
        if self.count > 1 and device.type != "cuda":
            raise InputError(
                "--sync-batch-norm needs GPUs: torch shares the statistics of batch norm between processes there only; "
                "leave it out, for statistics over each process's part of the batch, or train in one process"
            )

    def loss_scale(self, own: int, whole: int) -> float:
        """Factor of the mean loss over this process's share, before ``backward``, to get the whole batch's gradients.

        ``DistributedDataParallel`` averages gradients over the processes, whatever the sizes of their shares:
        ``(1 / count) Σ_r (n_r · count / N) ∇L_r = ∇L``.

        Args:
            own: Samples n_r in this process's share of the batch.
            whole: Samples N in the batch.
        """
        return own * self.count / whole

    def weighted_mean(self, values: Tensor, weight: float) -> Tensor:
        """``Σ_r w_r v_r / Σ_r w_r``; the device is not waited for.

        Args:
            values: This process's, of any shape, floating; they do not matter (and may be nan) if ``weight`` is 0.
            weight: This process's; nan comes out if all are 0.

        Returns:
            Same shape and dtype, the same in all processes, detached. ``values`` themselves if alone.
        """
        if self.group is None:
            return values
        own = values.detach().double()
        own = own * weight if weight else torch.zeros_like(own)
        total = self.sum(torch.cat([own.flatten(), own.new_full((1,), weight)]))
        return (total[:-1] / total[-1]).view_as(values).to(values.dtype)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, a new tensor; ``values`` themselves if alone."""
        if self.group is None:
            return values
        total = values.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=self.group)
        return total

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers, in place, as the next forward pass in training would."""
        if self.group is None:
            return
        for buffer in model.buffers():
            shared = buffer.detach().clone(memory_format=torch.contiguous_format)
            distributed.broadcast(shared, self._first, group=self.group)
            with torch.no_grad():
                buffer.copy_(shared)

    def agree(self, value: Value) -> Value:
        """The first process's value of something picklable."""
        if self.group is None:
            return value
        agreed = [value]
        distributed.broadcast_object_list(agreed, self._first, group=self.group)
        return agreed[0]

    def gathered(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named tensors of all processes, those of any but the first under ``rank1/name`` and so on."""
        if self.group is None:
            return dict(states)
        parts: list[Mapping[str, Tensor]] = [{}] * self.count
        distributed.all_gather_object(parts, states, group=self.group)
        return {_prefix(rank) + name: state for rank, part in enumerate(parts) for name, state in part.items()}

    def own(self, gathered: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's part of what ``gathered`` returned; empty if that was of fewer processes."""
        prefix = _prefix(self.rank)
        states = {name.removeprefix(prefix): state for name, state in gathered.items() if name.startswith(prefix)}
        return {name: state for name, state in states.items() if "/" not in name}

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.group is not None:
            distributed.barrier(self.group)

    @property
    def _first(self) -> int:
        assert self.group is not None
        return distributed.get_global_rank(self.group, 0)


@contextlib.contextmanager
def clear_rank_errors() -> Iterator[None]:
    """Turn the various errors of a collective in which a process has died into one.

    Raises:
        InputError: gloo or NCCL reported that a process is gone, or the network used other parameters than before.
    """
    try:
        yield
    except RuntimeError as error:
        if "find_unused_parameters=True" in str(error):
            raise InputError(
                "the network's outputs do not depend on some parameter in one batch, and do in another; "
                "train it in one process"
            ) from error
        if not _tells_of_a_death(error):
            raise
        raise InputError(
            "a process of this run died (its own output, above or in its log, says why); "
            "repeat the command with --resume"
        ) from error


def _tells_of_a_death(error: RuntimeError) -> bool:
    text = str(error).lower()
    from_collective = isinstance(error, distributed.DistError) or "gloo" in text
    return from_collective and any(phrase in text for phrase in _GONE)


def _prefix(rank: int) -> str:
    return f"rank{rank}/" if rank else ""


def _may_leave_unused(model: nn.Module, x: Tensor) -> bool:
    """Whether the outputs of a forward pass may be independent of a parameter; the model does not change.

    True also if the pass draws random numbers, as it may leave out another layer each time.
    """
    x = torch.cat([x, x])  # batch norm cannot use a single input
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = [x.device]
    with quiet(model, batch_mode="batch"):
        for module in model.modules():
            if isinstance(module, _DropoutNd):
                module.training = False  # its random numbers leave out no parameter; quiet puts this back
        before = _random_state(devices)
        logits = model(x)
        if _random_state(devices) != before:
            return True
        gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
        return any(gradient is None for gradient in gradients)


def _random_state(devices: Sequence[torch.device]) -> tuple[Any, ...]:
    """The state of every random stream that a forward pass can draw from, as values that can be compared."""
    python, (_, keys, *others), cpu, on_devices = save_streams(devices)
    return python, keys.tolist(), others, [state.tolist() for state in (cpu, *on_devices)]


def _twin(model: nn.Module) -> nn.Module:
    """A copy of a module tree that shares all tensors which its modules hold.

    Plain attributes are shared like parameters and buffers: torch refuses to copy tensors that have a history, such as
    the weight that ``weight_norm`` leaves on its module.
    """
    memo: dict[int, Any] = {}
    try:
        for module in model.modules():
            memo |= {id(tensor): tensor for tensor in _tensors(vars(module))}
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever copying an attribute raises
        raise InputError(
            f"the network cannot be copied, which training in several processes needs: {error}; train in one process"
        ) from error


def _tensors(value: object) -> Iterator[Tensor]:
    """Tensors in nested containers; not those in submodules."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
