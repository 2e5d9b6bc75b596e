"""Products with a map's Jacobian and its adjoint, by plain autograd from one forward pass.

The graph of the forward pass is kept, and pulls back any number of cotangents: the adjoint ``u ↦ Jᵀu``, which is what
training computes. It is linear in ``u``, so that its derivative, by double backward, is ``v ↦ J v``: the Jacobian
itself, and of the very same adjoint. (Forward mode follows rules of its own, which differ where a network stops
gradients, and some of which end the process.)
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import vmap

from skip_conditioning.diagnostics.errors import ConstantMapError, UnsupportedModelError
from skip_conditioning.diagnostics.jacobians.cheap_gradients import CheapGradients
from skip_conditioning.diagnostics.networks.maps import Map

#: Copies of the largest activation that the backward pass of one row keeps alive at a time.
LIVE_COPIES = 6

#: Bytes near which the largest tensor of a chunk stays on a CPU: larger chunks fall out of the cache, and their memory
#: is returned to the system and allocated anew every time.
CACHE_BYTES = 3 * 2**20


class Pullback:
    """The adjoint of a map's Jacobian, and through it the Jacobian, applied to vectors in the rows of a block.

    Args:
        map: The map; to be made and used inside ``isolation.quiet``.
        memory_budget: Bytes that the temporaries of a product may take.
        twice: Whether products with the Jacobian itself are wanted too.

    Attributes:
        chunk: How many vectors are carried through at a time.

    Raises:
        ConstantMapError: The output does not depend on the point.
        UnsupportedModelError: An operator cannot be differentiated.
    """

    def __init__(self, map: Map, memory_budget: int, *, twice: bool = False) -> None:
        self.map, self.chunk = map, chunk_size(map, memory_budget)
        self._point = map.point.detach().requires_grad_()
        with torch.enable_grad(), clear_autograd_errors(map), CheapGradients() if twice else contextlib.nullcontext():
            self._output = map.function(self._point)
        if not self._output.requires_grad:
            raise ConstantMapError(
                f"the {map.name} map of {map.layer!r} is constant: its output does not depend on its "
                f"{'parameters' if map.name in ('param', 'kernel') else 'input'}, or is detached from it; choose "
                "another layer"
            )
        self._cotangent: Tensor | None = None
        self._gradient: Tensor | None = None

    def __call__(self, cotangents: Tensor) -> Tensor:
        """``U J`` for cotangents in the rows of ``U``, shape ``(k, rows)``: shape ``(k, cols)``."""
        return self._in_chunks(self._adjoint, cotangents, self._output.shape)

    def forward(self, tangents: Tensor) -> Tensor:
        """``V Jᵀ`` for tangents in the rows of ``V``, shape ``(k, cols)``: shape ``(k, rows)``."""
        if self._cotangent is None:
            self._cotangent = torch.zeros_like(self._output).requires_grad_()
            with torch.enable_grad(), clear_autograd_errors(self.map), self.map.installed():
                (self._gradient,) = torch.autograd.grad(
                    self._output, self._point, self._cotangent, create_graph=True, allow_unused=True
                )
        if self._gradient is None or not self._gradient.requires_grad:
            return tangents.new_zeros(len(tangents), self._output.numel())
        return self._in_chunks(self._tangent, tangents, self._point.shape)

    def _adjoint(self, cotangent: Tensor) -> Tensor:
        return _grad(self._output, self._point, cotangent)

    def _tangent(self, tangent: Tensor) -> Tensor:
        assert self._cotangent is not None
        assert self._gradient is not None
        return _grad(self._gradient, self._cotangent, tangent)

    def _in_chunks(self, product: Callable[[Tensor], Tensor], block: Tensor, shape: torch.Size) -> Tensor:
        """A product with each row of a block, as many at a time as memory allows."""
        vectors = block.reshape(-1, *shape)
        with torch.no_grad(), clear_autograd_errors(self.map), self.map.installed():
            if self.chunk > 1 and len(vectors) > 1:
                try:
                    chunks = [vmap(product)(part).reshape(len(part), -1) for part in vectors.split(self.chunk)]
                    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError:
                    self.chunk = 1  # some operator cannot be batched; one vector at a time always works
            # Copied, as some operators' rules look at the whole memory that a vector is a part of.
            products = [product(vector.clone()).reshape(1, -1) for vector in vectors]
            return products[0] if len(products) == 1 else torch.cat(products)


def _grad(output: Tensor, at: Tensor, cotangent: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(output, at, cotangent, retain_graph=True, allow_unused=True)
    if gradient is None:
        return torch.zeros_like(at)
    return gradient.to_dense() if gradient.is_sparse else gradient


def chunk_size(map: Map, memory_budget: int) -> int:
    """How many vectors to carry through a map at a time, at least one."""
    largest = map.widest * map.point.element_size()
    chunk = memory_budget // (LIVE_COPIES * largest)
    if map.point.device.type == "cpu":
        chunk = min(chunk, CACHE_BYTES // largest)
    return max(int(chunk), 1)


@contextlib.contextmanager
def clear_autograd_errors(map: Map) -> Iterator[None]:
    """Turn autograd's error about an operator it cannot differentiate into one line that names the layer."""
    try:
        yield
    except (torch.OutOfMemoryError, UnsupportedModelError):
        raise
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        advice = "turn gradient checkpointing off, or " if "reentrant" in reason or "checkpoint" in reason else ""
        raise UnsupportedModelError(
            f"the {map.name} map of {map.layer!r} cannot be differentiated ({reason}); {advice}choose another layer"
        ) from error
