"""The command and its subcommands: what they say, and the exit codes of what they refuse."""

import subprocess
import sys

import pytest

from skip_conditioning import __version__
from skip_conditioning.__main__ import COMMANDS, main
from skip_conditioning.command_line import with_plain_ends

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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "demo", "--out", ""], "the value after --out is empty"),
        (["analyse", ""], "is empty"),
        (["figures", "runs", "--out", "a" * 300], "the value after --out has a name of 300 bytes"),
        (["verify", "--out", "a\0b"], "the value after --out has a NUL character"),
        (["train", "demo", "--out", "o", "--trials", "1" + 30 * "0"], "--trials must be at most 1,000,000,000,000"),
        (["verify", "mnist-speed-order", "--out", "o", "--trials", "1" + 30 * "0"], "--trials is 1000"),
    ],
)
def test_values_that_nothing_can_have(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "code"), [(BrokenPipeError(), 141), (OSError(28, "full"), 2), (MemoryError(), 2)])
def test_what_the_surroundings_refuse_is_a_line_at_most(error, code, capsys, monkeypatch):
    def refused():
        raise error

    monkeypatch.setattr("skip_conditioning.command_line._drop_output", lambda: None)
    assert with_plain_ends(refused) == code
    assert capsys.readouterr().err.count("\n") == (code != 141)


def test_a_pipe_that_is_closed_ends_quietly():
    command = f"{sys.executable} -m skip_conditioning models | head -1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert ended.stderr == ""


@pytest.mark.parametrize("streams", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_reason_to_fail(streams, tmp_path):
    command = f'"{sys.executable}" -m skip_conditioning summary nowhere {streams}'
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=False).returncode == 2
    command = f'"{sys.executable}" -m skip_conditioning models {streams}'
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_a_current_folder_that_is_gone_is_named(tmp_path):
    script = f'mkdir gone; cd gone; rmdir ../gone; "{sys.executable}" -m skip_conditioning models'
    result = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the current folder cannot be used")
    assert len(result.stderr.splitlines()) == 1
