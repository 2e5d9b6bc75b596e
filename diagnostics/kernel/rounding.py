"""What rounding did to the Jacobian behind a tangent kernel, from gradients of random sums of its outputs."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from skip_conditioning.diagnostics.jacobians.witness import floor_of
from skip_conditioning.diagnostics.kernel.batch import Batch
from skip_conditioning.diagnostics.networks.maps import TOTAL
from skip_conditioning.diagnostics.networks.parameter_units import Unit
from skip_conditioning.diagnostics.networks.reference import Reference, References, Target


def measured_floors(batch: Batch, blocks: Mapping[str, Sequence[Unit]], memory_budget: int) -> dict[str, float]:
    """The size below which a singular value of each block's Jacobian cannot be told from zero; of ``total`` too.

    Costs a forward pass and about eight backward passes, half of them in float64.

    Args:
        batch: The batch, after its forward pass.
        blocks: The units of each block.
        memory_budget: Bytes to take; where the gradients need more, nothing is measured.

    Returns:
        By block; empty where nothing was measured.
    """
    probed, logits = batch.probed, batch.recording.logits
    parameters = [parameter for parameter in probed.model.parameters() if parameter.requires_grad]
    target = Target(TOTAL, logits.numel(), logits.dtype, parameters=tuple(parameters))
    references = References(probed.model, probed.state, probed.probe, "kernel", [target])
    reference = Reference(references, target)
    cotangents = reference.cotangents
    if 3 * 8 * len(cotangents) * sum(parameter.numel() for parameter in parameters) > memory_budget:
        return {}
    errors = -reference.exact
    slices = _slices(parameters)
    for error, cotangent in zip(errors, cotangents, strict=True):
        for parameter, gradient in batch.recording.gradients(cotangent.to(logits).view_as(logits)).items():
            error[slices[parameter]] += gradient.flatten().double()
    floors = {TOTAL: floor_of(errors, logits.numel())}
    for name, units in blocks.items():
        pieces = [errors[:, slices[parameter]] for unit in units for parameter in unit.parameters]
        floors[name] = floor_of(torch.cat(pieces, dim=1), logits.numel()) if pieces else 0.0
    return floors


def _slices(parameters: Sequence[nn.Parameter]) -> dict[nn.Parameter, slice]:
    """Where each parameter's entries are in the vector of all."""
    slices, end = {}, 0
    for parameter in parameters:
        slices[parameter] = slice(end, end + parameter.numel())
        end += parameter.numel()
    return slices
