"""Trains the experiments that claims plan, each once for all claims that share it, and reads their tables.

An experiment is one of ``skip-conditioning train``, in ``DIR/experiments/NAME``. After an interruption it is continued:
arms and trials that are missing are added, and finished runs are kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skip_conditioning.diagnostics import tables
from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.verdict.claim import Claim, Plan, Size
from skip_conditioning.experiments.claims.verdict.formatting import some
from skip_conditioning.experiments.claims.verdict.pairs import with_runs
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.processes.machine import git_revision, versions
from skip_conditioning.experiments.records.directory import check_out, is_over, read_status
from skip_conditioning.experiments.speed import SPEED, write_speed
from skip_conditioning.experiments.sweeps.workers import run_in_processes
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.experiments.training.runs import all_runs

_FOLDER = "experiments"


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
    groups: list[tuple[TrainConfig, dict[tuple[str, str], Plan]]] = []
    for claim in claims:
        for name, plan in claim.plans(size).items():
            shared = plan.config.changed(arms=(), trials=1)
            plans = next((plans for config, plans in groups if config == shared), None)
            if plans is None:
                plans = {}
                groups.append((shared, plans))
            plans[claim.id, name] = plan if trials is None else Plan(plan.config.changed(trials=trials))
    experiments: list[SharedExperiment] = []
    names: set[str] = set()
    for shared, plans in groups:
        wanted = next(iter(plans))[1]
        name = next(free for free in (wanted, *(f"{wanted}-{n}" for n in range(2, 99))) if free not in names)
        names.add(name)
        config = shared.changed(
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
    """Train the runs of an experiment that are not over.

    Args:
        experiment: From ``shared_experiments``.
        processes: Number of processes that train at once on a CPU; None for one a core. Results do not depend on it.

    Raises:
        InputError: Its options, data or directory are refused, or it was begun by other code.
    """
    out = experiment.config.output.out
    if experiment.is_reused:
        return
    _check_code(experiment, {"git_revision": git_revision(), "versions": versions()})
    check_out(experiment.config)
    if all(is_over(out / "runs" / run.run_id) for run in all_runs(experiment.config)):
        if not (out / SPEED).exists():
            write_speed(out)
        return
    run_in_processes(Runner(experiment.config), processes)


def read_tables(experiment: SharedExperiment) -> dict[tuple[str, str], tables.Experiment]:
    """The tables of an experiment for each plan that it serves: that plan's arms and trials, no others.

    Raises:
        InputError: Runs are missing, failed or not over, or were made by different code.
    """
    check_complete(experiment)
    _check_code(experiment)
    whole = tables.read_experiment(experiment.config.output.out)
    trials = whole.runs["trial"].astype(float)
    return {
        key: with_runs(whole, set(whole.runs.loc[whole.runs["arm"].isin(plan.arms) & (trials < plan.trials), "run_id"]))
        for key, plan in experiment.plans.items()
    }


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
    runs = tables.read_experiment(out).runs
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
