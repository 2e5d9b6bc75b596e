"""Numbers, effects and names as texts, the same in the report and on the command line."""

import math
from collections.abc import Sequence

from skip_conditioning.experiments.claims.verdict.claim import Finding, Verdict

#: A sign beside each word, so that verdicts can be told apart without colour.
SYMBOLS: dict[Verdict, str] = {"supported": "✓", "contradicted": "✗", "inconclusive": "?", "vacuous": "∅"}
MEANINGS: dict[Verdict, str] = {
    "supported": "the registered rule finds what was predicted",
    "contradicted": "the rule finds otherwise: the opposite, or no effect large enough to count",
    "inconclusive": "these runs do not suffice to decide",
    "vacuous": "there was nothing to compare, so nothing follows",
}
MISSING = "–"
_BOUNDS = {1.0: "≥ ", -1.0: "≤ "}


def number(value: float | None) -> str:
    """Three significant digits; a missing number as a dash, an infinite one as a sign."""
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
    """Two significant digits, or ``< 0.001``."""
    if value is None or not math.isfinite(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def interval(finding: Finding, name: str) -> tuple[float, float]:
    """The ends of a number's interval, ``…_low`` and ``…_high``; NaN without one."""
    low, high = (finding.numbers.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
    return float(low), float(high)


def effect(finding: Finding) -> str:
    """The ratio with its interval, or the first other number with its name; a dash without either.

    A number with a ``…_bound`` is shown as that bound, such as ``≥ 1.80×10¹¹``.
    """
    name = _effect_name(finding)
    if name is None:
        return MISSING
    text = _with_interval(finding, name)
    return text if name == "ratio" else f"{words(name)} {text}"


def corrected_p(finding: Finding) -> str:
    """The p value corrected for the number of comparisons: the number named ``p_…corrected``."""
    return p_value(next((finding.numbers[name] for name in finding.numbers if _is_corrected_p(name)), None))


def equivalence_p(finding: Finding) -> str:
    """The p value of an effect beyond the equivalence margin."""
    return p_value(finding.numbers.get("p_not_equivalent"))


def pairs(finding: Finding | None) -> str:
    """How many pairs a finding rests on."""
    return number(finding.numbers.get("pairs")) if finding else MISSING


def effect_and_pairs(finding: Finding) -> str:
    """Effect and number of pairs, such as ``0.620 [0.510, 0.740], 30 pairs``."""
    return effect(finding) + (f", {pairs(finding)} pairs" if pairs(finding) != MISSING else "")


def other_numbers(finding: Finding) -> str:
    """The numbers that have no column of their own in the report, with their names; intervals in brackets."""
    name = _effect_name(finding) or "ratio"
    shown = {name, "pairs", "p_not_equivalent", *filter(_is_corrected_p, finding.numbers)}
    names = dict.fromkeys(stem for stem in map(_stem, finding.numbers) if stem not in shown)
    return ", ".join(f"{words(name)} {_with_interval(finding, name)}" for name in names)


def some(names: Sequence[str], most: int = 8, separator: str = ", ") -> str:
    """The first names, and the number of those left out."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def words(name: str) -> str:
    """A name with spaces for underscores."""
    return name.replace("_", " ")


def printable(text: str) -> str:
    """Text with spaces for characters that cannot be shown, such as control characters."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def _effect_name(finding: Finding) -> str | None:
    """Name of the number that is the effect: the ratio, or else the first that is no p value; None if it is missing."""
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
    """A number's name without the suffix of an interval's end or of a bound."""
    return name.removesuffix("_low").removesuffix("_high").removesuffix("_bound")


def _is_corrected_p(name: str) -> bool:
    return name.startswith("p_") and name.endswith("corrected")


def _end(value: float) -> str:
    return "∞" if value == math.inf else number(value)
