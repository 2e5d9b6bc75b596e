"""The command and its subcommands: what they say, and the exit codes of what they refuse."""

import subprocess
import sys

import pytest

from skip_conditioning import __version__
from skip_conditioning.__main__ import COMMANDS, main

NAMES = [name for group in COMMANDS.values() for name in group]


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]], ids=["nothing", "help", "h"])
def test_help_groups_the_subcommands_by_subject(args, capsys):
    assert main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: skip-conditioning COMMAND [OPTIONS]"
    for subject, group in COMMANDS.items():
        start = lines.index(f"{subject}:") + 1
        assert [line.split()[0] for line in lines[start : start + len(group)]] == list(group)
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_every_subcommand_explains_itself_by_the_name_it_has(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert f"usage: skip-conditioning {name}" in printed
    assert "python -m" not in printed


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "error: unknown command 'trian'; known are train, analyse"),
        (["trian"], "Did you mean 'train'"),
        (["--trian"], "error: unknown command '--trian'"),
        (["summary", "nowhere"], "error: nowhere is not a directory"),
        (["speed", "nowhere"], "error: nowhere is not a directory"),
        (["ratios", "nowhere"], "error: nowhere is not a directory"),
        (["figures", "nowhere"], "error: nowhere is not a directory"),
        (["analyse", "nowhere"], "error: nowhere does not exist"),
        (["analyse", "nowhere", "--at-step", "3"], "--at-step"),
        (["train", "dmo"], "error: unknown preset 'dmo'"),
        (["verify", "no-claim", "--out", "o"], "error: unknown claim 'no-claim'"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


def test_models_lists_the_networks(capsys):
    assert main(["models"]) == 0
    assert "preact-resnet18" in capsys.readouterr().out


def test_python_m_is_the_command(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "skip_conditioning", "trian"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: unknown command 'trian'")
