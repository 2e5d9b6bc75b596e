"""Runs the experiments that claims plan, each once for all claims that share it, and reads their tables.

An experiment lies in ``DIR/experiments/NAME`` and is one of ``experiments.train``: interrupted it is continued, begun
with fewer seeds or arms it is completed, and nothing that is over is trained again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skip_conditioning.diagnostics import tables
from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.verdict.claim import Claim, Plan, Size
from skip_conditioning.experiments.claims.verdict.paired_claim import with_runs
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.records.directory import check_out, is_over, read_status
from skip_conditioning.experiments.records.provenance import git_revision, versions
from skip_conditioning.experiments.records.speed import SPEED, write_speed
from skip_conditioning.experiments.sweeps.workers import run_in_processes
from skip_conditioning.experiments.train import parse
from skip_conditioning.experiments.training.runner import Runner
from skip_conditioning.experiments.training.runs import all_runs

_FOLDER = "experiments"
_NAMED = 6


@dataclass(frozen=True)
class Job:
    """An experiment to be run, or one that was run before.

    Attributes:
        name: Of its folder.
        config: Its options, with the arms and seeds of all claims that share it.
        users: The claims' plans that it serves, by the claim's id and the plan's name.
        is_reused: Whether it was run before, elsewhere: then it is read and never written.
        processes: As of ``Place``.
    """

    name: str
    config: TrainConfig
    users: Mapping[tuple[str, str], Plan]
    is_reused: bool = False
    processes: int | None = None


@dataclass(frozen=True)
class Place:
    """Where experiments are run and with what.

    Attributes:
        out: The directory of the verdicts.
        data_dir: Folder of the data sets; None for the training command's default.
        device: As for the training command.
        processes: That train runs at once on a CPU; None for one a core. It changes nothing but the time.
    """

    out: Path
    data_dir: Path | None = None
    device: str = "auto"
    processes: int | None = None


def jobs(claims: Sequence[Claim], size: Size, seeds: int | None, place: Place) -> list[Job]:
    """The experiments of some claims; plans that differ in nothing but arms and seeds become one.

    Args:
        claims: To be tested.
        size: Of the experiments.
        seeds: Of every plan; None for its own number.
        place: Where and with what.

    Raises:
        InputError: A plan that the training command does not take.
    """
    alike: dict[tuple[str, tuple[str, ...]], dict[tuple[str, str], Plan]] = {}
    for claim in claims:
        for name, plan in claim.plans(size).items():
            with_seeds = plan if seeds is None else replace(plan, seeds=seeds)
            alike.setdefault((plan.preset, plan.options), {})[claim.id, name] = with_seeds
    found: list[Job] = []
    taken: set[str] = set()
    for (preset, options), users in alike.items():
        wanted = next(iter(users))[1]
        name = next(one for one in (wanted, *(f"{wanted}-{n}" for n in range(2, 99))) if one not in taken)
        taken.add(name)
        whole = Plan(
            preset,
            arms=tuple(dict.fromkeys(arm for plan in users.values() for arm in plan.arms)),
            seeds=max(plan.seeds for plan in users.values()),
            options=options,
        )
        config = _config(whole, place.out / _FOLDER / name, place)
        found.append(Job(name, config, users, processes=place.processes))
    return found


def reusing(found: Sequence[Job], directories: Iterable[Path]) -> list[Job]:
    """The jobs, with finished experiments in place of those that they are the same as.

    Args:
        found: From ``jobs``.
        directories: Experiments that were run before.

    Raises:
        InputError: One of them has other options than every job, or lacks runs.
    """
    replaced = list(found)
    for directory in directories:
        if not (directory / "experiment.json").exists():
            raise InputError(f"{directory} holds no experiment of experiments.train; give another one by --reuse")
        refusals = []
        for place, job in enumerate(replaced):
            config = job.config.changed(out=directory)
            try:
                check_out(config)
            except InputError as refusal:
                refusals.append(f"{job.name}: {refusal}")
                continue
            replaced[place] = replace(job, config=config, is_reused=True)
            break
        else:
            why = " ".join(refusals) or "none of the claims trains anything"
            raise InputError(f"--reuse {directory} is none of the experiments that are needed ({why})")
    for job in replaced:
        if job.is_reused:
            check_whole(job)
    return replaced


def run(job: Job) -> None:
    """Train what is missing of an experiment; nothing if all its runs are over.

    Raises:
        InputError: Its options, data or directory are no good, or it was begun by other code.
    """
    out = job.config.output.out
    if job.is_reused:
        return
    _check_code(job, {"git_revision": git_revision(), "versions": versions()})
    check_out(job.config)
    if all(is_over(out / "runs" / run.run_id) for run in all_runs(job.config)):
        if not (out / SPEED).exists():
            write_speed(out)
        return
    run_in_processes(Runner(job.config), job.processes)


def read(job: Job) -> dict[tuple[str, str], tables.Experiment]:
    """The tables of an experiment for each plan that it serves: that plan's arms and seeds, no others.

    Raises:
        InputError: Runs are missing, failed or not over, or were made by different code.
    """
    check_whole(job)
    _check_code(job)
    found = tables.read_experiment(job.config.output.out)
    return {user: _of_plan(found, plan) for user, plan in job.users.items()}


def check_whole(job: Job) -> None:
    """See that every run of an experiment is there and over, the diverged ones too.

    Raises:
        InputError: Some are not; it names them and the way out.
    """
    out = job.config.output.out
    states = {
        run.run_id: read_status(out / "runs" / run.run_id).get("status", "missing") for run in all_runs(job.config)
    }
    open_runs = [f"{run} ({state})" for run, state in states.items() if state not in ("finished", "diverged")]
    if open_runs:
        more = f" and {len(open_runs) - _NAMED} more" if len(open_runs) > _NAMED else ""
        way = f"finish it by its own command with --out {out} --resume" if job.is_reused else "repeat the command"
        raise InputError(
            f"{out} is incomplete: {len(open_runs)} of {len(states)} runs are not over: {', '.join(open_runs[:_NAMED])}"
            f"{more}; {way}"
        )


def _config(plan: Plan, out: Path, place: Place) -> TrainConfig:
    arguments = [plan.preset, *plan.options, "--out", str(out), "--resume", "--device", place.device]
    arguments += ["--trials", str(plan.seeds), "--arms", *plan.arms]
    config = parse(arguments)
    return config if place.data_dir is None else config.changed(data_dir=place.data_dir)


def _check_code(job: Job, now: Mapping[str, str] | None = None) -> None:
    """See that all runs were made by the same code, and by that which runs now if any is given."""
    out = job.config.output.out
    if not any((out / "runs").glob("*/config.json")):
        return
    runs = tables.read_experiment(out).runs
    for column in ("git_revision", "versions"):
        made = runs.groupby(column, sort=False)["run_id"].first().to_dict()
        if len(made) > 1:
            named = ", ".join(f"{run} by {code}" for code, run in list(made.items())[:2])
            raise InputError(
                f"{out} mixes runs of different code ({column}: {named}); choose another --out, or remove the runs of "
                "one from its folder runs and repeat the command with the code of the other"
            )
        if now is not None and made and now[column] not in made:
            raise InputError(
                f"{out} was begun by other code ({column} {next(iter(made))}, now {now[column]}); go on with that, or "
                "choose another --out"
            )


def _of_plan(found: tables.Experiment, plan: Plan) -> tables.Experiment:
    runs = found.runs
    chosen = runs[runs["arm"].isin(plan.arms) & (runs["trial"].astype(float) < plan.seeds)]
    return with_runs(found, set(chosen["run_id"]))
