"""Verdicts as values, as text and as rows: what the report, the printout and the table ``verdicts`` share."""

import math
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from skip_conditioning.experiments.claims.verdict.claim import Finding, Judgement, Size, Verdict

#: A sign beside the word, so that colour is never needed to tell verdicts apart.
SYMBOLS: dict[Verdict, str] = {"supported": "✓", "contradicted": "✗", "inconclusive": "?", "vacuous": "∅"}
MEANINGS: dict[Verdict, str] = {
    "supported": "the registered rule finds what was predicted",
    "contradicted": "the rule finds otherwise: the opposite, or no effect large enough to count",
    "inconclusive": "these runs cannot tell",
    "vacuous": "there was nothing to compare or to decide, so it says nothing",
}
MISSING = "–"
_BOUNDS = {1.0: "≥ ", -1.0: "≤ "}
#: First of the columns of numbers; by these names ``rules`` gives a comparison's effect and what it rests on.
NUMBERS = ("ratio", "ratio_low", "ratio_high", "p_sign_corrected", "p_not_equivalent", "pairs")


@dataclass(frozen=True)
class Result:
    """A claim that has been decided, with all that a reader needs to check or repeat it.

    Attributes:
        id: The claim's name on the command line.
        statement: What is claimed.
        source: Where.
        predicted: The direction expected if it is true.
        controls: What was held equal or varied beside it.
        registered: What was written down before the first training step.
        hash: SHA-256 of that, in hexadecimal digits.
        judgement: The verdict and what it rests on.
        figures: SVG files, in the claim's folder.
        command: Repeats it.
        hardware: Where it ran.
        versions: Of the software.
        commit: Of this code.
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
        """What stands for the claim in the verdict table: the first finding with an effect and the claim's verdict.

        Where no finding has the claim's verdict, the first with an effect.
        """
        candidates = [finding for finding in self.judgement.findings if effect(finding) != MISSING]
        agreeing = (finding for finding in candidates if finding.verdict == self.judgement.verdict)
        return next(agreeing, candidates[0] if candidates else None)


def number(value: float | None) -> str:
    """Three digits, plain where that is short; missing as a dash, infinite in a word."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞ (never)" if value > 0 else "−∞"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.0f}" if abs(value) >= 100 or value == round(value) else f"{value:#.3g}"
        return text.replace("-", "−")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", "−")


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def p_value(value: float | None) -> str:
    """Two digits, and a bound where that is as much as can be meant."""
    if value is None or not math.isfinite(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def interval(finding: Finding, name: str) -> tuple[float, float]:
    """The ends of a number's interval, which are named for it; NaN without one."""
    low, high = (finding.numbers.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
    return float(low), float(high)


def effect(finding: Finding) -> str:
    """The ratio with its interval, or the first other number with its name; a dash where there is neither.

    A number with ``…_bound`` beside it is shown as the bound that it is, such as ``≥ 1.80×10¹¹``.
    """
    name = _effect_name(finding)
    if name is None:
        return MISSING
    text = _with_interval(finding, name)
    return text if name == "ratio" else f"{words(name)} {text}"


def corrected_p(finding: Finding) -> str:
    """The p value after the correction for the number of comparisons: the number named ``p_…corrected``."""
    return p_value(next((finding.numbers[name] for name in finding.numbers if _is_corrected_p(name)), None))


def equivalence_p(finding: Finding) -> str:
    """The p value of an effect beyond the bounds of equivalence."""
    return p_value(finding.numbers.get("p_not_equivalent"))


def pairs(finding: Finding | None) -> str:
    """How many pairs a finding rests on."""
    return number(finding.numbers.get("pairs")) if finding else MISSING


def effect_and_pairs(finding: Finding) -> str:
    """Both in one text, such as ``0.620 [0.510, 0.740], 30 pairs``."""
    return effect(finding) + (f", {pairs(finding)} pairs" if pairs(finding) != MISSING else "")


def other_numbers(finding: Finding) -> str:
    """The numbers that have no column of their own, with their names; intervals in brackets."""
    name = _effect_name(finding) or "ratio"
    shown = {name, "pairs", "p_not_equivalent", *filter(_is_corrected_p, finding.numbers)}
    names = dict.fromkeys(stem for stem in map(_stem, finding.numbers) if stem not in shown)
    return ", ".join(f"{words(name)} {_with_interval(finding, name)}" for name in names)


def words(name: str) -> str:
    """A name as words."""
    return name.replace("_", " ")


def printable(text: str) -> str:
    """Text without what neither a terminal nor a page can show, such as control characters."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def counts(results: Sequence[Result]) -> str:
    """How many claims came out how."""
    verdicts = [result.judgement.verdict for result in results]
    noun = "claim" if len(results) == 1 else "claims"
    return f"{len(results)} {noun}: " + ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in SYMBOLS)


def print_verdicts(results: Sequence[Result]) -> None:
    """Print a line per claim, with its main effect, and its summary below."""
    width = max((len(result.id) for result in results), default=0)
    columns = shutil.get_terminal_size((120, 24)).columns
    for result in results:
        verdict, main = result.judgement.verdict, result.main
        line = f"{result.id.ljust(width)}  {SYMBOLS[verdict]} {verdict.ljust(12)}"
        if main is not None:
            line += f"  {main.what}: {effect_and_pairs(main)}"
        print(" ".join(printable(line).splitlines()))
        for part in printable(result.judgement.summary).splitlines():
            print(textwrap.indent(textwrap.fill(part, max(columns - width - 2, 40)), " " * (width + 2)))
    print(counts(results))


def verdict_table(results: Sequence[Result]) -> pa.Table:
    """The table ``verdicts``: a row per finding (of a claim without findings one row, without a finding).

    Beside the columns below there is one for each number that any finding has, by its name; one that would hide a
    column has ``_value`` added.
    """
    text = ("claim", "statement", "claim_verdict", "what", "verdict", "note", "change", "size", "hash", "command")
    kept = (*text, "is_main", "hardware", "versions", "commit")
    names = list(dict.fromkeys((*NUMBERS, *_number_names(results))))
    columns = {name: f"{name}_value" if name in kept else name for name in names}
    schema = pa.schema(
        [(name, pa.string()) for name in text[:5]]
        + [("is_main", pa.bool_())]
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
            own = {"what": finding.what, "verdict": finding.verdict, "note": finding.note}
            rows.append(shared | own | {"is_main": finding is result.main} | numbers)
        if not result.judgement.findings:
            rows.append(shared | {"is_main": False})
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def _effect_name(finding: Finding) -> str | None:
    """The number that is the effect: its ratio, else the first that is no count or p value; never a missing one."""
    others = (name for name in map(_stem, finding.numbers) if name != "pairs" and not name.startswith("p_"))
    name = "ratio" if "ratio" in finding.numbers else next(others, None)
    return None if name is None or math.isnan(finding.numbers.get(name, math.nan)) else name


def _with_interval(finding: Finding, name: str) -> str:
    value = finding.numbers.get(name)
    text = p_value(value) if name.startswith("p_") else number(value)
    text = _BOUNDS.get(finding.numbers.get(f"{name}_bound", 0.0), "") + text
    low, high = interval(finding, name)
    if math.isnan(low) and math.isnan(high):
        return text
    ends = f"[{_end(low)}, {_end(high)}]"
    return f"{text} {ends}" if name in finding.numbers else ends


def _stem(name: str) -> str:
    """The number that an interval's end, or a bound's side, is of; any other name itself."""
    return name.removesuffix("_low").removesuffix("_high").removesuffix("_bound")


def _is_corrected_p(name: str) -> bool:
    return name.startswith("p_") and name.endswith("corrected")


def _number_names(results: Sequence[Result]) -> Iterable[str]:
    return (name for result in results for finding in result.judgement.findings for name in finding.numbers)


def _end(value: float) -> str:
    return "∞" if value == math.inf else number(value)
