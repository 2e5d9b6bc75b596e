"""The mechanism: conditioning, not the skip as such, drives speed (PAPER.md, section 4).

Arms that change the conditioning without a skip, that skip without better conditioning, other skips and doses of the
skip; the claim's own measure of conditioning decides, and all others are ranked by how well they predict speed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.mechanism.comparisons import Design, Kind
from skip_conditioning.experiments.claims.mechanism.judgement import Judged, judge_experiment
from skip_conditioning.experiments.claims.verdict import repeated_looks as looks
from skip_conditioning.experiments.claims.verdict.claim import Evidence, Finding, Judgement, Plan, Rule, Size, Verdict
from skip_conditioning.experiments.claims.verdict.paired_claim import change
from skip_conditioning.experiments.claims.verdict.pairs import fewest_pairs
from skip_conditioning.experiments.claims.verdict.rules import combine
from skip_conditioning.experiments.claims.verdict.wording import ASIDE

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
    senses=("effective_rank",),
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
class Planned:
    """One experiment of the claim.

    Attributes:
        plan: What is trained.
        design: What is compared.
        pilots: The first so many trials choose each arm's learning rate and take no part in the comparisons.
        decides: Whether the verdict rests on it, or it is a control that is shown beside.
    """

    plan: Plan
    design: Design
    pilots: int
    decides: bool = True


def _planned(preset: str, design: Design, seeds: int, pilots: int, *options: str, decides: bool = True) -> Planned:
    return Planned(Plan(preset, design.arms, seeds, options), design, pilots, decides)


_MNIST = ("--dataset", "mnist")
_SMALL = (
    *("--model-options", "depth=8", "width=32", "normaliser=batch"),
    *("--lr", "0.1", "0.5", "--steps", "20", "--measure-until", "0"),
)
#: Controls decide nothing, have fewer trials and are measured at initialisation alone. Their learning rates and the
#: preset's lie where an exploratory sweep with other seeds had the arms' best (docs/claims.md).
_CONTROLS = {
    "residual-mlp-fixed-length-steps": ("--lr", "0.3", "1", "--fixed-length-steps"),
    "residual-mlp-frozen-batch-norm": ("--lr", "0.003", "0.01", "0.03", "--batch-norm", "frozen"),
    "residual-mlp-no-batch-norm": ("--lr", "0.05", "1", "--model-options", "depth=16", "width=32"),
}
_PLANS: dict[Size, dict[str, Planned]] = {
    "demo": {"residual-mlp": _planned("interventions", _DEMO, 14, 2, *_SMALL)},
    "mnist": {
        "residual-mlp": _planned("interventions", _MLP, 33, 3, *_MNIST),
        "paper-network": _planned("paper-network-interventions", _PAPER, 33, 3, *_MNIST),
        **{
            name: _planned("interventions", _CONTROL, 14, 2, *_MNIST, "--measure-until", "0", *options, decides=False)
            for name, options in _CONTROLS.items()
        },
    },
    "cifar": {"cifar10": _planned("paper-cifar10", _CIFAR, 16, 2)},
}


@dataclass
class SpectrumExplainsSpeed:
    """Conditioning, not the skip as such, drives speed."""

    id: str = "spectrum-explains-speed"
    statement: str = (
        "Skip connections speed training because they improve the conditioning of the layers' Jacobians: conditioning, "
        "not the skip as such, drives speed."
    )
    source: str = "MacDonald et al. 2023, sections 1, 5 and 6; PAPER.md, section 4"
    predicted: str = (
        "an arm that is better conditioned than another trains faster, with a skip or without; a skip that does not "
        "improve conditioning does not speed training; over doses of the skip, conditioning and speed go together; "
        "most of the skip's effect on speed passes through conditioning"
    )
    controls: tuple[str, ...] = (
        "images and their order equal for the arms of a trial, and initialisation where the arm does not change it",
        "learning rate: each arm at its own best, chosen on pilot trials that are not compared; the whole sweep shown",
        "scale invariance under batch norm: training by fixed-length steps, with frozen batch norm, and with none",
        "output scale: a residual arm rescaled towards the chain's ‖J‖_F; partial correlations given learning rate, "
        "‖J‖_F and gradient norm",
        "what a strided 1×1 convolution throws away: isometric, orthogonal and rank-deficient shortcuts in its place",
        "diverged runs count as the slowest",
        "not controlled: an initialisation may act on speed otherwise than through conditioning, which the mediation "
        "takes not to be so; its sensitivity is shown",
    )
    by_size: Mapping[Size, Mapping[str, Planned]] = field(default_factory=lambda: _PLANS)
    rule: Rule = field(default_factory=Rule)
    look: int = 1

    def plans(self, size: Size) -> dict[str, Plan]:
        """What is trained; empty where the size cannot test it."""
        return {name: one.plan for name, one in self.by_size.get(size, {}).items()}

    def registered(self, size: Size) -> dict[str, Any]:
        """Plans, designs and the rule."""
        return {
            "experiments": {name: asdict(one) for name, one in self.by_size.get(size, {}).items()},
            "rule": asdict(self.rule),
            "comparisons": "paired sign tests, each arm at its own learning rate, Holm's correction over all of an "
            "experiment: first of conditioning (better, worse, alike to within the design's bound, or open), then of "
            "speed: better has to be faster, worse slower, alike within the rule's bound; open predicts nothing",
            "dose-response": "sign test of Kendall's τ between conditioning and slowness over the doses of a trial",
            "mediation": "share of the skip's effect that passes through conditioning, over initialisations with and "
            "without the skip: supported where the interval of the share lies above the design's, contradicted where "
            "below, vacuous where the skip has no effect there",
            "level": "split evenly over the experiments that decide, the senses of conditioning, then comparisons and, "
            "where there are any, dose-response and mediation; half of the comparisons' for conditioning, half for "
            "speed; a control, which decides nothing, is judged at the whole level",
            "combined": "an experiment is vacuous where the skip is surely not better conditioned or not faster than "
            "the chain, contradicted where any test is, supported where all that say something are, inconclusive "
            "otherwise; so is each sense of conditioning over the experiments, vacuous ones left aside; the claim is "
            "supported where any sense is, contradicted where all that say something are, inconclusive otherwise",
            "looks": looks.WORDS,
        }

    def at_look(self, look: int) -> "SpectrumExplainsSpeed":
        """The same claim at a later look."""
        return replace(self, look=look)

    def fewest_seeds(self, name: str, size: Size, rates: int) -> int:
        """The fewest trials, pilots among them, with which every comparison of an experiment could come out."""
        planned = self.by_size[size][name]
        if not planned.decides:
            return planned.pilots + self.rule.fewest_seeds
        pairs = fewest_pairs(len(planned.design.comparisons), self._level(size) / planned.design.shares / 2)
        return planned.pilots + max(self.rule.fewest_seeds, pairs)

    def judge(self, evidence: Evidence, size: Size) -> Judgement:
        """The verdict from the tables of the plans.

        Raises:
            InputError: Tables or runs are missing, or there are too few seeds.
        """
        planned = self.by_size.get(size, {})
        if not planned:
            sizes = ", ".join(f"--size {one}" for one in self.by_size)
            return Judgement(
                "inconclusive", (), f"Not testable at size {size}: nothing of it is trained there.", f"One of {sizes}."
            )
        missing = [name for name in planned if name not in evidence.experiments]
        if missing:
            raise InputError(f"{self.id} needs the tables of {', '.join(missing)}; repeat the command to train them")
        deciding = replace(self.rule, level=self._level(size))
        judged: dict[str, Judged] = {}
        for name, one in planned.items():
            where = replace(evidence, directory=evidence.directory / name)
            rule = deciding if one.decides else self.rule
            judged[name] = judge_experiment(evidence.experiments[name], one.design, one.pilots, rule, where)
        verdict = _over_senses([judged[name] for name, one in planned.items() if one.decides])
        findings: list[Finding] = []
        aside: list[Finding] = []
        for name, one in planned.items():
            shown = [_named(name, finding) for finding in judged[name].findings]
            (findings if one.decides else aside).extend(shown)
            aside.extend(_named(name, finding) for finding in judged[name].beside)
        aside = [replace(finding, what=f"{ASIDE}{finding.what}") for finding in aside]
        return Judgement(
            verdict,
            (*findings, *aside),
            "\n".join(f"{name}: {judged[name].summary}" for name, one in planned.items() if one.decides),
            change(verdict, findings, self.look),
            tuple(path for one in judged.values() for path in one.figures),
        )

    def _level(self, size: Size) -> float:
        """The error rate of each experiment that decides."""
        deciding = sum(one.decides for one in self.by_size[size].values())
        return looks.level_at(self.rule.level, self.look) / deciding


def _over_senses(judged: list[Judged]) -> Verdict:
    """The verdict over experiments and senses of conditioning; see ``registered``."""
    senses = dict.fromkeys(sense for one in judged for sense in one.verdicts)
    verdicts = [_over_experiments([one.verdicts[sense] for one in judged if sense in one.verdicts]) for sense in senses]
    telling = [verdict for verdict in verdicts if verdict != "vacuous"]
    if not telling:
        return "vacuous"
    if "supported" in telling:
        return "supported"
    return "contradicted" if all(verdict == "contradicted" for verdict in telling) else "inconclusive"


def _over_experiments(verdicts: list[Verdict]) -> Verdict:
    telling = [verdict for verdict in verdicts if verdict != "vacuous"]
    return combine(telling) if telling else "vacuous"


def _named(experiment: str, finding: Finding) -> Finding:
    return replace(finding, what=f"{experiment}: {finding.what}")


SPECTRUM_EXPLAINS_SPEED = SpectrumExplainsSpeed()
