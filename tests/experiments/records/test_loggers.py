"""TensorBoard and W&B hold the numbers of the tables; they are optional, and so are their tests."""

import json
import struct
import sys

import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.experiments.records.loggers import check_loggers, open_loggers
from skip_conditioning.experiments.train import main

RUN = "runs/plain-lr0.1-trial00"


def tensorboard_scalars(directory):
    """Values by tag and step, as TensorBoard shows them; no step twice."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(directory / RUN / "tensorboard"))
    events.Reload()
    measured = {}
    for tag in events.Tags()["scalars"]:
        rows = events.Scalars(tag)
        measured[tag] = {row.step: row.value for row in rows}
        assert len(measured[tag]) == len(rows), f"{tag} has steps twice"
    return measured


def wandb_rows(directory):
    """What each offline run logged, row by row, in the order in which they were written."""
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    for file in sorted(directory.glob(f"{RUN}/wandb/offline-run-*/run-*.wandb")):
        for data in leveldb_records(file.read_bytes()):
            record = protocol.Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                items = record.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def leveldb_records(content):
    """Records of a log in LevelDB's format, in which W&B writes: blocks of 32 KiB, the first after a 7-byte header."""
    place, record = 7, b""
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        if left < 7:  # padding
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def check(scalars, directory):
    """Compare values by tag and step with the tables."""
    tables = read_experiment(directory)
    for split, names in (("train", ("loss", "accuracy", "lr")), ("test", ("loss", "accuracy"))):
        rows = tables.metrics[tables.metrics["split"] == split].set_index("step")
        for name in names:
            assert scalars[f"{split}/{name}"] == pytest.approx(rows[name].to_dict(), rel=1e-5)
    spectra = tables.spectra.set_index("step")
    assert len(spectra) == 7
    for name in ("sigma_min", "sigma_mean", "condition_number"):
        assert scalars[f"1/{name}"] == pytest.approx(spectra[name].to_dict(), rel=1e-5)


def stop(train, small, monkeypatch, out, *options):
    """Train until a Ctrl-C between checkpoints."""

    def interrupt(progress, step, *_):
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("skip_conditioning.experiments.training.step_log.ProgressBar.__call__", interrupt)
        assert main([*small, "--out", out, *options]) == 130


def test_tensorboard_has_the_tables_numbers_also_after_a_resumption(train, small, monkeypatch):
    pytest.importorskip("tensorboard")
    whole = train("whole", "--log", "tensorboard")
    check(tensorboard_scalars(whole), whole)
    stop(train, small, monkeypatch, "stopped", "--log", "tensorboard")
    check(tensorboard_scalars(train("stopped", "--log", "tensorboard", "--resume")), whole)


def test_wandb_has_the_tables_numbers_also_after_a_resumption(train, small, monkeypatch):
    pytest.importorskip("wandb")
    stop(train, small, monkeypatch, "stopped", "--log", "wandb")
    out = train("stopped", "--log", "wandb", "--resume")
    scalars = {}
    for row in wandb_rows(out):
        for name, value in row.items():
            scalars.setdefault(name, {})[row["step"]] = value
    check(scalars, out)
    folders = [path.name for path in out.glob(f"{RUN}/wandb/offline-run-*")]
    assert len({name.rpartition("-")[2] for name in folders}) == 1 < len(folders)


@pytest.mark.parametrize("service", ["tensorboard", "wandb"])
def test_logging_changes_nothing(train, same_results, service):
    pytest.importorskip(service)
    options = ("--model", "nets:dropout", "--arms", "default")
    same_results(train("without", *options), train("with", *options, "--log", service))


def test_nothing_is_imported_or_written_unasked(train):
    out = train("out")
    assert not [*out.rglob("tensorboard"), *out.rglob("wandb")]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'skip-conditioning\[tensorboard\]'"):
        open_loggers(("tensorboard",), tmp_path, 0)


def test_a_log_whose_package_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(InputError, match=rf"--log {name} .*pip install 'skip-conditioning\[{name}\]'"):
            check_loggers((name,))


def test_a_folder_named_like_a_package_is_not_that_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(InputError, match="--log wandb"):
        check_loggers(("wandb",))
