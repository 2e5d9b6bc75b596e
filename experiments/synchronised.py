"""Batch norm whose statistics are those of the images of all processes that train together, on CPUs too."""

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from diagnostics.errors import InputError


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm that in train mode takes mean and variance over the samples of all processes of a group.

    Forward and backward pass are those of one process with the concatenated batch, to rounding; the shares may differ
    in size and be empty. In eval mode it is torch's batch norm. It is what ``nn.SyncBatchNorm`` is on GPUs, with one
    collective in either pass. Made by `synchronise_batch_norms`.

    Attributes:
        group: All its processes have to run the forward and the backward pass of the same layers in the same order.
    """

    group: ProcessGroup

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a share of the batch.

        Args:
            input: Shape ``(n, C, *)``, of any n.

        Returns:
            Same shape and dtype; half precisions are computed in float32.

        Raises:
            ValueError: ``input`` has fewer than two dimensions, or all processes together have no two values a channel.
        """
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean, variance, count = _Moments.apply(x, self.group)
        if count <= 1:
            raise ValueError("batch norm needs more than one value per channel, all processes together, when training")
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        normalised = (x - _per_channel(mean, x)) * _per_channel(scale, x)
        if self.bias is not None:
            normalised = normalised + _per_channel(self.bias, x)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics in place, by ``momentum`` or as the average of all batches."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 0.0 if self.num_batches_tracked is None else 1 / float(self.num_batches_tracked)
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None:
                running.mul_(1 - share).add_(new, alpha=share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")


def synchronise_batch_norms(model: nn.Module, group: ProcessGroup, device: torch.device) -> None:
    """Make every batch norm of a model take its train-mode statistics over all processes of a group, in place.

    Each module stays the object that it is and only its class changes: parameters, buffers, hooks, flags, and whatever
    else refers to it, stay too (``nn.SyncBatchNorm.convert_sync_batchnorm`` loses hooks and plain references).

    Args:
        model: Module tree; it may itself be a batch norm.
        group: The processes.
        device: Where the model is: torch's ``nn.SyncBatchNorm`` on a GPU, `SynchronisedBatchNorm` elsewhere.

    Raises:
        InputError: A batch norm has a forward pass of its own or a parametrisation, which this would undo.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        known = type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
        if not known or is_parametrized(module):
            raise InputError(
                f"layer {name!r}: the batch norm {type(module).__name__} is not torch's own and cannot be synchronised "
                "between processes; train without synchronised batch norm, or in one process"
            )
        if device.type == "cuda":
            module.__class__ = nn.SyncBatchNorm
            module.process_group = group  # type: ignore[assignment]
        else:
            module.__class__ = SynchronisedBatchNorm
            module.group = group  # type: ignore[assignment]


class _Moments(torch.autograd.Function):
    """Mean and biased variance of each channel, and the count of its values, over all processes of a group."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
        """From a share of shape ``(n, C, *)``: shapes ``(C,)``, ``(C,)`` and ``()``; nan where there is no sample."""
        others, channels = _other_dimensions(x), x.shape[1]
        own_count = x.numel() // max(channels, 1)
        own_mean = x.sum(others) / max(own_count, 1)
        own_squares = (x - _per_channel(own_mean, x)).square().sum(others)
        own = torch.cat([own_mean, own_squares, x.new_tensor([own_count])])
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, own, group=group)
        # The parallel form of Chan, Golub and LeVeque (1983): no cancellation, as there would be in E x² − (E x)².
        means, squares, counts = torch.stack(parts).split([channels, channels, 1], dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        ctx.save_for_backward(x, mean, count)
        ctx.group = group  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(count)
        return mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, by_mean: Tensor, by_variance: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """Every process's loss depends on the moments, and the moments on every process's samples."""
        x, mean, count = ctx.saved_tensors  # type: ignore[attr-defined]
        summed = torch.stack([by_mean, by_variance])
        distributed.all_reduce(summed, group=ctx.group)  # type: ignore[attr-defined]
        by_mean, by_variance = summed / count
        return _per_channel(by_mean, x) + 2 * _per_channel(by_variance, x) * (x - _per_channel(mean, x)), None


def _other_dimensions(x: Tensor) -> list[int]:
    return [dimension for dimension in range(x.dim()) if dimension != 1]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape ``(C,)``, to be broadcast against ``(n, C, *)``."""
    return values.view(-1, *[1] * (x.dim() - 2))
