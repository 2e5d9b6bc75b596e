"""The two costs of the theory, cross-entropy and mean square, and bounds of their derivatives.

Both are means as PyTorch takes them: cross-entropy over the samples, the mean square over all entries of the outputs.
(MacDonald et al. write ``c = |F − Y|² / 2N``, which is ``O/2`` times the mean square of ``O`` outputs.)
A loss is a number, or a tensor whose entries are each a loss of their own.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.loss.losses import has_own_targets
from skip_conditioning.diagnostics.networks.output_choice import class_dimension
from skip_conditioning.diagnostics.networks.probe import Probe

Loss = TypeVar("Loss", float, Tensor)


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of ``samples`` predictions over ``classes`` classes.

    Source: MacDonald et al. 2023, section 2; docs/paper.md §2.3, §2.5.
    """

    samples: int
    classes: int

    @property
    def curvature(self) -> float:
        """Upper bound of ``‖∇²c‖``: the Hessian of one sample's is at most 1/2."""
        return 1 / (2 * self.samples)

    def gradient_ceiling(self, loss: float | Tensor = math.inf) -> float | Tensor:
        """Upper bound of ``|∇c|`` wherever the cost is at most ``loss``: one sample's gradient is at most √2."""
        return math.sqrt(2 / self.samples)

    @property
    def gradient_floor_slope(self) -> float:
        """Upper bound of the derivative of `gradient_floor`: that of ``(1 − e^{−ℓ})²`` is at most 1/2."""
        return self.classes / (self.classes - 1) / (2 * self.samples**2)

    def gradient_floor(self, loss: Loss) -> Loss:
        """Lower bound of ``|∇c|²`` wherever the mean cross-entropy is ``loss``.

        One sample's gradient has ``|∇CE|² ≥ K/(K−1) · (1 − e^{−CE})²``. Of several, the greatest is at least the
        mean, which gives ``(1 − e^{−loss})²`` for one of them; and by Cauchy–Schwarz and concavity their sum is at
        least ``(1 − e^{−N·loss})² / N``, the better for small losses.
        """
        if not isinstance(loss, Tensor):
            return self.gradient_floor(torch.tensor(loss, dtype=torch.float64)).item()
        worst = torch.expm1(-loss) ** 2
        summed = torch.expm1(-self.samples * loss) ** 2 / self.samples
        return self.classes / (self.classes - 1) * torch.maximum(worst, summed) / self.samples**2


@dataclass(frozen=True)
class MeanSquare:
    """Mean over all entries of ``(F − Y)²``, for ``samples`` rows of ``outputs`` entries.

    Source: MacDonald et al. 2023, section 2; docs/paper.md §2.3, §2.5.
    """

    samples: int
    outputs: int

    @property
    def entries(self) -> int:
        """Entries of the outputs."""
        return self.samples * self.outputs

    @property
    def curvature(self) -> float:
        """``‖∇²c‖``, everywhere the same."""
        return 2 / self.entries

    def gradient_ceiling(self, loss: float | Tensor = math.inf) -> float | Tensor:
        """``|∇c|`` where the cost is ``loss``, which is its largest wherever the cost is at most that."""
        return (4 * loss / self.entries) ** 0.5

    @property
    def gradient_floor_slope(self) -> float:
        """The derivative of `gradient_floor`."""
        return 4 / self.entries

    def gradient_floor(self, loss: Loss) -> Loss:
        """``|∇c|²`` where the cost is ``loss``: exactly ``4 · loss / entries``."""
        return 4 * loss / self.entries


Cost = CrossEntropy | MeanSquare


def cost_of(logits: Tensor, probe: Probe) -> Cost:
    """The cost of a probe: cross-entropy for class indices, the mean square for real targets.

    Args:
        logits: The network's outputs, samples first.
        probe: With targets.

    Raises:
        InputError: Its loss is another one.
    """
    y = probe.targets
    if not isinstance(y, Tensor) or probe.loss not in (None, "cross_entropy", "mse"):
        raise InputError(
            "the theory is about cross-entropy and the mean square of targets given as a tensor; leave `loss` out, or "
            "name one of these"
        )
    if probe.loss is None and has_own_targets(probe):
        raise InputError(
            "the model is given the targets, and may have a loss of its own; say loss='cross_entropy' or 'mse'"
        )
    if y.is_floating_point() or probe.loss == "mse":
        return MeanSquare(len(logits), logits[0].numel())
    counted = int((y != probe.ignore_index).sum())
    return CrossEntropy(counted, logits.shape[class_dimension(logits, y, probe.first)])
