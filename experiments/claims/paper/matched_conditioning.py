"""Claim: arms that are conditioned alike are equally fast, with a skip or without (docs/paper.md §4).

Three families of arms change the conditioning of one network, the first by a skip of growing gain, the others without a
skip by weights between two initialisations. They are tuned to equal effective ranks at six levels. If conditioning
drives speed, all arms lie on one curve of speed against conditioning; if the skip does, its family lies on its own.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from skip_conditioning.experiments.claims.mechanism.matched import Matched, judge_matched
from skip_conditioning.experiments.claims.mechanism.matching import matched_arms
from skip_conditioning.experiments.claims.paper.paired_claims import SEED
from skip_conditioning.experiments.claims.statistics.looks import level_at
from skip_conditioning.experiments.claims.statistics.median_intervals import fewest_values
from skip_conditioning.experiments.claims.verdict.claim import LOOKS, ClaimInputs, DecisionRule, Plan, RateSweep, Size
from skip_conditioning.experiments.claims.verdict.outcome import Judgement, combine
from skip_conditioning.experiments.claims.verdict.paired_claim import answer, change, check_tables, untestable
from skip_conditioning.experiments.claims.verdict.rate_sweep import root_two_grid
from skip_conditioning.experiments.config.presets import preset
from skip_conditioning.experiments.config.train_config import TrainConfig

#: Families by the arms' names without the dose, and the doses between which conditioning improves.
FAMILIES: Final = {
    "gain": (0.6, 4.0),
    "chain-to-looks-linear": (0.35, 1.0),
    "chain-orthogonal-to-looks-linear": (0.55, 1.0),
}
#: Effective ranks of the Jacobian behind the stem, 640 × 2048, each 15 % above the one before.
TARGETS: Final = (245.0, 282.0, 324.0, 373.0, 429.0, 493.0)
#: Number of tuning trials.
TUNED_ON: Final = 8


def tuning(**options: Any) -> TrainConfig:
    """The experiment on whose networks doses are sought."""
    return preset("interventions", dataset="mnist", subset=64, seed=SEED, **options)


#: The arm of each family at each target, and the factor of its logits at which ‖J‖_F is that of the first family's:
#: from ``python -m skip_conditioning.experiments.claims.paper.matched_conditioning``.
_DOSES: Final[dict[tuple[str, float], tuple[str, float]]] = {
    ("gain", 245): ("gain-0.8088", 1),
    ("gain", 282): ("gain-0.8847", 1),
    ("gain", 324): ("gain-0.9524", 1),
    ("gain", 373): ("gain-1.0351", 1),
    ("gain", 429): ("gain-1.1695", 1),
    ("gain", 493): ("gain-1.7612", 1),
    ("chain-to-looks-linear", 245): ("chain-to-looks-linear-0.4732", 0.7733),
    ("chain-to-looks-linear", 282): ("chain-to-looks-linear-0.5262", 0.6637),
    ("chain-to-looks-linear", 324): ("chain-to-looks-linear-0.579", 0.6097),
    ("chain-to-looks-linear", 373): ("chain-to-looks-linear-0.6401", 0.5523),
    ("chain-to-looks-linear", 429): ("chain-to-looks-linear-0.7093", 0.533),
    ("chain-to-looks-linear", 493): ("chain-to-looks-linear-0.8059", 0.5175),
    ("chain-orthogonal-to-looks-linear", 245): ("chain-orthogonal-to-looks-linear-0.6086", 0.7613),
    ("chain-orthogonal-to-looks-linear", 282): ("chain-orthogonal-to-looks-linear-0.6561", 0.6867),
    ("chain-orthogonal-to-looks-linear", 324): ("chain-orthogonal-to-looks-linear-0.7047", 0.6148),
    ("chain-orthogonal-to-looks-linear", 373): ("chain-orthogonal-to-looks-linear-0.7531", 0.5497),
    ("chain-orthogonal-to-looks-linear", 429): ("chain-orthogonal-to-looks-linear-0.8152", 0.532),
    ("chain-orthogonal-to-looks-linear", 493): ("chain-orthogonal-to-looks-linear-0.8809", 0.5206),
}
_PLAN_NAME: Final = "matched"


def _matched() -> Matched:
    families = {family: tuple(_DOSES[family, target][0] for target in TARGETS) for family in FAMILIES}
    copies = {
        family: tuple(f"{arm}@{factor:g}" for arm, factor in (_DOSES[family, target] for target in TARGETS))
        for family in list(FAMILIES)[1:]
    }
    return Matched(families, copies)


def _plan(matched: Matched) -> Plan:
    config = tuning(arms=matched.arms, trials=20, steps=60, diagnostics=False)
    base = matched.families["gain"][0]
    return Plan(config, RateSweep(base, root_two_grid(0.1, 9.1), 2), initial_states="without kernel")


@dataclass
class MatchedConditioning:
    """Arms conditioned alike are equally fast."""

    id: str = "matched-conditioning"
    statement: str = (
        "Arms of one network that are conditioned alike are equally fast, whether a skip or an initialisation "
        "conditions them."
    )
    source: str = "what MacDonald et al. 2023, section 5, implies; docs/paper.md §4"
    predicted: str = (
        "the steps of arms without a skip are within 10 % of those of arms with one, at six levels of equal effective "
        "rank; if the skip acts as such, its family is faster at every level"
    )
    controls: tuple[str, ...] = (
        "conditioning equal within 2 % at every level, as measured in the trials that are compared",
        "images and their order equal for the arms of a trial",
        "learning rate: all arms at one, and each at its own best, from a grid of ratio √2",
        "copies of the arms with logits scaled to equal ‖J‖_F",
        "not controlled: arms of equal effective rank differ in the shape of the spectrum and in activations",
    )
    matched: Mapping[Size, Matched] = field(default_factory=lambda: {"mnist": _matched()})
    rule: DecisionRule = field(default_factory=DecisionRule)
    look: int = 1
    draws: bool = True

    def plans(self, size: Size) -> dict[str, Plan]:
        """The experiment to train for it; empty if the claim cannot be tested at this size."""
        return {_PLAN_NAME: _plan(self.matched[size])} if size in self.matched else {}

    def registered(self, size: Size) -> dict[str, Any]:
        """Plan, families and the rule."""
        return {
            "plans": {name: plan.registered() for name, plan in self.plans(size).items()},
            "families": asdict(self.matched[size]) if size in self.matched else {},
            "rule": asdict(self.rule),
            "comparisons": "of each trial the log-ratio of steps, mean over levels, of each family without a skip to "
            "the family of skips; predicted equal, at one rate and at each arm's own best",
            "combined": "reversed where any part is, supported where all are, undecided otherwise",
            "looks": LOOKS,
        }

    def at_look(self, look: int) -> "MatchedConditioning":
        """The same claim at a later look."""
        return replace(self, look=look)

    def fewest_trials(self, name: str, size: Size, rates: int) -> int:
        """The fewest trials with which every comparison has an interval.

        Args:
            name: Of the plan.
            size: Of the experiment.
            rates: Number of learning rates in it.
        """
        parts = 2 * (len(self.matched[size].families) - 1)
        return fewest_values(1 - level_at(self.rule.level, self.look) / parts)

    def judge(self, inputs: ClaimInputs, size: Size) -> Judgement:
        """The verdict from the tables of the plan.

        Raises:
            InputError: Tables, runs or initial states are missing.
        """
        if size not in self.matched:
            return untestable(size, self.matched)
        check_tables(self, inputs, size)
        rule = replace(self.rule, level=level_at(self.rule.level, self.look))
        sweep = self.plans(size)[_PLAN_NAME].sweep
        assert sweep is not None
        findings, figures = judge_matched(inputs, _PLAN_NAME, self.matched[size], sweep, rule, draws=self.draws)
        deciding = [finding for finding in findings if finding.decides]
        verdict = combine([finding.verdict for finding in deciding])
        return Judgement(verdict, tuple(findings), answer(deciding), change(verdict, deciding, self.look), figures)


MATCHED_CONDITIONING = MatchedConditioning()


def print_doses() -> None:
    """Seek the doses anew, and print them as they stand above."""
    arms = matched_arms(tuning(), FAMILIES, TARGETS, TUNED_ON)
    references = {arm.target: arm.norm for arm in arms if arm.family == next(iter(FAMILIES))}
    for arm in arms:
        factor = references[arm.target] / arm.norm
        print(f'("{arm.family}", {arm.target:g}): ("{arm.arm}", {factor:.4g}),  # {arm.achieved:.1f}')


if __name__ == "__main__":
    print_doses()
