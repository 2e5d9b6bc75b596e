"""Does conditioning explain speed? The tests of one experiment whose arms intervene on conditioning or on the skip.

What an arm predicts follows from the conditioning that was measured, not from what it was meant to do: better
conditioned than the arm that it is compared with, it has to train faster, whether or not it has a skip; no better
conditioned, no faster; worse, slower. All comparisons are paired (``paired``), each arm at its own best learning rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
import pandas as pd
from scipy import stats

from skip_conditioning.diagnostics.tables import Experiment
from skip_conditioning.experiments.claims.verdict import pairs as paired
from skip_conditioning.experiments.claims.verdict.claim import Contrast, Finding, Rule, Verdict
from skip_conditioning.experiments.claims.verdict.measures import MEASURES
from skip_conditioning.experiments.claims.verdict.pairs import Differences
from skip_conditioning.experiments.claims.verdict.rules import Decision, combine, decide, describe

Kind = Literal[
    "the skip itself",
    "better conditioning without a skip",
    "skip without better conditioning",
    "another skip",
    "skip gain",
    "skip and better conditioning",
]
Change = Literal["better", "worse", "alike", "open"]

#: Senses of "conditioning", as names in ``measures.MEASURES``, and what each does when it improves. None depends on the
#: scale of the Jacobian. κ asks about the worst direction alone; the others are about all of them, and say something
#: also where some are lost for good, as behind batch norm in train mode.
BETTER: Final[Mapping[str, Literal["smaller", "larger"]]] = {
    "condition_number": "smaller",
    "effective_rank": "larger",
    "isometry_cosine": "larger",
}
#: The same in words.
SENSES: Final = {
    "condition_number": "condition number",
    "effective_rank": "effective rank",
    "isometry_cosine": "nearness to isometry",
}


@dataclass(frozen=True)
class Design:
    """The arms of an experiment on the mechanism, and how it is decided.

    Attributes:
        base: The arm without a skip.
        skip: The arm whose speed is to be explained.
        interventions: The other arms, by what each is for.
        doses: Skip gain by arm, the base's 0 among them; empty without a dose–response test.
        factorial: Pairs of arms without and with the skip that share an initialisation, for the mediation; empty for
            none.
        senses: Of conditioning, names in ``BETTER``.
        speed: The measure of speed, a name in ``measures.MEASURES`` of which less is faster.
        alike: Ratios of conditioning between ``1 / alike`` and ``alike`` count as no change, by sense: κ ranges over
            many orders of magnitude, the others over one or two.
        share: The skip's effect passes through conditioning if more than this share of it does.
    """

    base: str
    skip: str
    interventions: Mapping[str, Kind]
    doses: Mapping[str, float]
    factorial: tuple[tuple[str, str], ...] = ()
    senses: tuple[str, ...] = tuple(BETTER)
    speed: str = "mean_log_loss"
    alike: Mapping[str, float] = field(
        default_factory=lambda: {"condition_number": 1.25, "effective_rank": 1.05, "isometry_cosine": 1.05}
    )
    share: float = 0.5

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms, the base first."""
        paired_arms = (arm for pair in self.factorial for arm in pair)
        return tuple(dict.fromkeys((self.base, self.skip, *self.interventions, *self.doses, *paired_arms)))

    @property
    def shares(self) -> int:
        """Into how many equal shares the level is split: senses, times comparisons, dose–response and mediation."""
        return len(self.senses) * (1 + bool(self.doses) + bool(self.factorial))

    @property
    def comparisons(self) -> tuple[tuple[str, str], ...]:
        """The skip against the base, then each intervention against both."""
        return (
            (self.skip, self.base),
            *((arm, other) for arm in self.interventions for other in (self.base, self.skip)),
        )


@dataclass(frozen=True)
class Comparison:
    """An arm against another: what became of the conditioning, and whether the speed followed.

    Attributes:
        arm: The numerator.
        other: The denominator.
        change: Of the conditioning.
        finding: The verdict on the speed, given that change.
        conditioning: Effect on conditioning: ratio, ends of its interval, and ``bounded`` pairs.
    """

    arm: str
    other: str
    change: Change
    finding: Finding
    conditioning: Mapping[str, float]


def differences(tables: Experiment, design: Design, measure: str, rates: Mapping[str, float]) -> list[Differences]:
    """Log-ratios of a measure for each comparison of a design, each arm at its learning rate."""
    return [paired.paired_differences(tables, measure, arm, other, rates) for arm, other in design.comparisons]


