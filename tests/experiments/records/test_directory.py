import json
import os
from pathlib import Path

import pytest
import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.presets import preset
from skip_conditioning.experiments.records.directory import check_out, is_over, prepare_out, read_probe, write_status

PROBE = (torch.rand(2, 1, 4, 4), torch.tensor([3, 1]))


def config(out, **options):
    return preset("demo", out=out, **options)


@pytest.fixture
def made(tmp_path):
    """An experiment's directory."""
    out = tmp_path / "an experiment"
    prepare_out(config(out), PROBE)
    (out / "runs" / "a").mkdir(parents=True)
    (out / "runs" / "a" / "config.json").write_text("{}")
    return out


def refusal(options, processes=1):
    before = contents(options.output.out)
    with pytest.raises(InputError) as caught:
        check_out(options, processes)
    assert contents(options.output.out) == before
    assert "\n" not in str(caught.value)
    assert str(options.output.out) in str(caught.value) or "--resume" in str(caught.value)
    return str(caught.value)


def contents(directory):
    return sorted(directory.rglob("*")) if directory.is_dir() else directory.exists()


def test_new_and_empty_directories_are_fine(tmp_path):
    for out in (tmp_path / "new", tmp_path / "new" / "deeper", tmp_path, Path("relative")):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            check_out(config(out, **options))
    assert not contents(tmp_path)


def test_probe_and_options_are_kept(made):
    x, y = read_probe(made)
    assert torch.equal(x, PROBE[0])
    assert torch.equal(y, PROBE[1])
    assert torch.equal(read_probe(made / "runs" / "a")[0], x)
    options = json.loads((made / "experiment.json").read_text())
    assert options["optimisation"]["lr"] == [0.02, 0.1, 0.5]
    assert options["output"]["out"] == str(made)


def test_existing_experiment_needs_a_word(made):
    assert "--resume" in refusal(config(made))
    assert "--overwrite" in refusal(config(made))
    check_out(config(made, resume=True))
    check_out(config(made, overwrite=True))
    assert "give one of them" in refusal(config(made, resume=True, overwrite=True))


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_what_is_no_experiment_is_never_touched(tmp_path, options):
    (tmp_path / ".git").mkdir()
    assert "holds no experiment" in refusal(config(tmp_path, **options))
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds no experiment" in refusal(config(tmp_path, **options))
    assert "is a file" in refusal(config(tmp_path / "thesis.tex", **options))
    assert "is a file" in refusal(config(tmp_path / "thesis.tex" / "out", **options))


def test_killed_at_its_very_start_an_experiment_can_be_started_again(tmp_path):
    (tmp_path / ".experiment.json.tmp").write_text("{")
    check_out(config(tmp_path))
    prepare_out(config(tmp_path), PROBE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.json", "probe.safetensors"]
    (tmp_path / "probe.safetensors").unlink()
    prepare_out(config(tmp_path, resume=True), PROBE)
    assert torch.equal(read_probe(tmp_path)[0], PROBE[0])


def test_overwriting_removes_everything(made):
    (made / "notes").write_text("old")
    prepare_out(config(made, overwrite=True), PROBE)
    assert sorted(path.name for path in made.iterdir()) == ["experiment.json", "probe.safetensors"]


def test_overwriting_that_was_interrupted_can_be_repeated(made, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_out(config(made, overwrite=True), PROBE)
    check_out(config(made, overwrite=True))


def test_overwriting_through_a_link_keeps_the_link_and_what_links_in_it_point_to(made, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (made / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "latest").symlink_to(made)
    prepare_out(config(tmp_path / "latest", overwrite=True), PROBE)
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "precious" / "file").exists()
    assert not (made / "link").exists()


def test_resuming_discards_half_written_files(made):
    names = (".config.json.tmp", ".step_000000002.safetensors.77.tmp", ".tmpBExx2G")
    leftovers = [made / "runs" / "a" / name for name in names]
    for leftover in leftovers:
        leftover.write_text("half")
    prepare_out(config(made, resume=True), PROBE)
    assert not any(leftover.exists() for leftover in leftovers)
    assert (made / "runs" / "a" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"seed": 3}, "seed 0 → 3"),
        ({"batch_size": 8}, "batch-size None → 8"),
        ({"model_options": ("depth=4",)}, "model-options ['depth=16', 'normaliser=batch'] → ['depth=4']"),
        ({"experiment": "mine", "steps": 7}, "steps 60 → 7, experiment demo → mine"),
        ({"layers": ("head",)}, "layers None → ['head']"),
    ],
)
def test_resuming_with_other_options_shows_the_difference(made, options, difference):
    assert difference in refusal(config(made, resume=True, **options))


def test_resuming_with_another_number_of_processes_shows_the_difference(made):
    assert "torchrun-processes 1 → 2" in (message := refusal(config(made, resume=True), 2))
    assert "→" not in message.replace("torchrun-processes 1 → 2", "")
    prepare_out(config(made, resume=True), PROBE, processes=2)
    check_out(config(made, resume=True), processes=2)
    assert "torchrun-processes 2 → 1" in refusal(config(made, resume=True), 1)


def test_what_may_change_on_resuming(made, tmp_path):
    changed = {"trials": 7, "lr": (0.3,), "arms": ("chain",), "device": "cpu", "data_dir": tmp_path}
    before = contents(made)
    check_out(config(made, resume=True, **changed))
    assert contents(made) == before
    moved = made.rename(tmp_path / "moved")
    check_out(config(moved, resume=True))
    assert [path.relative_to(moved) for path in contents(moved)] == [path.relative_to(made) for path in before]


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_damaged_description(made, content):
    (made / "experiment.json").write_text(content)
    assert "experiment.json" in refusal(config(made, resume=True))
    check_out(config(made, overwrite=True))


def test_directory_that_cannot_be_written(tmp_path, monkeypatch):
    # The test may run as root, to whom nothing is forbidden.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert f"{tmp_path} is not writable" in refusal(config(tmp_path / "new"))


def test_directory_that_cannot_be_made(made, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"cannot be used \(Permission denied\)"):
        prepare_out(config(made / "new"), PROBE)


def test_missing_and_damaged_probe(made, tmp_path):
    with pytest.raises(InputError, match=r"has no probe\.safetensors"):
        read_probe(tmp_path)
    (made / "probe.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="cannot be read"):
        read_probe(made)


def test_only_finished_and_diverged_runs_are_over(tmp_path):
    for status, over in {"running": False, "failed": False, "finished": True, "diverged": True}.items():
        write_status(tmp_path, status, seconds=3.5)
        assert is_over(tmp_path) is over
    (tmp_path / "status.json").write_text("{")
    assert not is_over(tmp_path)
    (tmp_path / "status.json").unlink()
    assert not is_over(tmp_path)
