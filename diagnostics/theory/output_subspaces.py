"""Subspaces of a network's outputs on which its regularity matters."""

import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.kernel.result import contrasts
from skip_conditioning.diagnostics.spectrum import jacobian_floor

SUBSPACES = ("all", "centred", "data")


def output_basis(subspace: str | Tensor, x: Tensor, logits: Tensor) -> Tensor:
    """An orthonormal basis of a subspace of the outputs, shape ``(N·O, r)``, rows over (sample, output).

    Args:
        subspace: ``all``; ``centred``: what sums to zero over each sample's outputs, where softmax gradients live;
            ``data``: ``span(X) ⊗ R^O``, all that a linear network can change; or an orthonormal basis.
        x: Inputs, shape ``(N, *input_shape)``.
        logits: Outputs, samples first.

    Raises:
        InputError: It is not known, or is empty, or is no orthonormal basis of the outputs' shape.
    """
    if isinstance(subspace, Tensor):
        return _checked(subspace.detach().to(logits), logits.numel())
    if subspace not in SUBSPACES:
        hint = near_matches(subspace, SUBSPACES)
        raise InputError(f"unknown subspace {subspace!r}; known are {', '.join(SUBSPACES)}.{hint}")
    samples, outputs = len(logits), logits.numel() // len(logits)
    of_samples, of_outputs = torch.eye(samples).to(logits), torch.eye(outputs).to(logits)
    if subspace == "centred":
        if outputs == 1:
            raise InputError('centred outputs of a network with a single output are all zero; use subspace="all"')
        of_outputs = contrasts(outputs).to(logits)
    if subspace == "data":
        left, sizes, _ = torch.linalg.svd(x.reshape(samples, -1).to(logits), full_matrices=False)
        floor = jacobian_floor(float(torch.linalg.vector_norm(sizes)), torch.finfo(logits.dtype).eps)
        of_samples = left[:, sizes > floor].contiguous()
        if not of_samples.numel():
            raise InputError("the probe is zero, so its range is empty; use another probe or subspace")
    return torch.kron(of_samples, of_outputs)


def _checked(basis: Tensor, entries: int) -> Tensor:
    if basis.dim() != 2 or len(basis) != entries or not 0 < basis.shape[1] <= entries:
        raise InputError(f"a basis of these outputs has shape ({entries}, r); this one has {tuple(basis.shape)}")
    if not torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]).to(basis), rtol=0, atol=1e-6):
        raise InputError("a basis of outputs must be orthonormal; take torch.linalg.qr of it first")
    return torch.linalg.qr(basis).Q  # to rounding
