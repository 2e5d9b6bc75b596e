"""Trains the experiments that claims plan, each once for all claims that share it, and reads their tables.

An experiment is one of ``skip-conditioning train``, in ``DIR/experiments/NAME``. After an interruption it is continued:
arms and trials that are missing are added, and finished runs are kept. Where each arm's learning rate is chosen by a
sweep, pilot runs at all rates are trained first, in ``DIR/experiments/NAME-pilots``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, read_experiment
from skip_conditioning.experiments.claims.verdict.claim import Claim, ClaimInputs, Plan, RateSweep, Size
from skip_conditioning.experiments.claims.verdict.rate_sweep import best_rates, by_arm, sweep_table, sweep_thresholds
from skip_conditioning.experiments.claims.verdict.runs import with_runs
from skip_conditioning.experiments.claims.verdict.wording import some
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.processes.machine import git_revision, versions
from skip_conditioning.experiments.records.directory import check_out, is_over, read_status
from skip_conditioning.experiments.speed import SPEED, write_speed
from skip_conditioning.experiments.sweeps.workers import run_in_processes
from skip_conditioning.experiments.training.initial_states import measure_initial_states, read_initial_states
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.experiments.training.runs import all_runs

_FOLDER = "experiments"
#: Added to the seed of an experiment for its pilot runs.
_PILOT_SEED: Final = 1_000_003


@dataclass(frozen=True)
class SharedExperiment:
    """An experiment to be trained, or one that was trained before.

    Attributes:
        name: Of its folder.
        config: Its options, with the arms and trials of all claims that share it.
        plans: The plans that it serves, by the claim's id and the plan's name.
        is_reused: Whether it was trained before, elsewhere: then it is read and never written.
    """

    name: str
    config: TrainConfig
    plans: Mapping[tuple[str, str], Plan]
    is_reused: bool = False

    @property
    def sweep(self) -> RateSweep | None:
        """How each arm's learning rate is chosen; the same in all plans."""
        return next(iter(self.plans.values())).sweep

    @property
    def pilots(self) -> "SharedExperiment | None":
        """The pilot runs by which rates are chosen: every arm at every rate of the sweep."""
        if self.sweep is None:
            return None
        out = self.config.output.out
        config = self.config.changed(
            lr=self.sweep.rates,
            trials=self.sweep.trials,
            seed=self.config.optimisation.seed + _PILOT_SEED,
            diagnostics=False,
            out=out.with_name(f"{out.name}-pilots"),
        )
        return SharedExperiment(f"{self.name}-pilots", config, {})

    def at_best_rates(self) -> "SharedExperiment":
        """The experiment with every arm at its own best rate, and at the base arm's; needs the pilot runs.

        Raises:
            InputError: Pilot runs are missing, or the base arm does not learn at any rate.
        """
        pilots = self.pilots
        if self.sweep is None or pilots is None:
            return self
        tables = _read_whole(pilots)
        rates = best_rates(sweep_table(tables, sweep_thresholds(tables, self.sweep)))
        equal = rates[self.sweep.base]
        own = tuple(dict.fromkeys(by_arm(rates) + by_arm(dict.fromkeys(rates, equal))))
        return replace(self, config=self.config.changed(lr=(equal,), arm_lr=own))


def shared_experiments(
    claims: Sequence[Claim], size: Size, trials: int | None, out: Path, **incidental: Any
) -> list[SharedExperiment]:
    """The experiments of some claims; plans that are equal but for arms and trials become one.

    Args:
        claims: To be tested.
        size: Of the experiments.
        trials: Of every plan; None for its own number.
        out: The directory of the verdicts.
        **incidental: Options of the training command on which results do not depend, such as ``device``.
    """
    groups: list[tuple[Plan, dict[tuple[str, str], Plan]]] = []
    for claim in claims:
        for name, plan in claim.plans(size).items():
            shared = replace(plan, config=plan.config.changed(arms=(), trials=1))
            plans = next((plans for other, plans in groups if other == shared), None)
            if plans is None:
                plans = {}
                groups.append((shared, plans))
            plans[claim.id, name] = plan if trials is None else replace(plan, config=plan.config.changed(trials=trials))
    experiments: list[SharedExperiment] = []
    names: set[str] = set()
    for shared, plans in groups:
        wanted = next(iter(plans))[1]
        name = next(free for free in (wanted, *(f"{wanted}-{n}" for n in range(2, 99))) if free not in names)
        names.add(name)
        config = shared.config.changed(
            arms=tuple(dict.fromkeys(arm for plan in plans.values() for arm in plan.arms)),
            trials=max(plan.trials for plan in plans.values()),
            out=out / _FOLDER / name,
            resume=True,
            **incidental,
        )
        experiments.append(SharedExperiment(name, config, plans))
    return experiments