def compare(
    design: Design,
    sense: str,
    conditioning: Sequence[Differences],
    speed: Sequence[Differences],
    rule: Rule,
    seed: int,
) -> list[Comparison]:
    """All comparisons of a design.

    Args:
        design: What is compared.
        sense: Of conditioning.
        conditioning: Its log-ratios, one for each comparison.
        speed: Those of the measure of speed.
        rule: Of speed, and (but for what counts as alike) of conditioning; half of its level goes to each.
        seed: Of the bootstrap, which describes and does not decide.
    """
    half = replace(rule, level=rule.level / 2)
    improved = BETTER[sense]
    contrasts = [Contrast(sense, arm, other, improved) for arm, other in design.comparisons]
    changes = [
        _change(found, decision.verdict, decision.note)
        for found, decision in zip(
            conditioning, decide(conditioning, contrasts, replace(half, equivalent=design.alike[sense])), strict=True
        )
    ]
    predicted: list[Literal["smaller", "larger"]] = ["larger" if one == "worse" else "smaller" for one in changes]
    contrasts = [
        Contrast(design.speed, arm, other, direction)
        for (arm, other), direction in zip(design.comparisons, predicted, strict=True)
    ]
    decisions = decide(speed, contrasts, half)
    comparisons = []
    for (arm, other), change, found, decision, how in zip(
        design.comparisons, changes, speed, decisions, conditioning, strict=True
    ):
        verdict = decision.verdict
        if change == "alike":
            verdict = _verdict_alike(found, decision, half)
        elif change == "open":
            verdict = "vacuous"
        numbers = describe(found, replace(decision, verdict=verdict), half, seed, len(contrasts))
        effect = _effect(how, half, seed)
        numbers |= {f"conditioning_{name}": value for name, value in effect.items()}
        what = f"{arm} against {other}: {SENSES[sense]} {_CHANGES[change]}, so {_PREDICTED[change]}"
        finding = Finding(what, verdict, numbers, decision.note if change in ("better", "worse") else _WHY[change])
        comparisons.append(Comparison(arm, other, change, finding, effect))
    return comparisons


_CHANGES: dict[Change, str] = {"better": "better", "worse": "worse", "alike": "alike", "open": "not told apart"}
_PREDICTED: dict[Change, str] = {
    "better": "faster",
    "worse": "slower",
    "alike": "as fast",
    "open": "nothing is predicted",
}
_WHY: dict[Change, str] = {
    "better": "",
    "worse": "",
    "alike": "contradicted if the speed differs by more than what counts as none",
    "open": "the conditioning is not told apart, so that no speed is predicted",
}


def _change(found: Differences, verdict: Verdict, note: str) -> Change:
    """What became of the conditioning, from the decision on its being better."""
    if verdict == "supported":
        return "better"
    if verdict == "contradicted":
        return "worse" if note == "reversed" else "alike"
    return "open"


def _verdict_alike(found: Differences, decision: Decision, rule: Rule) -> Verdict:
    """The verdict on equal speed: surely equal, or significantly different by more than counts as none."""
    if decision.p_not_equivalent < rule.level:
        return "supported"
    differs = decision.p_corrected < rule.level and abs(found.effect) > np.log(rule.equivalent)
    return "contradicted" if differs else "inconclusive"


def _effect(found: Differences, rule: Rule, seed: int) -> dict[str, float]:
    low, high = paired.bootstrap_interval(found, 1 - rule.level, seed)
    with np.errstate(over="ignore"):
        ratio, low, high = (float(np.exp(value)) for value in (found.effect, low, high))
    return {"ratio": ratio, "ratio_low": low, "ratio_high": high, "bounded": float(found.bounded.sum())}


class Effects:
    """Log-ratios of an experiment's comparisons; those of speed are the same for all senses of conditioning."""

    def __init__(self, tables: Experiment, design: Design) -> None:
        self.tables, self.design = tables, design
        self._speed: dict[tuple[float, ...], list[Differences]] = {}

    def compare(self, sense: str, rates: Mapping[str, float], rule: Rule, seed: int) -> list[Comparison]:
        """All comparisons, each arm at its learning rate."""
        conditioning = differences(self.tables, self.design, sense, rates)
        key = tuple(rates[arm] for arm in self.design.arms)
        if key not in self._speed:
            self._speed[key] = differences(self.tables, self.design, self.design.speed, rates)
        return compare(self.design, sense, conditioning, self._speed[key], rule, seed)


