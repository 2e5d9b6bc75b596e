"""The pre-activation block, of which every network here is made."""

from typing import Literal

from torch import Tensor, nn


class PreActivationBlock(nn.Module):
    r"""``y = branch(o) + shortcut(z)`` with ``o = preactivation(x)`` and ``z = x`` or ``z = o``.

    A single-input, single-output module. Which shortcut it has is the arm's choice; the block does not
    know.

    Source: He et al. 2016, *Identity mappings in deep residual networks*.

    Args:
        preactivation: Usually batch norm and ReLU.
        branch: The residual branch, on the pre-activated input.
        shortcut: The shortcut; its output has the branch's shape.
        shortcut_reads: What the shortcut acts on: the block's ``"input"`` x (blocks that keep the shape)
            or its ``"preactivation"`` o (blocks that change it).
    """

    def __init__(
        self,
        preactivation: nn.Module,
        branch: nn.Module,
        shortcut: nn.Module,
        *,
        shortcut_reads: Literal["input", "preactivation"] = "input",
    ) -> None:
        super().__init__()
        self.preactivation, self.branch, self.shortcut = preactivation, branch, shortcut
        self.shortcut_reads = shortcut_reads

    def forward(self, x: Tensor) -> Tensor:
        """Branch plus shortcut."""
        o = self.preactivation(x)
        return self.branch(o) + self.shortcut(x if self.shortcut_reads == "input" else o)
