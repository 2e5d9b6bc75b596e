"""The pre-activation block, of which every network here is made."""

from typing import Literal

from torch import Tensor, nn


class PreActivationBlock(nn.Module):
    r"""``y = c · (branch(o) + shortcut(z))`` with ``o = preactivation(x)`` and ``z = x`` or ``z = o``.

    A single-input, single-output module. The arm chooses its shortcut.

    Source: He et al. 2016, *Identity mappings in deep residual networks*.

    Args:
        preactivation: Usually batch norm and ReLU.
        branch: The residual branch, on the pre-activated input.
        shortcut: The shortcut; its output has the branch's shape.
        shortcut_reads: What the shortcut acts on: the block's ``"input"`` x (blocks that keep the shape)
            or its ``"preactivation"`` o (blocks that change it).
        output_gain: c, fixed.
    """

    def __init__(
        self,
        preactivation: nn.Module,
        branch: nn.Module,
        shortcut: nn.Module,
        *,
        shortcut_reads: Literal["input", "preactivation"] = "input",
        output_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.preactivation, self.branch, self.shortcut = preactivation, branch, shortcut
        self.shortcut_reads, self.output_gain = shortcut_reads, output_gain

    def forward(self, x: Tensor) -> Tensor:
        """Branch plus shortcut, times the output gain."""
        o = self.preactivation(x)
        y = self.branch(o) + self.shortcut(x if self.shortcut_reads == "input" else o)
        return y if self.output_gain == 1 else self.output_gain * y

    def extra_repr(self) -> str:
        """The output gain if there is one, for ``print(model)``."""
        return "" if self.output_gain == 1 else f"output_gain={self.output_gain}"
