"""Claim: conditioning, not the skip as such, drives speed (docs/paper.md §4).

Arms change the conditioning without a skip, have a skip without better conditioning, other skips, or doses of the skip.
Whether the conditioning that a run begins with, the skip, or a rival predicts the speed of arms left out decides.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.mechanism.design import Design, Kind
from skip_conditioning.experiments.claims.mechanism.judgement import judge_experiment
from skip_conditioning.experiments.claims.mechanism.wording import mechanism_answer
from skip_conditioning.experiments.claims.paper.paired_claims import SEED
from skip_conditioning.experiments.claims.statistics.looks import level_at
from skip_conditioning.experiments.claims.statistics.median_intervals import fewest_values
from skip_conditioning.experiments.claims.verdict.claim import (
    LOOKS,
    ClaimInputs,
    DecisionRule,
    Plan,
    RateSweep,
    Size,
)
from skip_conditioning.experiments.claims.verdict.outcome import Finding, Judgement, combine
from skip_conditioning.experiments.claims.verdict.paired_claim import change, check_tables, untestable
from skip_conditioning.experiments.claims.verdict.rate_sweep import root_two_grid
from skip_conditioning.experiments.config.presets import preset

_MLP: Final = Design(
    "chain",
    "residual",
    {
        "chain-orthogonal": Kind.NO_SKIP,
        "chain-dirac": Kind.NO_SKIP,
        "chain-looks-linear": Kind.NO_SKIP,
        "rescaled": Kind.NO_CONDITIONING,
        "rank-deficient": Kind.NO_CONDITIONING,
        "orthogonal": Kind.OTHER_SKIP,
        "gain-0.25": Kind.GAIN,
        "gain-0.5": Kind.GAIN,
        "gain-2": Kind.GAIN,
        "residual-orthogonal": Kind.BOTH,
        "residual-dirac": Kind.BOTH,
        "residual-looks-linear": Kind.BOTH,
    },
    skips=(
        *("residual", "rescaled", "rank-deficient", "orthogonal", "gain-0.25", "gain-0.5", "gain-2"),
        *("residual-orthogonal", "residual-dirac", "residual-looks-linear"),
    ),
    doses={"chain": 0.0, "gain-0.25": 0.25, "gain-0.5": 0.5, "residual": 1.0, "gain-2": 2.0},
    factorial=(
        ("chain", "residual"),
        ("chain-orthogonal", "residual-orthogonal"),
        ("chain-dirac", "residual-dirac"),
        ("chain-looks-linear", "residual-looks-linear"),
    ),
)
_FEW: Final = (
    *("chain-orthogonal", "chain-looks-linear", "rank-deficient", "gain-0.5", "residual-looks-linear"),
    "residual-orthogonal",
)
_DEMO: Final = replace(
    _MLP,
    interventions={arm: _MLP.interventions[arm] for arm in _FEW},
    skips=tuple(arm for arm in _MLP.skips if arm in ("residual", *_FEW)),
    doses={"chain": 0.0, "gain-0.5": 0.5, "residual": 1.0},
    factorial=(_MLP.factorial[0], _MLP.factorial[1], _MLP.factorial[3]),
)
_PAPER: Final = Design(
    "chain",
    "residual",
    {
        "chain-orthogonal": Kind.NO_SKIP,
        "chain-dirac": Kind.NO_SKIP,
        "rank-deficient": Kind.NO_CONDITIONING,
        "orthogonal": Kind.OTHER_SKIP,
        "modified": Kind.OTHER_SKIP,
        "isometry": Kind.OTHER_SKIP,
        "orthogonal-conv": Kind.OTHER_SKIP,
    },
    skips=("residual", "rank-deficient", "orthogonal", "modified", "isometry", "orthogonal-conv"),
)


@dataclass(frozen=True)
class MechanismExperiment:
    """One experiment of the claim.

    Attributes:
        plan: What is trained; its sweep chooses the learning rates.
        design: What is compared.
    """

    plan: Plan
    design: Design

    @property
    def sweep(self) -> RateSweep:
        """How learning rates are chosen."""
        if self.plan.sweep is None:
            raise InputError("an experiment on the mechanism needs a sweep of learning rates; give its plan one")
        return self.plan.sweep

    def registered(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {"plan": self.plan.registered(), "design": asdict(self.design)}


def _experiment(
    design: Design, rates: tuple[float, ...], pilots: int, name: str, **options: Any
) -> MechanismExperiment:
    config = preset(name, arms=design.arms, diagnostics=False, **options)
    return MechanismExperiment(Plan(config, RateSweep(design.base, rates, pilots), initial_states="everything"), design)


_EXPERIMENTS: Final[dict[Size, dict[str, MechanismExperiment]]] = {
    "demo": {
        "residual-mlp": _experiment(
            _DEMO, root_two_grid(0.1, 6.4), 2, "interventions", trials=8, steps=15, subset=32,
            model_options=("depth=6", "width=16", "normaliser=batch"),
        )
    },
    "mnist": {
        "residual-mlp": _experiment(
            _MLP, root_two_grid(0.04, 14.5), 3, "interventions", dataset="mnist", trials=30, steps=60, subset=64,
            seed=SEED,
        ),
        "paper-network": _experiment(
            _PAPER, root_two_grid(0.02, 5.2), 3, "paper-network-interventions", trials=20, seed=SEED,
        ),
    },
}  # fmt: skip


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
        "a monotone function of the effective rank that an arm begins with predicts the speed of arms that it was not "
        "fitted to better than whether they have a skip, and than gradient norm, sharpness and largest stable rate; "
        "knowing of the skip besides adds nothing"
    )
    controls: tuple[str, ...] = (
        "images and their order equal for the arms of a trial, and so is initialisation unless the arm changes it",
        "conditioning is measured at initialisation on the whole training batch, so that it comes before the speed",
        "learning rate: all arms at one, and each at its own best, which pilot runs with other seeds choose from a "
        "grid of ratio √2",
        "rivals: the skip itself, gradient norm, sharpness, largest stable rate, each by itself",
        "diverged runs count as the slowest of their trial",
        "not controlled: an initialisation changes more than the singular values; matched-conditioning changes less",
    )
    by_size: Mapping[Size, Mapping[str, MechanismExperiment]] = field(default_factory=lambda: _EXPERIMENTS)
    rule: DecisionRule = field(default_factory=DecisionRule)
    look: int = 1
    draws: bool = True

    def plans(self, size: Size) -> dict[str, Plan]:
        """The experiments to train for it; empty if the claim cannot be tested at this size."""
        return {name: experiment.plan for name, experiment in self.by_size.get(size, {}).items()}

    def registered(self, size: Size) -> dict[str, Any]:
        """Plans, designs and the rule."""
        return {
            "experiments": {name: experiment.registered() for name, experiment in self.by_size.get(size, {}).items()},
            "rule": asdict(self.rule),
            "premise": "the skip is better conditioned than the base and takes fewer steps, by the paired rule at the "
            "experiments' share of the level; otherwise the experiment is vacuous at this rate",
            "models": "M1 monotone in the registered sense of conditioning, M2 the skip, M3 monotone in each rival, M4 "
            "= M1 + M2; squared errors on arms left out with all their trials; supported where M1 beats the mean, M2 "
            "and every M3 by more than the 97.5 % quantile of Student's t in standard errors over arms, and M4 does "
            "not beat M1; reversed where M2 or any M3 beats M1; undecided otherwise",
            "combined": "each experiment at both rates is a part; reversed where any part is, supported where all are, "
            "undecided otherwise, vacuous or not tested where all are",
            "looks": LOOKS,
        }

    def at_look(self, look: int) -> "SpectrumExplainsSpeed":
        """The same claim at a later look."""
        return replace(self, look=look)

    def fewest_trials(self, name: str, size: Size, rates: int) -> int:
        """The fewest trials with which the premise of an experiment could be seen.

        Args:
            name: Of the plan.
            size: Of the experiments.
            rates: Number of learning rates in it.
        """
        return fewest_values(1 - self._level(size) / 2)

    def judge(self, inputs: ClaimInputs, size: Size) -> Judgement:
        """The verdict from the tables of the plans.

        Raises:
            InputError: Tables, runs or initial states are missing.
        """
        experiments = self.by_size.get(size, {})
        if not experiments:
            return untestable(size, self.by_size)
        check_tables(self, inputs, size)
        rule = replace(self.rule, level=self._level(size))
        findings: list[Finding] = []
        figures: list[Any] = []
        for name, experiment in experiments.items():
            own, drawn = judge_experiment(inputs, name, experiment.design, experiment.sweep, rule, draws=self.draws)
            findings += own
            figures += drawn
        findings.sort(key=lambda finding: not finding.decides)
        deciding = [finding for finding in findings if finding.decides]
        verdict = combine([finding.verdict for finding in deciding])
        return Judgement(
            verdict, tuple(findings), mechanism_answer(deciding), change(verdict, deciding, self.look), tuple(figures)
        )

    def _level(self, size: Size) -> float:
        """The error rate of each experiment."""
        return level_at(self.rule.level, self.look) / len(self.by_size[size])


SPECTRUM_EXPLAINS_SPEED = SpectrumExplainsSpeed()
