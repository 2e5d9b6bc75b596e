"""The command ``skip-conditioning``: one subcommand for each job, each the same as its module."""

import importlib
import os
import sys
from collections.abc import Sequence

#: Subcommands by subject: what each is for, and the module whose ``main`` it calls.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Train and measure": {
        "train": ("train the networks of an experiment with diagnostics on, from a preset", "experiments.train"),
        "analyse": ("measure the spectra of saved checkpoints", "experiments.spectrum_analysis"),
        "sweep": ("the same as train on a Slurm cluster, one job for each run", "experiments.sweep"),
    },
    "See the results": {
        "figures": ("draw the figures of an experiment", "figures.__main__"),
        "summary": ("print the conditioning and speed of each arm and learning rate", "experiments.summary"),
        "speed": ("print and write how fast each run trained", "experiments.speed"),
        "ratios": ("compare the arms of an experiment in pairs, with intervals", "experiments.paired_ratios"),
    },
    "Test claims": {
        "verify": ("test the claims of the paper, or one of your own", "experiments.verify"),
        "theory": ("check the statements of the theory while networks train", "experiments.theory.__main__"),
    },
    "List what there is": {
        "models": ("list the networks, their arms and their options", "models.__main__"),
    },
}


def usage() -> str:
    """The text of ``--help``: what each subcommand is for, grouped by subject."""
    width = max(len(name) for group in COMMANDS.values() for name in group)
    lines = [
        "usage: skip-conditioning COMMAND [OPTIONS]",
        "",
        "Why does this network train fast? Measures the conditioning of its layers while it trains.",
    ]
    for subject, group in COMMANDS.items():
        lines += ["", f"{subject}:", *(f"  {name:{width}}  {purpose}" for name, (purpose, _) in group.items())]
    return "\n".join([*lines, "", "skip-conditioning COMMAND --help explains the options of one command."])


def main(args: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        args: The words after ``skip-conditioning``; by default those of the command line.

    Returns:
        Its exit code: 0, 2 for bad input, 130 if interrupted.

    Raises:
        SystemExit: After ``COMMAND --help``, code 0.
    """
    # Before torch is imported, which ends the process where it cannot find its own files.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open until the end)
    try:
        os.getcwd()
    except OSError as error:
        print(f"error: the current folder cannot be used ({error.strerror}); change to another", file=sys.stderr)
        return 2
    from skip_conditioning.command_line import with_plain_ends

    words = [*(sys.argv[1:] if args is None else args)] or ["--help"]
    return with_plain_ends(lambda: _run(*words))


def _run(name: str, *rest: str) -> int:
    if name in ("--help", "-h"):
        print(usage())
        return 0
    os.environ["MPLBACKEND"] = "agg"  # figures are written to files; a notebook's own backend is no use here
    from skip_conditioning import __version__
    from skip_conditioning.diagnostics.errors import near_matches

    if name == "--version":
        print(__version__)
        return 0
    commands = {name: module for group in COMMANDS.values() for name, (_, module) in group.items()}
    if name not in commands:
        hint = near_matches(name, commands)
        print(f"error: unknown command {name!r}; known are {', '.join(commands)}.{hint}", file=sys.stderr)
        return 2
    return importlib.import_module(f"skip_conditioning.{commands[name]}").main([*rest])


if __name__ == "__main__":
    code = main()
    if "RANK" in os.environ:  # torchrun's
        from skip_conditioning.experiments.processes.group import leave

        leave(code)
    sys.exit(code)
