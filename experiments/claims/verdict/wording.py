"""Names as words: what findings say of a measure, and what a report says of a rule."""

from collections.abc import Mapping
from typing import Any, Final

from skip_conditioning.experiments.claims.verdict.claim import Contrast
from skip_conditioning.experiments.records.speed import AT_STEPS

#: What a finding calls each measure of ``measures.MEASURES``.
MEASURES: Final[Mapping[str, str]] = {
    **{f"loss_at_step_{step}": f"training loss at step {step}" for step in AT_STEPS},
    "final_loss": "training loss at the end",
    "mean_log_loss": "mean log loss over the run",
    "steps_to_threshold": "steps to the threshold",
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
    "scaled_isometry_distance": "distance from a scaled isometry",
}
_SIDES: Final = {"smaller": "below", "larger": "above"}
#: What a finding that is shown and decides nothing begins with.
ASIDE: Final = "decides nothing: "


def measure_words(name: str) -> str:
    """A measure's name as words."""
    return MEASURES.get(name, name.replace("_", " "))


def comparison(contrast: Contrast) -> str:
    """What a contrast predicts, such as ``condition number: modified below residual``."""
    return f"{measure_words(contrast.measure)}: {contrast.arm} {_SIDES[contrast.predicted]} {contrast.other}"


def rule_in_words(registered: Mapping[str, Any]) -> list[str]:
    """The sentences that say how a verdict follows, from the entries ``rule`` and ``combined`` where they are there."""
    rule = registered.get("rule")
    sentences = []
    if isinstance(rule, Mapping) and {"level", "equivalent", "fewest_seeds"} <= set(rule):
        sentences.append(
            f"The chance that any of the comparisons comes out wrongly is held to {100 * rule['level']:.3g} % "
            f"(Holm's correction); ratios from {1 / rule['equivalent']:.3g} to {rule['equivalent']:.3g} count as no "
            f"effect, and fewer than {rule['fewest_seeds']} pairs decide nothing."
        )
    elif isinstance(rule, Mapping):
        texts = [f"{name}: {text}" for name, text in rule.items() if isinstance(text, str)]
        sentences.append(_sentence("; ".join(texts)))
    elif isinstance(rule, str):
        sentences.append(_sentence(rule))
    if isinstance(registered.get("combined"), str):
        sentences.append(_sentence(f"The claim as a whole: {registered['combined']}"))
    return [sentence for sentence in sentences if sentence]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""
