"""Two processes never write one directory."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.records.directory import LOCK, check_unlocked, locked
from skip_conditioning.experiments.train import main


def hold_until_killed(directory, connection):
    with locked(Path(directory)):
        connection.send("held")
        time.sleep(60)


@pytest.fixture
def hold():
    """Let another process hold the lock of a directory; forked, as starting one anew takes seconds."""
    processes, context = [], multiprocessing.get_context("fork")

    def start(directory):
        ours, theirs = context.Pipe()
        process = context.Process(target=hold_until_killed, args=(directory, theirs))
        process.start()
        processes.append(process)
        assert ours.poll(60)
        assert ours.recv() == "held"
        return process

    yield start
    for process in processes:
        kill(process)


def kill(process):
    process.kill()
    process.join()


def test_held_by_another_process_until_it_is_killed(tmp_path, hold):
    process = hold(tmp_path)
    said = rf"{tmp_path} is being written by another process \(pid {process.pid} on host .+\); wait .* another --out"
    with pytest.raises(InputError, match=said), locked(tmp_path):
        pass
    with pytest.raises(InputError, match=said):
        check_unlocked([tmp_path / "other", tmp_path])
    kill(process)
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path), pytest.raises(InputError, match=f"pid {os.getpid()} on"), locked(tmp_path):
        pass
    assert not [*tmp_path.iterdir()]


def test_checking_removes_what_a_killed_process_left_and_makes_nothing(tmp_path, hold):
    kill(hold(tmp_path / "killed"))
    check_unlocked([tmp_path / "killed", tmp_path / "new", tmp_path])
    assert [*tmp_path.rglob("*")] == [tmp_path / "killed"]


def test_lock_is_released_when_something_goes_wrong(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "made"):
        raise ZeroDivisionError
    assert [*tmp_path.rglob("*")] == [tmp_path / "made"]


def test_file_that_its_holder_removed_is_not_locked(tmp_path, monkeypatch):
    """Opened just before its holder removes it, a file is no lock any more: the next one is taken."""
    opened, holder = os.open, locked(tmp_path)
    holder.__enter__()

    def open_then_release(path, flags, *mode):
        file = opened(path, flags, *mode)  # fails where it is to be a new file
        monkeypatch.setattr(os, "open", opened)
        holder.__exit__(None, None, None)
        return file

    monkeypatch.setattr(os, "open", open_then_release)
    with locked(tmp_path), pytest.raises(InputError, match="another process"), locked(tmp_path):
        pass


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file.*another path"), locked(tmp_path / "file"):
        pass


@pytest.mark.parametrize("place", ["o", "o/runs/plain-lr0.1-trial00"])
def test_training_refuses_a_directory_that_another_process_writes(train, small, hold, capsys, place):
    train("o")
    process = hold(place)
    before = sorted(Path("o").rglob("*"))
    for more in ([], ["--resume"], ["--overwrite"]):
        capsys.readouterr()
        assert main([*small, "--out", "o", "--trials", "2", *more]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert f"{place} is being written by another process (pid {process.pid}" in err
        assert sorted(Path("o").rglob("*")) == before
    kill(process)
    assert main([*small, "--out", "o", "--trials", "2", "--resume"]) == 0
    assert not [*Path("o").rglob(".*")]


@pytest.mark.slow
def test_second_command_fails_at_once_and_the_first_goes_on(train, small, start, same_results, capsys):
    options = ("--steps", "300", "--no-diagnostics")
    process = start("--out", "o", *options)
    while not Path("o/runs/plain-lr0.1-trial00", LOCK).exists():
        assert process.poll() is None
        time.sleep(0.005)
    for more in ([], ["--resume"], ["--overwrite"]):
        assert main([*small, "--out", "o", *options, *more]) == 2
        assert f"o is being written by another process (pid {process.pid}" in capsys.readouterr().err
    assert read_experiment("o").runs["run_id"].tolist() == ["plain-lr0.1-trial00"]
    process.communicate(timeout=60)
    assert process.returncode == 0
    same_results(train("whole", *options), Path("o"))


def test_what_a_process_killed_at_its_start_left_is_no_hindrance(train, hold):
    kill(hold("o"))
    assert read_experiment(train("o")).runs["status"].tolist() == ["finished"]
