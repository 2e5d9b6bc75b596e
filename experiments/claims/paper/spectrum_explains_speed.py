"""Claim: conditioning, not the skip as such, drives speed (docs/paper.md §4).

Arms change the conditioning without a skip, have a skip without better conditioning, other skips, or doses of the skip.
A few measures of conditioning decide; all others are ranked by how well they predict speed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from skip_conditioning.experiments.claims.mechanism.design import Design, Kind
from skip_conditioning.experiments.claims.mechanism.judgement import ExperimentJudgement, judge_experiment
from skip_conditioning.experiments.claims.statistics.paired_tests import fewest_pairs, level_at
from skip_conditioning.experiments.claims.verdict.claim import (
    LOOKS,
    ClaimInputs,
    DecisionRule,
    Finding,
    Judgement,
    Plan,
    Size,
    Verdict,
)
from skip_conditioning.experiments.claims.verdict.decision import combine
from skip_conditioning.experiments.claims.verdict.paired_claim import change, check_tables, untestable
from skip_conditioning.experiments.config.presets import preset
from skip_conditioning.experiments.config.train_config import TrainConfig

_GAINS: Final = {"gain-0.25": 0.25, "gain-0.5": 0.5, "residual": 1.0, "gain-2": 2.0}
_MLP_INTERVENTIONS: Final[dict[str, Kind]] = {
    "chain-orthogonal": "better conditioning without a skip",
    "chain-dirac": "better conditioning without a skip",
    "chain-looks-linear": "better conditioning without a skip",
    "rescaled": "skip without better conditioning",
    "rank-deficient": "skip without better conditioning",
    "orthogonal": "another skip",
    "gain-0.25": "skip gain",
    "gain-0.5": "skip gain",
    "gain-2": "skip gain",
    "residual-orthogonal": "skip and better conditioning",
    "residual-dirac": "skip and better conditioning",
    "residual-looks-linear": "skip and better conditioning",
}
_FACTORIAL: Final = (
    ("chain", "residual"),
    ("chain-orthogonal", "residual-orthogonal"),
    ("chain-dirac", "residual-dirac"),
    ("chain-looks-linear", "residual-looks-linear"),
)
_MLP = Design("chain", "residual", _MLP_INTERVENTIONS, {"chain": 0.0, **_GAINS}, _FACTORIAL)
_FEW = ("chain-orthogonal", "chain-looks-linear", "rescaled", "rank-deficient")
_CONTROL = replace(
    _MLP, interventions={arm: _MLP_INTERVENTIONS[arm] for arm in _FEW}, doses={}, factorial=()
)  # fmt: skip
_DEMO = replace(
    _MLP,
    interventions={
        arm: _MLP_INTERVENTIONS[arm]
        for arm in ("chain-orthogonal", "chain-looks-linear", "rank-deficient", "gain-0.5", "residual-looks-linear")
    },
    doses={"chain": 0.0, "gain-0.5": 0.5, "residual": 1.0},
    factorial=(_FACTORIAL[0], _FACTORIAL[3]),
    mediators=("effective_rank",),
)
_PAPER = Design(
    "chain",
    "residual",
    {
        "chain-orthogonal": "better conditioning without a skip",
        "chain-dirac": "better conditioning without a skip",
        "rank-deficient": "skip without better conditioning",
        "orthogonal": "another skip",
        "modified": "another skip",
        "isometry": "another skip",
        "orthogonal-conv": "another skip",
    },
    doses={},
)
_CIFAR = Design(
    "original",
    "modified",
    {
        "rank-deficient": "skip without better conditioning",
        "isometry": "another skip",
        "orthogonal-conv": "another skip",
    },
    doses={},
    speed="mean_log_loss",
)


@dataclass(frozen=True)
class MechanismExperiment:
    """One experiment of the claim.

    Attributes:
        plan: What is trained.
        design: What is compared.
        pilots: Number of pilot trials, the first ones, which choose each arm's learning rate and are not compared.
        decides: Whether the verdict rests on it; otherwise it is a control, whose findings are secondary.
    """

    plan: Plan
    design: Design
    pilots: int
    decides: bool = True

    def registered(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {
            "plan": self.plan.registered(),
            "design": asdict(self.design),
            "pilots": self.pilots,
            "decides": self.decides,
        }


def _experiment(
    config: TrainConfig, design: Design, trials: int, pilots: int, *, decides: bool = True
) -> MechanismExperiment:
    return MechanismExperiment(Plan(config.changed(arms=design.arms, trials=trials)), design, pilots, decides)


_SMALL: Final = preset(
    "interventions",
    model_options=("depth=8", "width=32", "normaliser=batch"),
    lr=(0.1, 0.5),
    steps=20,
    measure_until=0,
)
_MNIST: Final = preset("interventions", dataset="mnist")
#: Controls do not decide, have fewer trials and are measured at initialisation only. Their learning rates and the
#: preset's are around the arms' best ones in an exploratory sweep with other seeds (docs/claims.md).
_CONTROLS: Final[dict[str, dict[str, Any]]] = {
    "residual-mlp-fixed-length-steps": {"lr": (0.3, 1.0), "fixed_length_steps": True},
    "residual-mlp-frozen-batch-norm": {"lr": (0.003, 0.01, 0.03), "batch_norm": "frozen"},
    "residual-mlp-no-batch-norm": {"lr": (0.05, 1.0), "model_options": ("depth=16", "width=32")},
}
_EXPERIMENTS: Final[dict[Size, dict[str, MechanismExperiment]]] = {
    "demo": {"residual-mlp": _experiment(_SMALL, _DEMO, 14, 2)},
    "mnist": {
        "residual-mlp": _experiment(_MNIST, _MLP, 33, 3),
        "paper-network": _experiment(preset("paper-network-interventions", dataset="mnist"), _PAPER, 33, 3),
        **{
            name: _experiment(_MNIST.changed(measure_until=0, **options), _CONTROL, 14, 2, decides=False)
            for name, options in _CONTROLS.items()
        },
    },
    "cifar": {"cifar10": _experiment(preset("paper-cifar10"), _CIFAR, 16, 2)},
}


@dataclass
class SpectrumExplainsSpeed:
    """Conditioning, not the skip as such, drives speed."""

    id: str = "spectrum-explains-speed"
    statement: str = (
        "Skip connections speed training because they improve the conditioning of the layers' Jacobians: conditioning, "
        "not the skip as such, drives speed."
    )
    source: str = "MacDonald et al. 2023, sections 1, 5 and 6; docs/paper.md §4"
    predicted: str = (
        "an arm that is better conditioned than another trains faster, with a skip or without; a skip that does not "
        "improve conditioning does not speed training; over doses of the skip, conditioning and speed go together; "
        "most of the skip's effect on speed passes through conditioning"
    )
    controls: tuple[str, ...] = (
        "images and their order equal for the arms of a trial, and so is initialisation unless the arm changes it",
        "learning rate: each arm at its own best, chosen on pilot trials that are not compared; the whole sweep shown",
        "scale invariance under batch norm: training by fixed-length steps, with frozen batch norm, and without any",
        "output scale: a residual arm rescaled towards the chain's ‖J‖_F; partial correlations given learning rate, "
        "‖J‖_F and gradient norm",
        "what a strided 1×1 convolution throws away: isometric, orthogonal and rank-deficient shortcuts in its place",
        "diverged runs count as the slowest",
        "not controlled: an initialisation may act on speed otherwise than through conditioning, which the mediation "
        "assumes that it does not; the sensitivity to this is shown",
    )
    by_size: Mapping[Size, Mapping[str, MechanismExperiment]] = field(default_factory=lambda: _EXPERIMENTS)
    rule: DecisionRule = field(default_factory=DecisionRule)
    look: int = 1

    def plans(self, size: Size) -> dict[str, Plan]:
        """The experiments to train for it; empty if the claim cannot be tested at this size."""
        return {name: experiment.plan for name, experiment in self.by_size.get(size, {}).items()}

    def registered(self, size: Size) -> dict[str, Any]:
        """Plans, designs and the rule."""
        return {
            "experiments": {name: experiment.registered() for name, experiment in self.by_size.get(size, {}).items()},
            "rule": asdict(self.rule),
            "comparisons": "paired sign tests, each arm at its own learning rate, Holm's correction over all of an "
            "experiment: first of conditioning (better, worse, alike to within the design's margin, or unclear), then "
            "of speed: better has to be faster, worse slower, alike within the rule's margin; unclear predicts nothing",
            "dose-response": "sign test of Kendall's τ between conditioning and slowness over the doses of a trial",
            "mediation": "share of the skip's effect that passes through conditioning, over initialisations with and "
            "without the skip: supported where the interval of the share lies above the design's, contradicted where "
            "below, vacuous where the skip has no effect there",
            "level": "split evenly over the experiments that decide, the mediators (measures of conditioning), then "
            "comparisons and, where there are any, dose-response and mediation; half of the comparisons' for "
            "conditioning, half for speed; a control, which does not decide, is judged at the whole level",
            "combined": "an experiment is vacuous where the skip is surely not better conditioned or not faster than "
            "the chain, contradicted where any test is, supported where all that are not vacuous are, inconclusive "
            "otherwise; the verdicts on each mediator combine likewise over the experiments that are not vacuous; the "
            "claim is supported where any mediator is, contradicted where all that are not vacuous are, inconclusive "
            "otherwise",
            "looks": LOOKS,
        }

    def at_look(self, look: int) -> "SpectrumExplainsSpeed":
        """The same claim at a later look."""
        return replace(self, look=look)

    def fewest_trials(self, name: str, size: Size, rates: int) -> int:
        """The fewest trials, pilots among them, with which every comparison of an experiment could be significant.

        Args:
            name: Of the plan.
            size: Of the experiments.
            rates: Number of learning rates in it.
        """
        experiment = self.by_size[size][name]
        if not experiment.decides:
            return experiment.pilots + self.rule.min_pairs
        pairs = fewest_pairs(len(experiment.design.comparisons), self._level(size) / experiment.design.shares / 2)
        return experiment.pilots + max(self.rule.min_pairs, pairs)

    def judge(self, inputs: ClaimInputs, size: Size) -> Judgement:
        """The verdict from the tables of the plans.

        Raises:
            InputError: Tables or runs are missing, or there are too few trials.
        """
        experiments = self.by_size.get(size, {})
        if not experiments:
            return untestable(size, self.by_size)
        check_tables(self, inputs, size)
        deciding = replace(self.rule, level=self._level(size))
        judgements: dict[str, ExperimentJudgement] = {}
        findings: list[Finding] = []
        secondary: list[Finding] = []
        for name, experiment in experiments.items():
            folder = replace(inputs, directory=inputs.directory / name)
            rule = deciding if experiment.decides else self.rule
            judged = judge_experiment(inputs.experiments[name], experiment.design, experiment.pilots, rule, folder)
            judgements[name] = judged
            (findings if experiment.decides else secondary).extend(_named(name, judged.findings))
            secondary.extend(_named(name, judged.secondary))
        count = {name: judged for name, judged in judgements.items() if experiments[name].decides}
        verdict = _combine_mediators(list(count.values()))
        return Judgement(
            verdict,
            (*findings, *(replace(finding, decides=False) for finding in secondary)),
            "\n".join(f"{name}: {judged.summary}" for name, judged in count.items()),
            change(verdict, findings, self.look),
            tuple(path for judgement in judgements.values() for path in judgement.figures),
        )

    def _level(self, size: Size) -> float:
        """The error rate of each experiment that decides."""
        deciding = sum(experiment.decides for experiment in self.by_size[size].values())
        return level_at(self.rule.level, self.look) / deciding


def _combine_mediators(judgements: Sequence[ExperimentJudgement]) -> Verdict:
    """The verdict from those on each mediator in each experiment; see ``registered``."""
    mediators = dict.fromkeys(mediator for judgement in judgements for mediator in judgement.verdicts)
    verdicts = [
        _combine_experiments([judgement.verdicts[name] for judgement in judgements if name in judgement.verdicts])
        for name in mediators
    ]
    verdicts = [verdict for verdict in verdicts if verdict != "vacuous"]
    if not verdicts:
        return "vacuous"
    if "supported" in verdicts:
        return "supported"
    return "contradicted" if all(verdict == "contradicted" for verdict in verdicts) else "inconclusive"


def _combine_experiments(verdicts: Sequence[Verdict]) -> Verdict:
    verdicts = [verdict for verdict in verdicts if verdict != "vacuous"]
    return combine(verdicts) if verdicts else "vacuous"


def _named(experiment: str, findings: Sequence[Finding]) -> list[Finding]:
    return [replace(finding, what=f"{experiment}: {finding.what}") for finding in findings]


SPECTRUM_EXPLAINS_SPEED = SpectrumExplainsSpeed()
