"""What a claim would train and compare: checked before anything is written, and shown by ``verify --plan``."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.tables import STATISTICS
from skip_conditioning.experiments.claims.verdict.claim import Plan
from skip_conditioning.experiments.claims.verdict.outcome import Comparison
from skip_conditioning.experiments.claims.verdict.run_measures import MEASURES, step_of
from skip_conditioning.experiments.claims.verdict.step_thresholds import Thresholds
from skip_conditioning.experiments.claims.verdict.wording import in_words
from skip_conditioning.experiments.config.train_config import measurements, rates_by_arm

#: Measures that are read from spectra.
_OF_SPECTRA = frozenset((*STATISTICS, "isometry_cosine"))


def check_comparisons(
    claim: str, plan: Plan, comparisons: Sequence[Comparison], thresholds: Thresholds | None = None
) -> None:
    """Check that every comparison of a claim can be made on an experiment.

    Args:
        claim: Its id, for messages.
        plan: What is trained.
        comparisons: What is compared.
        thresholds: How the thresholds of ``steps`` are fixed.

    Raises:
        InputError: A measure or an arm is not there, a map or layer is not measured, a run does not reach a step, or
            there is no pilot trial to fix the thresholds.
    """
    if thresholds and thresholds.base not in plan.arms:
        raise InputError(f"{claim}: thresholds are of arm {thresholds.base!r}, which is not among {_listed(plan.arms)}")
    if thresholds and not 0 < thresholds.pilots < plan.trials:
        raise InputError(f"{claim}: {thresholds.pilots} pilot trials of {plan.trials} leave nothing to compare")
    for comparison in comparisons:
        _check(f"{claim}: {in_words(comparison)}", comparison, plan)


def _check(where: str, comparison: Comparison, plan: Plan) -> None:
    step = step_of(comparison.measure)
    if step is None and comparison.measure not in MEASURES:
        raise InputError(
            f"{where}: unknown measure {comparison.measure!r}; there are {_listed(tuple(MEASURES))} and loss_at_step_N."
            f"{near_matches(comparison.measure, MEASURES)}"
        )
    for arm in (comparison.arm, comparison.other):
        if arm not in plan.arms:
            raise InputError(
                f"{where}: arm {arm!r} is not trained; there are {_listed(plan.arms)}.{near_matches(arm, plan.arms)}"
            )
    steps = plan.config.optimisation.steps
    if step is not None and steps is not None and step > steps:
        raise InputError(f"{where}: a run has {steps} steps; compare at one of them")
    if comparison.measure in _OF_SPECTRA:
        _check_spectra(where, comparison, plan)


def _check_spectra(where: str, comparison: Comparison, plan: Plan) -> None:
    measured = measurements(plan.config)
    if not measured:
        raise InputError(f"{where}: nothing is measured, as diagnostics are off; plan them, or compare speed alone")
    maps = [each for each in measured if comparison.map in ("", each.map)]
    if not maps:
        raise InputError(
            f"{where}: the map {comparison.map!r} is not measured; there are {_listed([m.map for m in measured])}"
        )
    # Without names a measurement is of the network's blocks, which are known only when it is built.
    named = [layer for each in maps for layer in each.layers or ("*",)]
    if comparison.layer and not any(fnmatchcase(comparison.layer, layer) for layer in named):
        raise InputError(f"{where}: the layer {comparison.layer!r} is not measured; there are {_listed(named)}")


def plan_lines(name: str, plan: Plan) -> Iterator[str]:
    """What is trained for one plan, in lines.

    Args:
        name: Of the experiment.
        plan: The plan.
    """
    config = plan.config
    options = config.optimisation
    rates = rates_by_arm(config)
    runs = plan.trials * sum(map(len, rates.values()))
    length = f"{options.steps} steps" if options.steps is not None else f"{options.epochs} epochs"
    yield f"experiment {name}: {config.network.model} on {config.data.dataset}, {length} each, seed {options.seed}"
    yield f"  arms: {_listed(plan.arms)}"
    if plan.sweep is None:
        yield f"  {plan.trials} trials at learning rates {_listed([f'{rate:g}' for rate in options.lr])}: {runs} runs"
    else:
        count = len(plan.sweep.rates)
        yield (
            f"  pilot runs: {plan.sweep.trials} trials at {count} rates from {min(plan.sweep.rates):g} to "
            f"{max(plan.sweep.rates):g}: {plan.sweep.trials * count * len(plan.arms)} runs"
        )
        most = 2 * plan.trials * len(plan.arms)
        yield f"  {plan.trials} trials at each arm's best rate and at that of {plan.sweep.base}: up to {most} runs"
    measured = [
        f"{each.map} of {_listed(each.layers) if each.layers else 'the blocks'}" for each in measurements(config)
    ]
    if measured:
        yield f"  measured: {'; '.join(measured)}"
    if plan.initial_states:
        yield f"  measured at initialisation on the whole first batch: {plan.initial_states}, in initial_states.parquet"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
