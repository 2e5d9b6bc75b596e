"""A statement of the theory, measured: both of its sides, the slack between them, and a verdict.

Functions that check the theory return these rather than raise: a violation is a finding, and carries its numbers.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

Relation = Literal[">=", "<=", "="]
Verdict = Literal["holds", "violated", "vacuous"]

_SIGNS: dict[Relation, str] = {">=": "≥", "<=": "≤", "=": "="}


@dataclass(frozen=True)
class Statement:
    """One inequality or identity at one state of one network.

    Attributes:
        name: Short name, such as ``regularity``.
        formula: What is claimed, such as ``"λ(DF) ≥ Σ λ(Df_l) Π λ(Jf_j)"``.
        left: The left side, as measured.
        relation: How the left side relates to the right one.
        right: The right side, as measured.
        error: What rounding may have done to ``left − right`` (or chance, where the note says so); a statement fails
            only by more than this.
        layer: The layer it is about; empty for the whole network.
        cause: Why it says nothing: empty unless it is vacuous.
        is_claim: Whether it is a claim that may come out either way, rather than a theorem.
        note: What else the reader should know.
    """

    name: str
    formula: str
    left: float
    relation: Relation
    right: float
    error: float
    layer: str = ""
    cause: str = ""
    note: str = ""
    is_claim: bool = False

    @property
    def slack(self) -> float:
        """By how much it holds; negative where it fails. Of an identity minus the difference of its sides."""
        difference = self.left - self.right
        return {">=": difference, "<=": -difference, "=": -abs(difference)}[self.relation]

    @property
    def verdict(self) -> Verdict:
        """``violated`` where it fails by more than rounding, ``vacuous`` where it says nothing, else ``holds``.

        A side that is NaN, or an error that is not finite, is a failure unless there is a cause: what was not measured
        does not hold.
        """
        unknown = math.isnan(self.slack) or not math.isfinite(self.error)
        if self.slack < -self.error or (unknown and not self.cause):
            return "violated"
        return "vacuous" if self.cause else "holds"

    def as_row(self) -> dict[str, Any]:
        """A row of a table of statements."""
        return {
            "statement": self.name,
            "layer": self.layer,
            "formula": self.formula,
            "left": self.left,
            "relation": self.relation,
            "right": self.right,
            "slack": self.slack,
            "error": self.error,
            "verdict": self.verdict,
            "is_claim": self.is_claim,
            "cause": self.cause,
            "note": self.note,
        }

    def __str__(self) -> str:
        """One line; a violation is given to all digits, so that it can be reproduced."""
        digits = ".17g" if self.verdict == "violated" else ".4g"
        where = f" at {self.layer}" if self.layer else ""
        sides = f"{self.left:{digits}} {_SIGNS[self.relation]} {self.right:{digits}}"
        why = f" ({self.cause})" if self.cause else ""
        return f"{self.name}{where}: {self.formula}: {sides}, slack {self.slack:{digits}}: {self.verdict}{why}"
