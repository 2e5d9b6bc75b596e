"""The closed form of a layer's Jacobian in its own parameters: evaluated, and compared with autograd.

``param_spectrum`` finds the layers that have one, and has the mathematics.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from skip_conditioning.diagnostics.linalg.gram import eigenvalues
from skip_conditioning.diagnostics.networks.maps import Map
from skip_conditioning.diagnostics.networks.parameter_rules import ConvolutionRule, ParameterRule
from skip_conditioning.diagnostics.networks.recording import Use

#: ``Jᵀv`` may differ from autograd's by so many units in the last place of its norm (and by ``_MOST`` at most). With
#: a standard normal ``v`` the difference is about the Frobenius norm of the error in J. Sums over many positions differ
#: by dozens of units where the closed form is right; a layer that differs by more goes to the general engine.
_ROUNDING_UNITS, _MOST = 1000, 0.25

#: Entries of the activations that are converted to float64 at a time.
_CHUNK_ENTRIES = 2**21

#: Operations up to which also a matrix in less than float64 gets a singular value decomposition, in float64.
_CHEAP = 1e9

#: Copies: of a matrix that is factorised, of the singular values while their statistics are taken, of the output.
_MATRIX_COPIES, _VALUE_COPIES, _OUTPUT_COPIES = 3, 6, 4


class PlainLayer(ABC):
    """A layer whose Jacobian seems to have a closed form; ``values`` finds out whether it has.

    Args:
        output: The value of the map's function, with its graph.
        parameters: The argument of that function: a leaf of the graph.
        map: The layer's map.

    Attributes:
        bytes: Memory that ``values`` will take.
        gram_side: Side of the Gram matrix that the values come from; 0 for none.
        error: Norm of what the closed form's product with a random vector differs by from autograd's: ``‖E‖_F`` on
            average of the difference of the matrices.
        difference: The same relative to the product.
    """

    bytes: int
    gram_side = 0
    error = 0.0
    difference = 0.0

    def __init__(self, output: Tensor, parameters: Tensor, map: Map) -> None:
        self._output, self._parameters, self._map = output, parameters, map
        item = map.point.element_size()
        self._fixed_bytes = (
            item * (_OUTPUT_COPIES * map.rows + 3 * map.cols)
            + 8 * map.cols
            + 8 * _VALUE_COPIES * min(map.rows, map.cols)
        )

    @abstractmethod
    def values(self, notes: list[str]) -> np.ndarray | None:
        """All singular values, descending; None if the closed form is wrong for this map."""

    def _product(self) -> tuple[Tensor, Tensor | None]:
        """A random cotangent, shaped like the output, and ``Jᵀ`` of it by autograd; None where that fails."""
        if (reference := self._map.reference) is not None:
            v = reference.cotangents[0].view(self._map.output_shape).to(self._map.point.dtype)
            return v, reference.exact[0]
        # On the CPU, so that it is the same on every device; a generator of its own leaves the global stream alone.
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self._map.output_shape, generator=generator, dtype=self._map.point.dtype)
        v = v.to(self._output.device)
        try:
            (gradient,) = torch.autograd.grad(self._output, self._parameters, v)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return v, None  # such as an input written into after the call
        return v, gradient

    def _agree(self, gradient: Tensor, expected: Tensor) -> bool:
        """Whether ``Jᵀv`` by autograd equals that of the closed form, up to rounding; notes by how much it does not."""
        # Divided by the largest first: squares of extreme values would leave the range of float64.
        scale = expected.abs().max()
        if scale == 0:
            return not bool(gradient.any())
        allowed = min(_ROUNDING_UNITS * torch.finfo(self._map.point.dtype).eps, _MOST)
        error = float(torch.linalg.vector_norm((gradient.double() - expected) / scale))
        size = float(torch.linalg.vector_norm(expected / scale))
        self.error, self.difference = error * float(scale), error / size
        return error <= allowed * size


class Channels(PlainLayer):
    """A linear layer, a convolution or a normalisation: each channel has the matrix ``[A_g, 1]`` of its group.

    Args:
        output: As for ``PlainLayer``.
        parameters: As for ``PlainLayer``.
        map: As for ``PlainLayer``.
        use: The call.
        rule: The call's rule.
        weight: Where the weight begins among the parameters; None if it is not among them.
        bias: Likewise.
    """

    def __init__(
        self,
        output: Tensor,
        parameters: Tensor,
        map: Map,
        use: Use,
        rule: ParameterRule,
        weight: int | None,
        bias: int | None,
    ) -> None:
        super().__init__(output, parameters, map)
        self._use, self._rule, self._weight, self._bias = use, rule, weight, bias
        self._inputs = rule.inputs + (bias is not None)
        self._positions = map.rows // (rule.groups * rule.outputs)
        self._plan()

    def _plan(self) -> None:
        """Choose between a factorisation of the matrix and its Gram matrix, and the samples in memory at a time."""
        groups, samples = self._rule.groups, len(self._use.input)
        short, long = sorted((self._positions, self._inputs))
        self._tall = self._positions > self._inputs
        # A wide matrix is held whole; a tall one in blocks, several times as tall as wide so that updating R is cheap.
        per_sample = groups * max(self._inputs, self._rule.outputs) * (self._positions // samples)
        entries = max(_CHUNK_ENTRIES, 4 * groups * short**2)
        self._samples = min(max(entries // per_sample, 1), samples) if self._tall else samples
        if self._map.point.dtype != torch.float64 and 2.0 * groups * long * short**2 > _CHEAP:
            self.gram_side = short
        normalised = 0 if isinstance(self._rule, ConvolutionRule) else self._use.input.numel()
        matrix_entries = groups * short**2 + self._samples * per_sample
        self.bytes = self._fixed_bytes + 8 * (normalised + _MATRIX_COPIES * matrix_entries)

    def values(self, notes: list[str]) -> np.ndarray | None:
        """See ``PlainLayer``."""
        v, gradient = self._product()
        if gradient is None:
            return None
        rule, matrix = self._rule, None
        expected = torch.zeros(rule.groups, rule.outputs, self._inputs, dtype=torch.float64, device=v.device)
        cotangents = rule.cotangents(v.unsqueeze(0))[0].split(self._samples)
        for activations, g in zip(self._activations(), cotangents, strict=True):
            block = self._block(activations)
            expected += g.permute(1, 2, 0, 3).flatten(2).double() @ block
            matrix = self._add(matrix, block)
        assert matrix is not None
        if not self._agree(self._by_channel(gradient), expected) or not bool(torch.isfinite(matrix).all()):
            return None
        by_group = self._singular_values(matrix, notes)
        return np.repeat(np.sort(by_group, axis=None)[::-1], rule.outputs)

    def _activations(self) -> Iterator[Tensor]:
        """Activations of some samples at a time, shape ``(m, G, D, T)``."""
        if isinstance(self._rule, ConvolutionRule):
            # The patches of all samples at once would be many times as large as the input.
            for piece in self._use.input.split(self._samples):
                yield self._rule.activations(dataclasses.replace(self._use, input=piece))
        else:
            yield from self._rule.activations(self._use).split(self._samples)

    def _block(self, activations: Tensor) -> Tensor:
        """Rows of ``[A_g, 1]`` from activations ``(m, G, D, T)``: shape ``(G, m·T, D + 1)``, float64."""
        rows = activations.permute(1, 0, 3, 2).flatten(1, 2)
        block = torch.ones(*rows.shape[:2], self._inputs, dtype=torch.float64, device=rows.device)
        block[..., : rows.shape[2]] = rows
        return block

    def _add(self, matrix: Tensor | None, block: Tensor) -> Tensor:
        """Add a block of rows to the Gram matrix or triangular factor of a tall matrix; a wide matrix is one block."""
        if not self._tall:
            return block
        if self.gram_side:
            gram = block.mT @ block
            return gram if matrix is None else matrix.add_(gram)
        stacked = block if matrix is None else torch.cat([matrix, block], dim=1)
        return torch.linalg.qr(stacked, mode="r").R

    def _by_channel(self, parameters: Tensor) -> Tensor:
        """A vector of parameters as ``(G, C, D + 1)``."""
        channels = (self._rule.groups, self._rule.outputs)
        parts = []
        if self._weight is not None:
            size = math.prod(channels) * self._rule.inputs
            parts.append(parameters[self._weight : self._weight + size].view(*channels, -1))
        if self._bias is not None:
            parts.append(parameters[self._bias : self._bias + math.prod(channels)].view(*channels, 1))
        return torch.cat(parts, dim=2)

    def _singular_values(self, matrix: Tensor, notes: list[str]) -> np.ndarray:
        """Singular values of the result of ``_add``: shape ``(G, min(N·T, D + 1))``."""
        if not self.gram_side:
            try:
                return torch.linalg.svdvals(matrix).cpu().numpy()
            except (torch.linalg.LinAlgError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0]
                notes.append(f"svdvals failed on {matrix.device} ({reason}); a Gram matrix in float64 instead")
                self.gram_side = min(matrix.shape[1:])
                gram = matrix.mT @ matrix if self._tall else matrix @ matrix.mT
        else:
            gram = matrix if self._tall else matrix @ matrix.mT
        # Rounding makes zero eigenvalues slightly negative; they lie under the floor and are marked by it.
        return np.sqrt(np.clip([eigenvalues(of_group, notes) for of_group in gram], 0, None))


class Embedding(PlainLayer):
    """An embedding: the rows of an index are copies of the identity, as many as there are occurrences.

    Args:
        output: As for ``PlainLayer``.
        parameters: As for ``PlainLayer``; the whole table.
        map: As for ``PlainLayer``.
        indices: The indices that were looked up.
        shape: Of the table.
        padding: The index that is not trained, if any.
    """

    def __init__(
        self,
        output: Tensor,
        parameters: Tensor,
        map: Map,
        indices: Tensor,
        shape: torch.Size,
        padding: int | None,
    ) -> None:
        super().__init__(output, parameters, map)
        self._indices, self._shape = indices.flatten(), shape
        self._padding = None if padding is None else padding % shape[0]
        self.bytes = self._fixed_bytes + 8 * (2 * map.cols + map.rows)

    def values(self, notes: list[str]) -> np.ndarray | None:
        """See ``PlainLayer``."""
        v, gradient = self._product()
        if gradient is None:
            return None
        rows, width = self._shape
        counts = torch.bincount(self._indices, minlength=rows)
        expected = torch.zeros(rows, width, dtype=torch.float64, device=gradient.device)
        expected.index_add_(0, self._indices, v.reshape(-1, width).double())
        if self._padding is not None:
            counts[self._padding] = 0
            expected[self._padding] = 0
        if not self._agree(gradient.view(rows, width), expected):
            return None
        # Unused indices have zeros; where there are more indices than tokens, not all of them count.
        largest = counts.sort(descending=True).values[: min(rows, len(self._indices))]
        return np.repeat(largest.double().sqrt().cpu().numpy(), width)
