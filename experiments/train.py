"""Train an experiment with diagnostics on: ``python -m experiments.train PRESET --out DIR``.

``--help`` lists the presets, ``PRESET --help`` every option with its default.
"""

import sys
from collections.abc import Sequence

from experiments.cli import parse_preset, run_command
from experiments.config import PRESETS, TrainConfig
from experiments.experiment import Experiment
from experiments.summary import print_summary


def train(config: TrainConfig) -> None:
    """Check everything, train every run, and print what came of it."""
    Experiment(config).run()
    print_summary(config.out)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 for bad input."""
    return run_command(train, lambda: parse_preset(PRESETS, "python -m experiments.train", args))


if __name__ == "__main__":
    sys.exit(main())
