"""What a comparison of models says, in words made from its numbers."""

from collections.abc import Sequence

from skip_conditioning.experiments.claims.statistics.model_comparison import M2, M4
from skip_conditioning.experiments.claims.verdict.outcome import Finding, Verdict
from skip_conditioning.experiments.claims.verdict.wording import words

_EXPLANATION = (
    "How much of the differences in speed between arms can be predicted for arms that were left out of the fit:"
)


def mechanism_answer(findings: Sequence[Finding]) -> str:
    """What conditioning, the skip and the best rival predict of the speed of arms, a line for each part."""
    lines = [_sentence(finding) for finding in findings]
    return "\n".join([_EXPLANATION, *lines] if any("skill" in finding.numbers for finding in findings) else lines)


def _sentence(finding: Finding) -> str:
    if "skill" not in finding.numbers:
        return f"{finding.what}: {finding.reason or finding.verdict}."
    skills = {
        name.removeprefix("skill_of_"): value for name, value in finding.numbers.items() if name.startswith("skill_of_")
    }
    rivals = {name: value for name, value in skills.items() if name not in ("the mean", M2, M4)}
    best = max(rivals, key=lambda name: rivals[name], default="")
    rival = f", from the best rival, the {words(best)}, {_share(rivals[best])}" if best else ""
    text = (
        f"{finding.what}: from conditioning {_share(finding.numbers['skill'])}, from whether they have a skip "
        f"{_share(skills[M2])}{rival}, from conditioning and the skip {_share(skills[M4])}"
    )
    return f"{text}: {finding.reason}." if finding.reason and finding.verdict is not Verdict.SUPPORTED else f"{text}."


def _share(skill: float) -> str:
    """A share of the squared differences; nothing where the mean of the other arms predicts better."""
    return f"{100 * skill:.0f} %" if skill > 0 else "nothing"
