"""Train an experiment with diagnostics on: ``skip-conditioning train PRESET --out DIR``.

``--help`` lists the presets, ``PRESET --help`` every option with its default.
"""

import sys
from collections.abc import Sequence

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.command_line import parse_preset, run_command
from skip_conditioning.experiments.config.presets import PRESETS
from skip_conditioning.experiments.config.train_config import TrainConfig, with_given
from skip_conditioning.experiments.processes.group import everywhere, leave, process_group
from skip_conditioning.experiments.processes.machine import choose_device
from skip_conditioning.experiments.processes.ranks import Ranks, clear_rank_errors
from skip_conditioning.experiments.summary import print_summary
from skip_conditioning.experiments.sweeps.workers import run_in_processes
from skip_conditioning.experiments.training.estimate import estimate, in_words
from skip_conditioning.experiments.training.runner import Runner


def train(config: TrainConfig) -> None:
    """Check everything, train every run, and print what came of it; or only what it would take."""
    if config.output.estimate:
        print(in_words(estimate(config)))
        return
    with process_group(choose_device(config.optimisation.device)) as group, clear_rank_errors():
        ranks = Ranks(group)
        runner = everywhere(lambda: _runner(config, ranks), group)
        if config.optimisation.processes > 1:
            run_in_processes(runner, config.optimisation.processes)
        else:
            runner.run_all()
        if ranks.is_first:
            print_summary(config.output.out)


def _runner(config: TrainConfig, ranks: Ranks) -> Runner:
    processes = config.optimisation.processes
    if processes > 1 and ranks.count > 1:
        raise InputError(
            f"--processes {processes} trains {processes} runs at once, and torchrun each run in {ranks.count} "
            "processes; choose one of them"
        )
    return Runner(config, ranks=ranks)


def parse(args: Sequence[str]) -> TrainConfig:
    """The options on a command line; the length of runs given by it replaces the preset's, in steps or epochs.

    Raises:
        InputError: A preset, an option or a value that does not exist.
    """
    return with_given(parse_preset(PRESETS, "skip-conditioning train", args), args)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 for bad input."""
    return run_command(train, lambda: parse(sys.argv[1:] if args is None else args))


if __name__ == "__main__":
    leave(main())