def with_reused(experiments: Sequence[SharedExperiment], directories: Iterable[Path]) -> list[SharedExperiment]:
    """The experiments, with finished ones of equal options in place of those to be trained.

    Args:
        experiments: From ``shared_experiments``.
        directories: Experiments that were trained before.

    Raises:
        InputError: One of the directories holds no experiment with the options of one that is needed, or lacks runs.
    """
    replaced = list(experiments)
    for directory in directories:
        if not (directory / "experiment.json").exists():
            raise InputError(f"{directory} holds no experiment of skip-conditioning train; --reuse another directory")
        refusals = []
        for position, experiment in enumerate(replaced):
            if experiment.sweep is not None:
                refusals.append(f"{experiment.name}: its learning rates are chosen by pilot runs of its own")
                continue
            config = experiment.config.changed(out=directory)
            try:
                check_out(config)
            except InputError as refusal:
                refusals.append(f"{experiment.name}: {refusal}")
                continue
            replaced[position] = replace(experiment, config=config, is_reused=True)
            break
        else:
            why = " ".join(refusals) or "none of the claims trains anything"
            raise InputError(f"--reuse {directory} is none of the experiments that are needed ({why})")
    for experiment in replaced:
        if experiment.is_reused:
            check_complete(experiment)
    return replaced


def train(experiment: SharedExperiment, processes: int | None = None) -> None:
    """Train the runs of an experiment that are not over, its pilot runs before the others, and measure initial states.

    Args:
        experiment: From ``shared_experiments``.
        processes: Number of processes that train at once on a CPU; None for one a core. Results do not depend on it.

    Raises:
        InputError: Its options, data or directory are refused, or it was begun by other code.
    """
    if experiment.is_reused:
        return
    if experiment.pilots is not None:
        _train(experiment.pilots, processes)
    final = experiment.at_best_rates()
    _train(final, processes)
    if wanted := {plan.initial_states for plan in experiment.plans.values()} - {None}:
        kernels = "everything" in wanted
        measure_initial_states(final.config, final.config.output.out, processes, kernels=kernels)


def _train(experiment: SharedExperiment, processes: int | None) -> None:
    out = experiment.config.output.out
    _check_code(experiment, {"git_revision": git_revision(), "versions": versions()})
    check_out(experiment.config)
    if all(is_over(out / "runs" / run.run_id) for run in all_runs(experiment.config)):
        if not (out / SPEED).exists():
            write_speed(out)
        return
    run_in_processes(Runner(experiment.config), processes)


def claim_inputs(
    claim: Claim, experiments: Sequence[SharedExperiment], directory: Path, size: Size, data_dir: Path | None
) -> ClaimInputs:
    """What a claim is judged from: for each of its plans that plan's arms and trials, no others.

    Args:
        claim: The claim.
        experiments: All experiments, trained.
        directory: The claim's own folder.
        size: Of the experiments.
        data_dir: Folder of the data sets.

    Raises:
        InputError: Runs are missing, failed or not over, or were made by different code.
    """
    tables: dict[str, Experiment] = {}
    pilots: dict[str, Experiment] = {}
    states: dict[str, pd.DataFrame] = {}
    for experiment in experiments:
        for (claim_id, name), plan in experiment.plans.items():
            if claim_id != claim.id:
                continue
            tables[name] = _of_plan(_read_whole(experiment.at_best_rates()), plan.arms, plan.trials)
            if experiment.pilots is not None and plan.sweep is not None:
                pilots[name] = _of_plan(_read_whole(experiment.pilots), plan.arms, plan.sweep.trials)
            if plan.initial_states:
                rows = read_initial_states(experiment.config.output.out)
                states[name] = rows[rows["arm"].isin(plan.arms) & (rows["trial"] < plan.trials)]
    return ClaimInputs(tables, directory, data_dir=data_dir, pilots=pilots, initial_states=states)


def _read_whole(experiment: SharedExperiment) -> Experiment:
    check_complete(experiment)
    _check_code(experiment)
    return read_experiment(experiment.config.output.out)


def _of_plan(whole: Experiment, arms: Sequence[str], trials: int) -> Experiment:
    runs = whole.runs[whole.runs["arm"].isin(arms) & (whole.runs["trial"].astype(float) < trials)]
    return with_runs(whole, set(runs["run_id"]))


def check_complete(experiment: SharedExperiment) -> None:
    """Check that every run of an experiment has finished or diverged.

    Raises:
        InputError: Some have not; the message names them and the way out.
    """
    out = experiment.config.output.out
    states = {
        run.run_id: read_status(out / "runs" / run.run_id).get("status", "missing")
        for run in all_runs(experiment.config)
    }
    open_runs = [f"{run} ({state})" for run, state in states.items() if state not in ("finished", "diverged")]
    if open_runs:
        way = "finish it by its own command with --resume" if experiment.is_reused else "repeat the command"
        raise InputError(
            f"{out} is incomplete: {len(open_runs)} of {len(states)} runs are not over: {some(open_runs)}; {way}"
        )


def _check_code(experiment: SharedExperiment, now: Mapping[str, str] | None = None) -> None:
    """Check that all runs were made by the same code, and by the code given, if any."""
    out = experiment.config.output.out
    if not any((out / "runs").glob("*/config.json")):
        return
    runs = read_experiment(out).runs
    for column in ("git_revision", "versions"):
        made = runs.groupby(column, sort=False)["run_id"].first().to_dict()
        if len(made) > 1:
            named = ", ".join(f"{run} by {code}" for code, run in list(made.items())[:2])
            raise InputError(
                f"{out} mixes runs of different code ({column}: {named}); choose another --out, or remove the runs of "
                "one code from its folder runs and repeat the command with the other code"
            )
        if now is not None and made and now[column] not in made:
            raise InputError(
                f"{out} was begun by other code ({column} {next(iter(made))}, now {now[column]}); continue with that "
                "code, or choose another --out"
            )
