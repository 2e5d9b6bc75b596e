"""Claims with their verdicts as values, and as the table ``verdicts``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from skip_conditioning.experiments.claims.verdict.claim import Finding, Judgement, Size
from skip_conditioning.experiments.claims.verdict.formatting import MISSING, SYMBOLS, effect

#: First of the columns of numbers; the effect of a comparison, its p values and pairs (``verdict.comparisons``).
NUMBERS = ("ratio", "ratio_low", "ratio_high", "p_sign_corrected", "p_not_equivalent", "pairs")


@dataclass(frozen=True)
class ClaimResult:
    """A claim with its verdict, and all that a reader needs to check or repeat it.

    Attributes:
        id: The claim's name on the command line.
        statement: What is claimed.
        source: Where it is claimed.
        predicted: The direction expected if it is true.
        controls: Possible confounders, and how each was held equal or varied.
        registered: What was written down before the first training step.
        hash: SHA-256 of the registration, in hexadecimal digits.
        judgement: The verdict and what it rests on.
        figures: SVG files in the claim's folder.
        command: The command that repeats it.
        hardware: The machine that it ran on.
        versions: Of the software.
        commit: Revision of this code.
        size: Of the experiments.
    """

    id: str
    statement: str
    source: str
    predicted: str
    controls: tuple[str, ...]
    registered: Mapping[str, Any]
    hash: str
    judgement: Judgement
    figures: tuple[Path, ...]
    command: str
    hardware: str
    versions: str
    commit: str
    size: Size

    @property
    def main(self) -> Finding | None:
        """The finding shown for the claim in the overview: the first with an effect and the claim's verdict.

        Where no finding has the claim's verdict, it is the first with an effect.
        """
        candidates = [finding for finding in self.judgement.findings if effect(finding) != MISSING]
        agreeing = (finding for finding in candidates if finding.verdict == self.judgement.verdict)
        return next(agreeing, candidates[0] if candidates else None)


def counts(results: Sequence[ClaimResult]) -> str:
    """The number of claims with each verdict, in words."""
    verdicts = [result.judgement.verdict for result in results]
    noun = "claim" if len(results) == 1 else "claims"
    return f"{len(results)} {noun}: " + ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in SYMBOLS)


def verdict_table(results: Sequence[ClaimResult]) -> pa.Table:
    """The table ``verdicts``: a row per finding, and one for a claim without findings.

    Each number of any finding has a column of its name, with ``_value`` added if there is another column of that name.
    """
    text = ("claim", "statement", "claim_verdict", "what", "verdict", "note", "change", "size", "hash", "command")
    kept = (*text, "decides", "is_main", "hardware", "versions", "commit")
    names = list(dict.fromkeys((*NUMBERS, *_number_names(results))))
    columns = {name: f"{name}_value" if name in kept else name for name in names}
    schema = pa.schema(
        [(name, pa.string()) for name in text[:5]]
        + [("decides", pa.bool_()), ("is_main", pa.bool_())]
        + [(column, pa.float64()) for column in columns.values()]
        + [(name, pa.string()) for name in (*text[5:], "hardware", "versions", "commit")]
    )
    rows = []
    for result in results:
        shared = {
            "claim": result.id,
            "statement": result.statement,
            "claim_verdict": result.judgement.verdict,
            **{name: getattr(result, name) for name in ("size", "hash", "command", "hardware", "versions", "commit")},
            "change": result.judgement.change,
        }
        for finding in result.judgement.findings:
            numbers = {columns[name]: float(value) for name, value in finding.numbers.items()}
            own = {"what": finding.what, "verdict": finding.verdict, "note": finding.note, "decides": finding.decides}
            rows.append(shared | own | {"is_main": finding is result.main} | numbers)
        if not result.judgement.findings:
            rows.append(shared | {"is_main": False})
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def _number_names(results: Sequence[ClaimResult]) -> Iterable[str]:
    return (name for result in results for finding in result.judgement.findings for name in finding.numbers)
