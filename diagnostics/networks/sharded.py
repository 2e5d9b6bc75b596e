"""Weights that several processes hold in shards (``fully_shard``, ``DTensor``): gathered while they are measured."""

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import UnsupportedModelError

_gathered: ContextVar[dict[int, Tensor]] = ContextVar("_gathered", default={})  # noqa: B039 (never written into)

#: Their hooks gather the weights for training, put them into the modules and shard them again.
_HOOKS = "torch.distributed."


def is_sharded(model: nn.Module) -> bool:
    """Whether some weights are in shards."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def require_measurable(model: nn.Module) -> None:
    """Raise ``UnsupportedModelError`` for a model wrapped by the first version of FSDP."""
    for name, module in model.named_modules():
        kind = type(module)
        if kind.__name__ == "FullyShardedDataParallel" and kind.__module__.startswith("torch.distributed.fsdp"):
            raise UnsupportedModelError(
                f"{name or 'the model'} is wrapped by FullyShardedDataParallel, which flattens its weights; shard it "
                "with torch.distributed.fsdp.fully_shard instead"
            )


def whole(tensor: Tensor) -> Tensor:
    """A weight with all its shards, detached; itself if it has none.

    Outside ``gathered`` every process that holds a shard has to call.
    """
    kept = _gathered.get().get(id(tensor))
    if kept is not None:
        return kept
    return tensor.full_tensor().detach() if hasattr(tensor, "full_tensor") else tensor.detach()


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, each process has all weights of a model, so that one of them can measure by itself.

    Every process that holds a shard has to enter. Takes the memory of the whole model.
    """
    sharded = [parameter for parameter in model.parameters() if hasattr(parameter, "full_tensor")]
    if not sharded or all(id(parameter) in _gathered.get() for parameter in sharded):
        yield
        return
    token = _gathered.set(_gathered.get() | {id(parameter): whole(parameter) for parameter in sharded})
    try:
        yield
    finally:
        _gathered.reset(token)


def hooks_without_sharding(module: nn.Module) -> dict[str, Any]:
    """The tables of a module's forward hooks that belong to sharding, by name, without these hooks."""
    tables = {}
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        table = vars(module)[name]
        kept = OrderedDict((key, hook) for key, hook in table.items() if not _is_of_sharding(hook))
        if len(kept) < len(table):
            tables[name] = kept
    return tables


def _is_of_sharding(hook: Any) -> bool:
    return str(getattr(inspect.unwrap(hook), "__module__", "")).startswith(_HOOKS)
