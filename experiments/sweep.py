"""Train an experiment on a Slurm cluster, one job for each run: ``skip-conditioning sweep PRESET --out DIR``.

It takes the options of ``skip-conditioning train`` and a few for the jobs, and writes the same tables. ``--help`` lists
the presets, ``PRESET --help`` every option with its default.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.command_line import parse_preset, run_command
from skip_conditioning.experiments.config.presets import PRESETS
from skip_conditioning.experiments.config.train_config import TrainConfig, with_given
from skip_conditioning.experiments.speed import write_speed
from skip_conditioning.experiments.summary import print_summary
from skip_conditioning.experiments.sweeps.jobs import JobOptions, JobQueue, LiveTable, RunState, check_cluster
from skip_conditioning.experiments.training.runner import Runner


@dataclass(frozen=True)
class SweepConfig:
    """An experiment, and how its runs are handed to the cluster."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    jobs: tyro.conf.OmitArgPrefixes[JobOptions] = field(default_factory=JobOptions)


def sweep(config: SweepConfig) -> list[RunState]:
    """Check everything, train every run that is not over as a job, print the summary, and return what failed.

    Raises:
        InputError: As ``Runner`` does; or submitit or the cluster is not there.
    """
    config.jobs.check()
    check_cluster()
    if config.train.optimisation.processes > 1:
        raise InputError("--processes is an option of skip-conditioning train: each job of a sweep trains one run")
    if config.train.output.estimate:
        raise InputError(
            "--estimate is an option of skip-conditioning train; give that the same options, without those of jobs"
        )
    training = config.train.changed(resume=config.train.output.resume or config.jobs.retry)
    runner = Runner(training)
    with runner.held():
        states = JobQueue(runner, config.jobs).run(LiveTable(sys.stderr, runner.factory.total_steps))
        write_speed(training.output.out)
    print_summary(training.output.out)
    failed = [state for state in states if state.status == "failed"]
    for state in failed:
        logs = training.output.out / "jobs" / state.run_id
        print(f"failed: {state.run_id}: {state.reason} (log: {_newest_log(logs)})", file=sys.stderr)
    if failed:
        print("to train what failed again, repeat the command with --retry (and without --overwrite)", file=sys.stderr)
    return failed


def _newest_log(folder: Path) -> Path:
    logs = sorted(folder.glob("*_log.err"), key=lambda log: log.stat().st_mtime)
    return logs[-1] if logs else folder


def parse(args: Sequence[str]) -> SweepConfig:
    """The options on a command line; the length of runs given by it replaces the preset's, as in training.

    Raises:
        InputError: A preset, an option or a value that does not exist.
    """
    presets = {name: (description, SweepConfig(train)) for name, (description, train) in PRESETS.items()}
    config = parse_preset(presets, "skip-conditioning sweep", args)
    return replace(config, train=with_given(config.train, args))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 for bad input and 1 if a run failed."""
    failed: list[RunState] = []
    code = run_command(
        lambda config: failed.extend(sweep(config)), lambda: parse(sys.argv[1:] if args is None else args)
    )
    return code or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
