"""Claims with their verdicts as values, and as the table ``verdicts``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from skip_conditioning.experiments.claims.verdict.claim import Size
from skip_conditioning.experiments.claims.verdict.outcome import Judgement, Verdict

#: First of the columns of numbers; the effect of a comparison, its interval and pairs (``verdict.comparisons``).
NUMBERS = ("ratio", "ratio_low", "ratio_high", "level", "p_sign", "pairs", "smaller", "larger")


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


def counts(results: Sequence[ClaimResult]) -> str:
    """The number of claims with each verdict, in words."""
    verdicts = [result.judgement.verdict for result in results]
    noun = "claim" if len(results) == 1 else "claims"
    seen = [f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict if verdict in verdicts]
    return f"{len(results)} {noun}: {'; '.join(seen)}" if results else "0 claims"


def verdict_table(results: Sequence[ClaimResult]) -> pa.Table:
    """The table ``verdicts``: a row per finding, and one for a claim without findings.

    Each number of any finding has a column of its name, with ``_value`` added if there is another column of that name.
    """
    text = ("claim", "statement", "claim_verdict", "answer", "experiment", "measure", "arm", "other", "predicted")
    after = ("what", "verdict", "reason", "note", "change", "size", "hash", "command", "hardware", "versions", "commit")
    kept = (*text, *after, "decides", "lr")
    names = list(dict.fromkeys((*NUMBERS, *_number_names(results))))
    columns = {name: f"{name}_value" if name in kept else name for name in names}
    schema = pa.schema(
        [(name, pa.string()) for name in text]
        + [("lr", pa.float64()), ("decides", pa.bool_())]
        + [(column, pa.float64()) for column in columns.values()]
        + [(name, pa.string()) for name in after]
    )
    rows = []
    for result in results:
        shared: dict[str, Any] = {
            "claim": result.id,
            "statement": result.statement,
            "claim_verdict": result.judgement.verdict.value,
            "answer": result.judgement.answer,
            **{name: getattr(result, name) for name in ("size", "hash", "command", "hardware", "versions", "commit")},
            "change": result.judgement.change,
        }
        for finding in result.judgement.findings:
            own: dict[str, Any] = {
                name: getattr(finding, name) for name in ("what", "note", "decides", "lr", "experiment")
            }
            own |= {"verdict": finding.verdict.value, "reason": finding.reason.value if finding.reason else None}
            if finding.comparison is not None:
                own |= {name: getattr(finding.comparison, name) for name in ("measure", "arm", "other")}
                own["predicted"] = finding.comparison.predicted.value
            rows.append(shared | own | {columns[name]: float(value) for name, value in finding.numbers.items()})
        if not result.judgement.findings:
            rows.append(shared)
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def _number_names(results: Sequence[ClaimResult]) -> Iterable[str]:
    return (name for result in results for finding in result.judgement.findings for name in finding.numbers)
