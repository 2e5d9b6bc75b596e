"""A dispatch mode of torch that does not import torch's compiler."""

from torch.utils._python_dispatch import TorchDispatchMode


class EagerDispatchMode(TorchDispatchMode):
    """A ``TorchDispatchMode`` for code that is never compiled, as no measurement is (``isolation.exact_numerics``).

    Torch keeps its compiler away from a mode by a wrapper that imports it, which takes seconds, at the first operation.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
