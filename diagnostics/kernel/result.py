"""The result of measuring a tangent kernel: its blocks, their spectra, and Rayleigh quotients of gradients."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.linalg.gram import eigenvalues
from skip_conditioning.diagnostics.networks.isolation import require_finite
from skip_conditioning.diagnostics.networks.maps import TOTAL
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.diagnostics.spectrum import Spectrum, jacobian_floor

#: What a kernel is taken of: all outputs, or combinations of each sample's.
COMBINATIONS = ("all", "trace", "sum", "centred")


def read_outputs(probe: Probe, outputs: Any, combinations: Sequence[str] = COMBINATIONS) -> tuple[Probe, str]:
    """The probe and the combination of outputs that the option ``outputs`` of a kernel stands for.

    Args:
        probe: The probe.
        outputs: One of ``combinations``, or which entries count, as ``Probe.outputs``.
        combinations: Those that can be measured.

    Raises:
        InputError: It is neither.
    """
    if not isinstance(outputs, str) or outputs in ("targets", "last_token"):
        return replace(probe, outputs=outputs), "all"
    if outputs not in combinations:
        raise InputError(
            f"unknown outputs {outputs!r}; known are {', '.join(combinations)}, or the entries that count, as Probe's "
            f"outputs.{near_matches(outputs, combinations)}"
        )
    return probe, outputs


@dataclass(frozen=True)
class TangentKernel:
    """The tangent kernel ``K = Σ_l K_l``, ``K_l = (∂F/∂θ_l)(∂F/∂θ_l)ᵀ``, of a network's outputs F on a batch.

    Attributes:
        blocks: The share of each layer, shape ``(N·R, N'·R)``, float64; rows run over (sample, output).
        total: Of all requested layers; parameters in two of them count once.
        methods: How each block was computed.
        num_parameters: Trainable parameters of each block and of ``total``, which bound its rank (but for ``trace``).
        outputs: ``all``, ``trace``, ``sum`` or ``centred``.
        batch_mode: ``batch`` or ``sample``.
        num_outputs: R, rows per sample: O, or 1 for ``trace`` and ``sum``.
        symmetric: Whether it is the kernel of one batch with itself.
        dtype: Precision in which the derivatives were computed.
        seconds: Time it took.
        peak_bytes: Largest memory planned for matrices and temporaries.
        note: Anything a reader should know.
        witness: How far random products of the blocks lay from autograd's, relative to the largest these could be.
        rounding: The floors of the Jacobian's singular values, by block, where they were measured; of ``total`` too.
    """

    blocks: dict[str, Tensor] = field(repr=False)
    total: Tensor = field(repr=False)
    methods: dict[str, str]
    num_parameters: dict[str, int]
    outputs: str
    batch_mode: str
    num_outputs: int
    symmetric: bool
    dtype: str
    seconds: float
    peak_bytes: int
    note: str = ""
    witness: float | None = None
    rounding: dict[str, float] = field(default_factory=dict, repr=False)

    def block(self, name: str = TOTAL) -> Tensor:
        """A block by name, ``total`` being the sum.

        Raises:
            InputError: There is no such block; near matches are offered.
        """
        if name == TOTAL:
            return self.total
        if name not in self.blocks:
            known = [*self.blocks, TOTAL]
            raise InputError(f"no block {name!r}; there are {', '.join(known)}.{near_matches(name, known)}")
        return self.blocks[name]

    def spectrum(self, name: str = TOTAL) -> Spectrum:
        """The eigenvalues of a block, with statistics and the size below which one cannot be told from zero.

        For ``centred`` outputs, those on the subspace where the outputs of a sample sum to zero: ``N·(O − 1)`` values.

        Raises:
            InputError: There is no such block, or the kernel is between two batches.
        """
        matrix = self._square(name)
        start, notes = time.perf_counter(), [self.note] if self.note else []
        if self.outputs == "centred":
            matrix = _on_contrasts(matrix, self.num_outputs)
        values = np.clip(eigenvalues(matrix, notes), 0, None)
        if self.outputs != "trace":  # a sum over outputs, each of which may have that rank
            values[self.num_parameters[name] :] = 0  # beyond it there is only rounding
        trace = float(np.sum(values))
        eps, rows, dtype = np.finfo(np.float64).eps, len(values), getattr(torch, self.dtype)
        # Rounding of the Jacobian moves singular values, of the Gram matrix their squares.
        assumed = jacobian_floor(trace**0.5, torch.finfo(dtype).eps)
        floor = self.rounding.get(name, assumed) ** 2
        return Spectrum.of_values(
            values,
            (rows, rows),
            dtype,
            floor=max(floor, rows * eps * float(values[0]), float(np.finfo(np.float64).tiny)),
            map="kernel",
            layer=name,
            batch_mode=self.batch_mode,
            method=f"exact: {self.methods.get(name, 'sum of the blocks')}",
            seconds=self.seconds + time.perf_counter() - start,
            peak_bytes=self.peak_bytes,
            note="; ".join(notes if self.rounding else [*notes, "floor assumed from the precision"]),
            witness=self.witness,
        )

    @property
    def condition_number(self) -> float:
        """``λ_max / λ_min`` of the whole; a lower bound where ``spectrum().resolved`` is False."""
        return self.spectrum().condition_number

    def rayleigh(self, gradient: Tensor, name: str = TOTAL) -> float:
        """``gᵀ K g / |g|²``: for the gradient of the loss in the outputs, the rate at which training lowers the loss.

        Along gradient flow ``dℓ/dt = −gᵀ K g`` (MacDonald et al. 2023, section 2). NaN where the gradient is zero.

        Args:
            gradient: Of the loss in the rows of the kernel, ``N·R`` entries such as ``(N, O)``.
            name: A block.

        Raises:
            InputError: The gradient has another number of entries or is not finite, or the kernel is between two
                batches.
        """
        matrix = self._square(name)
        if not isinstance(gradient, Tensor) or gradient.numel() != len(matrix):
            given = tuple(gradient.shape) if isinstance(gradient, Tensor) else type(gradient).__name__
            raise InputError(
                f"the gradient must have {len(matrix)} entries, one for each row of the kernel; it is {given}"
            )
        require_finite(gradient, "the gradient")
        vector = gradient.detach().to(matrix).flatten()
        scale = vector.abs().max()
        vector = vector / scale  # squares of tiny gradients would vanish
        return float(vector @ matrix @ vector / (vector @ vector))

    def _square(self, name: str) -> Tensor:
        if not self.symmetric:
            raise InputError("a kernel between two batches has no spectrum; leave x2 out")
        return self.block(name)


def centred(matrix: Tensor, outputs: int) -> Tensor:
    """A kernel ``(N·O, N'·O)`` without what all outputs of a sample have in common, on either side."""
    view = matrix.view(-1, outputs, matrix.shape[1] // outputs, outputs)
    view = view - view.mean(1, keepdim=True)
    return (view - view.mean(3, keepdim=True)).view_as(matrix)


def _on_contrasts(matrix: Tensor, outputs: int) -> Tensor:
    """A square kernel ``(N·O, N·O)`` in an orthonormal basis of contrasts, ``(N·(O−1), N·(O−1))``."""
    basis = contrasts(outputs).to(matrix)
    view = matrix.view(-1, outputs, len(matrix) // outputs, outputs)
    blocks = torch.einsum("iojp,ok,pl->ikjl", view, basis, basis)
    size = blocks.shape[0] * blocks.shape[1]
    return blocks.reshape(size, size)


def contrasts(outputs: int) -> Tensor:
    """An orthonormal basis of the vectors that sum to zero (Helmert's), shape ``(O, O − 1)``, float64."""
    basis = torch.zeros(outputs, outputs - 1, dtype=torch.float64)
    for column in range(outputs - 1):
        basis[: column + 1, column] = 1.0
        basis[column + 1, column] = -(column + 1.0)
        basis[:, column] /= ((column + 1.0) * (column + 2.0)) ** 0.5
    return basis