def dose_response(tables: Experiment, design: Design, sense: str, rates: Mapping[str, float], level: float) -> Finding:
    """Whether conditioning and speed go together over the doses of the skip, trial by trial.

    In each trial Kendall's τ between conditioning and slowness over the doses; the sign test says whether its median
    is positive.
    """
    doses = dose_table(tables, design, sense, rates)
    sign = 1 if BETTER[sense] == "smaller" else -1
    taus = np.array(
        [stats.kendalltau(sign * rows["mediator"], rows["speed"]).statistic for _, rows in doses.groupby("trial")]
    )
    missing, taus = int((~np.isfinite(taus)).sum()), taus[np.isfinite(taus)]
    found = Differences.between(taus, np.zeros(len(taus)))
    p = paired.sign_test(found)
    verdict: Verdict = "inconclusive"
    if not len(taus):
        verdict = "vacuous"
    elif p < level:
        verdict = "supported" if found.effect > 0 else "contradicted"
    low, high = paired.exact_interval(found, 1 - level)
    numbers = {"kendall_tau": found.effect, "kendall_tau_low": low, "kendall_tau_high": high}
    gains = ", ".join(f"{gain:g}" for gain in sorted(design.doses.values()))
    return Finding(
        f"dose–response: over skip gains {gains} a better {SENSES[sense]} goes with faster training",
        verdict,
        {**numbers, "p_sign": p, "pairs": float(len(taus)), "missing": float(missing)},
    )


def dose_table(tables: Experiment, design: Design, sense: str, rates: Mapping[str, float]) -> pd.DataFrame:
    """Conditioning and slowness by skip gain and trial: columns ``gain, trial, mediator, speed``."""
    rows = run_table(tables, design, sense, rates)
    rows = rows[rows["arm"].isin(design.doses)].assign(gain=lambda frame: frame["arm"].map(design.doses))
    with np.errstate(over="ignore"):
        return rows.assign(mediator=np.exp(rows["mediator"]), speed=np.exp(rows["speed"]))[
            ["gain", "trial", "mediator", "speed"]
        ]


def run_table(tables: Experiment, design: Design, sense: str, rates: Mapping[str, float]) -> pd.DataFrame:
    """The runs at each arm's learning rate: ``run_id, arm, trial, lr, mediator, speed``, the last two logarithms."""
    runs = tables.runs
    wanted = runs["arm"].map(dict(rates)).astype(float)
    chosen = runs[np.isclose(runs["lr"].astype(float), wanted, rtol=1e-9, atol=0)]
    logs = {
        name: MEASURES[measure](tables).reindex(chosen["run_id"]).to_numpy(float)
        for name, measure in (("mediator", sense), ("speed", design.speed))
    }
    return chosen[["run_id", "arm", "trial", "lr"]].assign(**logs).reset_index(drop=True)


def factorial_table(tables: Experiment, design: Design, sense: str, rates: Mapping[str, float]) -> pd.DataFrame:
    """The runs of the factorial design: ``treated`` (has the skip), ``block`` (which initialisation), and the above."""
    places = {
        arm: (int(treated), block)
        for block, pair in enumerate(design.factorial)
        for treated, arm in enumerate(pair)
    }  # fmt: skip
    rows = run_table(tables, design, sense, rates)
    rows = rows[rows["arm"].isin(places)]
    return rows.assign(
        treated=[places[arm][0] for arm in rows["arm"]], block=[places[arm][1] for arm in rows["arm"]]
    ).reset_index(drop=True)


def verdict_of(comparisons: Sequence[Comparison], others: Sequence[Finding]) -> Verdict:
    """The verdict on the mechanism from an experiment's comparisons, its dose–response and its mediation.

    Without a skip that is better conditioned and faster there is nothing to explain: vacuous where either is surely
    not so, else inconclusive. Otherwise contradicted if any test is, supported if all that say something are.
    """
    premise, *rest = comparisons
    if premise.change != "better":
        return "inconclusive" if premise.change == "open" else "vacuous"
    if premise.finding.verdict != "supported":
        return "vacuous" if premise.finding.verdict == "contradicted" else "inconclusive"
    telling = [one.verdict for one in (*(comparison.finding for comparison in rest), *others)]
    telling = [verdict for verdict in telling if verdict != "vacuous"]
    return combine(telling) if telling else "inconclusive"
