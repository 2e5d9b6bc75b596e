"""Command lines with odd values of their options: exit code 2 with one line, soon, or all checks are passed."""

import contextlib
import dataclasses
import io
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import huggingface_hub.constants

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments import spectrum_analysis, summary, train, verify
from skip_conditioning.experiments.config.options import (
    DataOptions,
    DiagnosticsOptions,
    NetworkOptions,
    OptimisationOptions,
    OutputOptions,
)
from skip_conditioning.figures import __main__ as figures
from tests.fuzz.kind import Made, WrongDataError

#: CPU time that a refusal may take.
_SECONDS = 2.0
_TRAIN = (
    *("demo", "--steps", "2", "--limit-test", "20", "--probe-size", "2", "--layers", "blocks.0"),
    *("--model-options", "depth=2", "width=8", "--device", "cpu", "--processes", "1"),
)
#: `--overwrite` removes what is in the folder, `--shortcuts` measures for half a minute.
_NEVER = frozenset({"overwrite", "shortcuts", "compile", "estimate"})

_VALUES = (
    *(
        "",
        " ",
        "nan",
        "-nan",
        "inf",
        "-1",
        "0",
        "1e30",
        "1e400",
        "9" * 5000,
        "0x10",
        "1_0",
        "٣",
        "1.5",
        "+3",
        "--",
        "-",
    ),
    *("None", "null", "True", "[1]", "{}", "(1,2)", "=", "a=", "=1", "depth=", "depth=-1", "depth=1e9", "width=x=y"),
    *(
        "depth=2 width=8",
        "no such",
        "os:system",
        "json:loads",
        "nosuch:x",
        ":",
        "a:b:c",
        "nosuch.py:f",
        "config.json:f",
    ),
    *(
        "x" * 300,
        "x" * 10**6,
        "a\0b",
        "a\nb",
        "\ud800",
        "\udcff",
        "🦆",
        "\x1b[31m",
        "../../etc/passwd",
        "/dev/null",
        "/dev/full",
    ),
    *(
        "/proc/nowhere",
        "file",
        "file/x",
        "link",
        "*",
        "**",
        "[",
        "blocks.*",
        "{0}",
        "%s",
        "$(id)",
        "`id`",
        "cuda:99",
        "meta",
    ),
    *(
        "cpu:7",
        "cuda",
        "xpu",
        "minst",
        "owner/name",
        "chain",
        "chian",
        "chain=0.1",
        "chain=nan",
        "@response",
        "layer",
        "demo",
    ),
)


@dataclasses.dataclass(frozen=True)
class _Command:
    """A command: what runs it, words that it needs, and its options."""

    main: Callable[[Sequence[str]], int]
    words: tuple[str, ...]
    options: tuple[str, ...]


class _AcceptedError(Exception):
    """All checks are passed, and the work would begin."""


def _options(*kinds: type) -> tuple[str, ...]:
    names = [option.name for kind in kinds for option in dataclasses.fields(kind) if option.name not in _NEVER]
    return tuple(f"--{name.replace('_', '-')}" for name in names)


def kind(experiment: Path) -> Made:
    """The kind of command lines, about a finished experiment where they need one."""
    groups = (DataOptions, NetworkOptions, OptimisationOptions, DiagnosticsOptions, OutputOptions)
    commands = (
        _Command(train.main, (*_TRAIN, "--out", "new"), _options(*groups)),
        _Command(verify.main, ("mnist-speed-order", "--out", "new"), _options(verify.VerifyOptions)),
        _Command(spectrum_analysis.main, (str(experiment),), _options(spectrum_analysis.Options)),
        _Command(figures.main, (str(experiment), "--out", "new"), _options(figures.Options)),
        _Command(summary.main, (str(experiment),), ("--out",)),
    )

    def make(folder: Path, source: random.Random) -> tuple[Path, _Command, list[str]]:
        (folder / "file").write_text("x")
        (folder / "link").symlink_to("nowhere")
        command = source.choice(commands)
        words = [*command.words]
        for _ in range(source.choice((1, 1, 2))):
            if source.random() < 0.1:
                words[source.randrange(len(words))] = source.choice(_VALUES)
            else:
                values = [source.choice(_VALUES) for _ in range(source.choice((0, 1, 1, 1, 1, 2)))]
                words += [source.choice(command.options), *values]
        return folder, command, words

    for command in commands:  # what is imported late is imported now
        with contextlib.redirect_stderr(io.StringIO()):
            command.main([*command.words, "--nosuch"])
    return Made("command lines", make, _run)


def _accept(*_: object, **__: object) -> None:
    raise _AcceptedError


def _run(given: tuple[Path, _Command, list[str]]) -> None:
    folder, command, words = given
    out, errors = io.StringIO(), io.StringIO()
    started = time.process_time()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(errors))
        for place, name in (
            *((train.Runner, "run_all"), (train, "run_in_processes"), (verify, "register"), (verify, "print_plan")),
            *((spectrum_analysis, "_measure"), (figures, "save")),
        ):
            stack.enter_context(patch.object(place, name, _accept))
        stack.enter_context(patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True))
        try:
            code = command.main(words)
        except (_AcceptedError, SystemExit):
            return
    seconds = time.process_time() - started
    lines = errors.getvalue().strip().split("\n")
    if code == 0 and command.main in (summary.main, figures.main):
        return
    if code != 2 or not lines[-1].startswith("error: ") or len(lines) > 1:
        raise WrongDataError(f"{words}: exit code {code}, {errors.getvalue()[-2000:]}")
    if seconds > _SECONDS:
        raise WrongDataError(f"{words}: {seconds:.1f} s")
    raise InputError(lines[-1])
