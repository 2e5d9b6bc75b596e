"""How often claims get a false verdict in worlds of known truth: ``python -m tests.experiments.claims.simulation``.

Every draw goes the way of real results: tables of runs, pilot runs and initial states, judged by the claim's own
``judge``. Prints Markdown.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from skip_conditioning.experiments.claims import (
    Comparison,
    DecisionRule,
    PairedClaim,
    Plan,
    Thresholds,
    Verdict,
    preset,
)
from skip_conditioning.experiments.claims.paper.spectrum_explains_speed import (
    MechanismExperiment,
    SpectrumExplainsSpeed,
)
from skip_conditioning.experiments.claims.statistics.power import pairs_for_power, quartile_spread, sign_test_power
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs
from tests.experiments.claims.mechanism.worlds import DESIGN, NAME, SWEEP, WORLDS
from tests.experiments.claims.worlds import World

_PILOTS, _PAIRS = 2, 30
_PLAN = Plan(preset("demo", arms=("chain", "skip"), trials=_PILOTS + _PAIRS, lr=(0.1,)))
PAIRED = PairedClaim(
    "skip-is-faster", "", "", "", (), {"demo": {NAME: _PLAN}}, (Comparison("steps", "skip", "chain", "smaller"),),
    thresholds=Thresholds("chain", _PILOTS), figures=(),
)  # fmt: skip
_SUPPORTED = {Verdict.SUPPORTED, Verdict.SUPPORTED_SMALL}
#: Worlds for the paired rule, and the verdicts that are false in each.
PAIRED_WORLDS: Mapping[str, tuple[World, set[Verdict]]] = {
    "a fifth fewer steps": (World({"chain": 0, "skip": np.log(0.8)}), {Verdict.NO_EFFECT, Verdict.REVERSED}),
    "a tenth fewer (the margin)": (
        World({"chain": 0, "skip": -np.log(1.1)}), {Verdict.NO_EFFECT, Verdict.REVERSED, Verdict.SUPPORTED_SMALL},
    ),
    "no effect": (World({"chain": 0, "skip": 0}), {*_SUPPORTED, Verdict.REVERSED}),
    "no effect, heavy tails": (World({"chain": 0, "skip": 0}, tails=2), {*_SUPPORTED, Verdict.REVERSED}),
    "no effect, unequal variances": (
        World({"chain": 0, "skip": 0}, noise={"chain": 0.02, "skip": 0.4}), {*_SUPPORTED, Verdict.REVERSED},
    ),
    "no effect, correlated seeds": (World({"chain": 0, "skip": 0}, shared=1.0), {*_SUPPORTED, Verdict.REVERSED}),
    "no effect, half diverging": (
        World({"chain": 0, "skip": 0}, diverging={"chain": 0.5, "skip": 0.5}), {*_SUPPORTED, Verdict.REVERSED},
    ),
    "a tenth more steps": (World({"chain": 0, "skip": np.log(1.1)}), {*_SUPPORTED, Verdict.NO_EFFECT}),
}  # fmt: skip


def paired_verdicts(world: World, draws: int) -> Counter[Verdict]:
    """The verdicts of the paired claim in so many draws of a world."""
    trials = _PILOTS + _PAIRS
    inputs = (ClaimInputs({NAME: world.tables(trials, seed)}, Path()) for seed in range(draws))
    return Counter(PAIRED.judge(each, "demo").verdict for each in inputs)


def mechanism_claim() -> SpectrumExplainsSpeed:
    """The claim on the mechanism with the worlds' arms."""
    plan = Plan(preset("demo", arms=DESIGN.arms, trials=20), SWEEP, initial_states="everything")
    return SpectrumExplainsSpeed(by_size={"demo": {NAME: MechanismExperiment(plan, DESIGN)}}, draws=False)


def mechanism_verdicts(name: str, draws: int, directory: Path) -> Counter[Verdict]:
    """The verdicts of the claim on the mechanism in so many draws of a world."""
    claim, (world, _) = mechanism_claim(), WORLDS[name]
    return Counter(claim.judge(world.inputs(20, seed, directory), "demo").verdict for seed in range(draws))


def named_power(spread: float, pairs: int, draws: int, effect: float = float(np.log(DecisionRule().margin))) -> float:
    """Mean power of the numbers of pairs that are named from spreads estimated from a few pairs."""
    rng, powers = np.random.default_rng(0), []
    for _ in range(draws):
        estimate, freedom = quartile_spread(rng.normal(0, spread, pairs))
        needed = min(pairs_for_power(estimate, effect, 0.05, freedom=freedom), 5000)
        share = float(np.mean(rng.normal(-effect, spread, 10**5) < 0))
        powers.append(float(sign_test_power(np.array([needed]), share, 0.05)[0]))
    return float(np.mean(powers))


def _table(title: str, rows: Mapping[str, tuple[Counter[Verdict], set[Verdict]]]) -> str:
    lines = [
        f"### {title}",
        "",
        "| world | false | " + " | ".join(v.value for v in Verdict) + " |",
        "|---|--:|" + 7 * "--:|",
    ]
    for name, (counts, false) in rows.items():
        share = sum(counts[verdict] for verdict in false) / counts.total()
        lines.append(f"| {name} | {100 * share:.1f} % | " + " | ".join(str(counts[v]) for v in Verdict) + " |")
    return "\n".join(lines)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.experiments.claims.simulation", description=__doc__)
    parser.add_argument("--paired", type=int, default=400, help="draws of each world of two arms")
    parser.add_argument("--mechanism", type=int, default=100, help="draws of each world of fourteen arms")
    options = parser.parse_args()
    started = time.monotonic()
    paired = {name: (paired_verdicts(world, options.paired), false) for name, (world, false) in PAIRED_WORLDS.items()}
    print(_table(f"Two arms, {_PAIRS} pairs, {options.paired} draws", paired), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        mechanism = {
            name: (
                mechanism_verdicts(name, options.mechanism, Path(folder)),
                {Verdict.REVERSED} if true else _SUPPORTED,
            )
            for name, (_, true) in WORLDS.items()
        }
    print("\n" + _table(f"The mechanism, 14 arms, 20 trials, {options.mechanism} draws", mechanism))
    print("\n### Power of the numbers of pairs that are named, 80 % intended\n")
    print("| spread of log-ratios | from 6 pairs | from 10 | from 30 |\n|---|--:|--:|--:|")
    for spread in (0.06, 0.12, 0.3):
        cells = " | ".join(f"{100 * named_power(spread, pairs, 300):.0f} %" for pairs in (6, 10, 30))
        print(f"| {spread:g} | {cells} |")
    print(f"\n{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
