"""Words of verdicts, comparisons, effects and numbers, made from data in this one place."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from skip_conditioning.experiments.claims.verdict.outcome import Comparison, Direction, Finding, Judgement, Verdict

#: A sign beside each word, so that verdicts can be told apart without colour.
SYMBOLS: Final[Mapping[Verdict, str]] = {
    Verdict.SUPPORTED: "✓",
    Verdict.SUPPORTED_SMALL: "✓",
    Verdict.NO_EFFECT: "=",
    Verdict.REVERSED: "✗",
    Verdict.UNDECIDED: "?",
    Verdict.VACUOUS: "∅",
    Verdict.NOT_TESTED: "–",
}
MEANINGS: Final[Mapping[Verdict, str]] = {
    Verdict.SUPPORTED: "what was predicted is seen",
    Verdict.SUPPORTED_SMALL: "it is seen, but surely smaller than the margin",
    Verdict.NO_EFFECT: "there is surely no effect as large as the margin",
    Verdict.REVERSED: "surely the opposite of what was predicted",
    Verdict.UNDECIDED: "these runs do not suffice to decide",
    Verdict.VACUOUS: "there was nothing to compare, so nothing follows",
    Verdict.NOT_TESTED: "nothing was run for it at this size",
}
#: What texts call each measure.
NAMES: Final[Mapping[str, str]] = {
    "steps": "steps to the thresholds",
    "mean_log_loss": "mean log loss over the run",
    "final_loss": "training loss at the end",
    "test_error": "test error at the end",
    "gradient_norm": "gradient norm at the first step",
    "sigma_max": "largest singular value",
    "sigma_min": "smallest singular value",
    "sigma_mean": "mean singular value",
    "sigma_gmean": "geometric mean of the singular values",
    "sigma_median": "median singular value",
    "sigma_rms": "root mean square of the singular values",
    "condition_number": "condition number",
    "rank": "numerical rank",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "isometry_cosine": "nearness to isometry",
    "kernel_effective_rank": "effective rank of the tangent kernel",
    "kernel_condition_number": "condition number of the tangent kernel",
    "gauss_newton_condition_number": "condition number of the Gauss–Newton matrix",
}
MISSING: Final = "–"
#: Fewer pairs have no interval in the report.
FEWEST_SHOWN: Final = 5
_SIDES: Final = {Direction.SMALLER: "below", Direction.LARGER: "above", Direction.EQUAL: "as"}
_BOUNDS: Final = {1.0: "≥ ", -1.0: "≤ "}
_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def measure_name(measure: str) -> str:
    """What texts call a measure."""
    step = measure.removeprefix("loss_at_step_")
    return NAMES.get(measure, f"training loss at step {step}" if step != measure else words(measure))


def in_words(comparison: Comparison, lr: float | None = None, experiment: str = "") -> str:
    """What a comparison predicts, such as ``condition number: modified below residual at learning rate 0.1``.

    Args:
        comparison: The comparison.
        lr: The learning rate, to be told from others.
        experiment: Its name, to be told from others.
    """
    place = " of ".join(part for part in (comparison.map, comparison.layer) if part)
    where = f" of the {place}" if place else ""
    rate = "" if lr is None else f" at learning rate {lr:g}"
    text = (
        f"{measure_name(comparison.measure)}{where}: {comparison.arm} {_SIDES[comparison.predicted]} {comparison.other}"
    )
    return f"{text}{rate}{f', {experiment}' if experiment else ''}"


def sentence(finding: Finding) -> str:
    """What was seen, such as ``residual takes 41 % fewer steps than chain (ratio 0.53 to 0.7), in 30 of 30 pairs``."""
    comparison, ratio = finding.comparison, finding.numbers.get("ratio", math.nan)
    if comparison is None or math.isnan(ratio):
        return f"{finding.what}: {finding.reason or finding.verdict}"
    size = _change(ratio)
    low, high = interval(finding, "ratio")
    ends = "" if math.isinf(low) or math.isinf(high) or math.isnan(low) else f" (ratio {number(low)} to {number(high)})"
    bound = finding.numbers.get("ratio_bound")
    least = "at least " if bound is not None and (bound > 0) == (ratio > 1) else "at most " if bound is not None else ""
    if comparison.measure == "steps":
        verb = f"takes {least}{size} {'fewer' if ratio < 1 else 'more'} steps than {comparison.other}"
    else:
        verb = (
            f"has a {measure_name(comparison.measure)} {least}{size} {'smaller' if ratio < 1 else 'larger'} than "
            f"{comparison.other}"
        )
    same_side = finding.numbers.get("smaller" if ratio < 1 else "larger", math.nan)
    counted = f", in {number(same_side)} of {pairs(finding)} pairs"
    where = "" if finding.lr is None else f" at learning rate {finding.lr:g}"
    return f"{comparison.arm} {verb}{ends}{where}{counted}"


def _change(ratio: float) -> str:
    """The size of a ratio as a percentage, or as a factor from 2 on."""
    if ratio >= 2 or ratio <= 0.1:
        return f"{number(max(ratio, 1 / ratio) if ratio else math.inf)} times"
    return f"{100 * abs(ratio - 1):.2g} %"


def parts_in_words(judgement: Judgement) -> str:
    """The verdict on a claim and on how many of its parts, such as ``supported (8 of 8 parts)``."""
    parts: Counter[Verdict] = judgement.parts
    if parts.total() <= 1:
        return judgement.verdict.value
    if not parts[judgement.verdict]:
        return f"{judgement.verdict.value} ({parts.total()} parts)"
    others = ", ".join(f"{count} {verdict.value}" for verdict, count in parts.items() if verdict != judgement.verdict)
    own = f"{parts[judgement.verdict]} of {parts.total()} parts"
    return f"{judgement.verdict.value} ({own}{'; ' + others if others else ''})"


def number(value: float | None) -> str:
    """Three significant digits; a missing number as a dash, an infinite one as a sign."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.0f}" if abs(value) >= 100 or value == round(value) else f"{value:#.3g}"
        return text.replace("-", "−")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", "−")


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


def level(finding: Finding) -> str:
    """The level of the finding's interval, such as ``99.4 %``."""
    value = finding.numbers.get("level")
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.3g} %"


def pairs(finding: Finding | None) -> str:
    """How many pairs a finding rests on."""
    return number(finding.numbers.get("pairs")) if finding else MISSING


def effect_and_pairs(finding: Finding) -> str:
    """Effect and number of pairs, such as ``0.620 [0.510, 0.740], 30 pairs``."""
    return effect(finding) + (f", {pairs(finding)} pairs" if pairs(finding) != MISSING else "")


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
    if (math.isnan(low) and math.isnan(high)) or finding.numbers.get("pairs", math.inf) < FEWEST_SHOWN:
        return text
    ends = f"[{number(low)}, {number(high)}]"
    return f"{text} {ends}" if name in finding.numbers else ends


def _stem(name: str) -> str:
    """A number's name without the suffix of an interval's end or of a bound."""
    return name.removesuffix("_low").removesuffix("_high").removesuffix("_bound")
