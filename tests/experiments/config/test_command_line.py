import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.command_line import parse_options, parse_preset, run_command
from skip_conditioning.models import ModelOptionError


@dataclass(frozen=True)
class Options:
    """What to do."""

    place: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Where to."""

    count: int = 3
    """How often."""

    colour: Literal["red", "green"] = "red"
    """Which."""


PRESETS = {"small": ("A few.", Options(Path("a"), 1)), "large": ("Many.", Options(Path("b"), 100))}


def refusal(parse):
    with pytest.raises(InputError) as caught:
        parse()
    assert "\n" not in str(caught.value)
    assert not {*"│╭╰─"} & {*str(caught.value)}
    return str(caught.value)


def test_options():
    assert parse_options(Options, "prog", ["here", "--count", "4"]) == Options(Path("here"), 4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["DIR", "--help"]),
        (["here", "--cuont", "4"], ["--cuont"]),
        (["here", "--count", "four"], ["--count", "four"]),
        (["here", "--count"], ["--count"]),
        (["here", "--colour", "blue"], ["--colour", "blue", "red", "green"]),
        (["here", "there"], ["there"]),
    ],
)
def test_bad_options_are_told_in_one_line(args, words):
    message = refusal(lambda: parse_options(Options, "prog", args))
    assert all(word in message for word in words), message


def test_a_terminal_without_box_characters_gets_one_line_too(capsys):
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="ascii")):
        message = refusal(lambda: parse_options(Options, "prog", ["here", "--count", "four"]))
    assert message == "Error parsing --count: invalid literal for int() with base 10: 'four'; see --help"


def test_presets():
    assert parse_preset(PRESETS, "prog", ["large", "--count", "9"]).count == 9
    assert "small, large" in refusal(lambda: parse_preset(PRESETS, "prog", []))
    assert "Did you mean 'small'" in refusal(lambda: parse_preset(PRESETS, "prog", ["smal"]))
    assert "'here'" in refusal(lambda: parse_preset(PRESETS, "prog", ["here"]))


def test_help_is_printed_and_ends_well(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_preset(PRESETS, "prog", ["small", "--help"])
    assert stop.value.code == 0
    assert "How often. (default: 1)" in capsys.readouterr().out


def exit_code(error):
    def main(options):
        if error:
            raise error

    return run_command(main, lambda: None)


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (None, 0, ""),
        (InputError("it is bad"), 2, "error: it is bad\n"),
        (ModelOptionError("no such\nmodel"), 2, "error: no such model\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("go on"), 130, "interrupted; go on\n"),
    ],
)
def test_exit_codes(error, code, printed, capsys):
    assert exit_code(error) == code
    assert capsys.readouterr() == ("", printed)


def test_errors_in_the_program_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        exit_code(ZeroDivisionError())
