"""What a comparison of models says, in words made from its numbers."""

from collections.abc import Sequence

from skip_conditioning.experiments.claims.statistics.model_comparison import M2, M4
from skip_conditioning.experiments.claims.verdict.outcome import Finding, Verdict
from skip_conditioning.experiments.claims.verdict.wording import words


def mechanism_answer(findings: Sequence[Finding]) -> str:
    """A sentence for each part of the claim: how well conditioning, the skip and the best rival predict speed."""
    return "\n".join(_sentence(finding) for finding in findings)


def _sentence(finding: Finding) -> str:
    if "skill" not in finding.numbers:
        return f"{finding.what}: {finding.reason or finding.verdict}."
    skills = {
        name.removeprefix("skill_of_"): value for name, value in finding.numbers.items() if name.startswith("skill_of_")
    }
    rivals = {name: value for name, value in skills.items() if name not in ("the mean", M2, M4)}
    best = max(rivals, key=lambda name: rivals[name], default="")
    rival = f", the {words(best)} {rivals[best]:.2f}" if best else ""
    text = (
        f"{finding.what}: of the differences between arms left out conditioning explains "
        f"{finding.numbers['skill']:.2f}, the skip as such {skills[M2]:.2f}{rival}, conditioning and the skip "
        f"{skills[M4]:.2f} (R²)"
    )
    return f"{text}: {finding.reason}." if finding.reason and finding.verdict is not Verdict.SUPPORTED else f"{text}."
