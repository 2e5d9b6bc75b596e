"""Initialisations, as functions that overwrite the weights of a model in place.

They change the conditioning of a network without a skip. Each visits the convolutions and linear layers
in ``named_modules()`` order and draws from the global random stream, so two arms of one network get the
same weights from the same seed. All but ``default`` set the biases of the layers that they change to
zero; normalisation layers are left alone.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from skip_conditioning.models.errors import ModelOptionError, check_choice

InitialisationName = Literal["default", "orthogonal", "dirac", "looks-linear"]


def initialise(model: nn.Module, name: InitialisationName) -> None:
    """Initialise a model in place.

    Args:
        model: The model to overwrite.
        name: ``default`` (what PyTorch drew when the model was built: nothing is changed), ``orthogonal``,
            ``dirac`` or ``looks-linear``.

    Raises:
        ModelOptionError: There is no such initialisation, or the model's layers do not allow it.
    """
    check_choice("initialisation", name, INITIALISATIONS)
    INITIALISATIONS[name](model)


@torch.no_grad()
def initialise_between(model: nn.Module, start: InitialisationName, end: InitialisationName, share: float) -> None:
    """Initialise a model in place with weights ``(1 − share)·start + share·end``, each drawn in turn.

    Args:
        model: The model to overwrite.
        start: The initialisation at 0.
        end: The initialisation at 1.
        share: Between 0 and 1.

    Raises:
        ModelOptionError: As ``initialise``.
    """
    initialise(model, start)
    before = [parameter.clone() for parameter in model.parameters()]
    initialise(model, end)
    for parameter, value in zip(model.parameters(), before, strict=True):
        parameter.lerp_(value, 1 - share)


def default(model: nn.Module) -> None:
    """Leave the model with PyTorch's own initialisation, drawn when it was built."""


@torch.no_grad()
def orthogonal(model: nn.Module) -> None:
    """Delta-orthogonal weights: a random semi-orthogonal matrix at the centre of each kernel, zero around it.

    A linear layer, or a convolution of stride 1 that pads to keep the size, is then an isometry (a
    partial one where the widths differ): its singular values are 1 or 0. A plain orthogonal matrix of
    shape ``(C_out, C_in k²)`` does not give this.

    Source: Xiao et al. 2018, *Dynamical isometry and a mean field theory of CNNs*, algorithm 1.
    """
    for _, layer in _weighted_layers(model):
        C_out, C_in = layer.weight.shape[:2]
        _set_centre(layer, _semi_orthogonal(C_out, C_in, like=layer.weight))


@torch.no_grad()
def dirac(model: nn.Module) -> None:
    """Identity weights, in the layers with as many channels before as behind; the others keep what was drawn.

    A copy of the first channels would not do for those: the surplus outputs would be zero, and behind a ReLU for good.
    """
    for _, layer in _weighted_layers(model):
        C_out, C_in = layer.weight.shape[:2]
        if C_out == C_in:
            _set_centre(layer, torch.eye(C_out, dtype=layer.weight.dtype, device=layer.weight.device))


@torch.no_grad()
def looks_linear(model: nn.Module) -> None:
    r"""Mirrored weights, under which a ReLU network computes a linear function at initialisation.

    With ``[a; −a]`` before a ReLU, the next layer ``[[W, −W], [−W, W]]`` gives ``[Wa; −Wa]``, since
    ``relu(a) − relu(−a) = a``. ``W`` is delta-orthogonal. The first layer reads the raw input and is
    ``[W; −W]``, the last gives the logits and is ``[W, −W]``; they are taken to be the first and last of
    ``named_modules()``. Batch norm, identity and convolution skips keep the mirror symmetry; max pooling and
    the pooled identity after a ReLU (arms ``modified``) do not.

    Source: Balduzzi et al. 2017, *The shattered gradients problem*, §4.

    Raises:
        ModelOptionError: A mirrored layer has an odd number of channels; the message names it.
    """
    layers = _weighted_layers(model)
    for i, (name, layer) in enumerate(layers):
        C_out, C_in = layer.weight.shape[:2]
        rows, columns = (1 if i == len(layers) - 1 else 2), (1 if i == 0 else 2)
        if C_out % rows or C_in % columns:
            raise ModelOptionError(
                f"initialisation looks-linear pairs channels up, but layer {name} has {C_in} → {C_out}"
            )
        W = _semi_orthogonal(C_out // rows, C_in // columns, like=layer.weight)
        W = torch.cat([W, -W], dim=1) if columns == 2 else W
        _set_centre(layer, torch.cat([W, -W]) if rows == 2 else W)


INITIALISATIONS: dict[InitialisationName, Callable[[nn.Module], None]] = {
    "default": default,
    "orthogonal": orthogonal,
    "dirac": dirac,
    "looks-linear": looks_linear,
}
"""Every initialisation, by name."""


def _weighted_layers(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """The convolutions and linear layers of a model, with their names.

    Raises:
        ModelOptionError: A convolution is grouped.
    """
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for name, layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            raise ModelOptionError(f"initialisations do not cover grouped convolutions, such as layer {name}")
    return layers


def _semi_orthogonal(rows: int, columns: int, *, like: Tensor) -> Tensor:
    """A random matrix with orthonormal rows or columns, with the dtype and device of ``like``."""
    return nn.init.orthogonal_(torch.empty(rows, columns, dtype=like.dtype, device=like.device))


def _set_centre(layer: nn.Conv2d | nn.Linear, matrix: Tensor) -> None:
    """Make a layer act on channels by ``matrix``: at the centre of its kernel, zero around it and no bias."""
    weight = layer.weight
    if isinstance(layer, nn.Conv2d):
        weight.zero_()
        weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = matrix
    else:
        weight.copy_(matrix)
    if layer.bias is not None:
        layer.bias.zero_()
