"""The kinds of files that are damaged, real ones of a small experiment, and the readers that are given them."""

import io
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from skip_conditioning.diagnostics.tables import SPECTRA, read_experiment, write_json
from skip_conditioning.diagnostics.tables.journal import Journal
from skip_conditioning.diagnostics.tables.parts import journal_path, parts_of, read_part
from skip_conditioning.experiments.analysis.probe_file import read_probe_file
from skip_conditioning.experiments.analysis.targets import check_probe, find_targets, load_probe
from skip_conditioning.experiments.claims.paper.registry import chosen_claims
from skip_conditioning.experiments.claims.run import preregistration
from skip_conditioning.experiments.claims.run.preregistration import Request, register
from skip_conditioning.experiments.data.image_decoding import open_image
from skip_conditioning.experiments.paired_ratios import Options as RatioOptions
from skip_conditioning.experiments.paired_ratios import print_ratios
from skip_conditioning.experiments.records.checkpoints import load_run
from skip_conditioning.experiments.records.directory import check_out, is_over
from skip_conditioning.experiments.records.fitting_weights import load_into
from skip_conditioning.experiments.speed import speed_table
from skip_conditioning.experiments.summary import print_summary
from skip_conditioning.experiments.train import main as train
from skip_conditioning.experiments.train import parse
from skip_conditioning.figures.__main__ import Options as FigureOptions
from skip_conditioning.figures.__main__ import draw
from skip_conditioning.models import build_model
from tests.fuzz import command_lines, image_sets, mutations, own_data, report_names, table_rows
from tests.fuzz.kind import Damaged, Kind, Made

_OPTIONS = (
    *("demo", "--arms", "chain", "residual", "--trials", "2", "--steps", "2", "--subset", "40", "--probe-size", "2"),
    *("--limit-test", "20", "--layers", "blocks.0", "--model-options", "depth=2", "width=8", "--lr", "0.1"),
    *("--processes", "1", "--device", "cpu"),
)
_CLAIMS = ("mnist-speed-order",)


def make_kinds(root: Path) -> list[Kind]:
    """Make the files in a folder, and list their kinds."""
    experiment = root / "experiment"
    assert train([*_OPTIONS, "--out", str(experiment)]) == 0
    run = sorted((experiment / "runs").iterdir())[0]
    claims = chosen_claims(_CLAIMS)
    register(root / "verify", Request(claims, "demo"))
    config = parse([*_OPTIONS, "--out", str(experiment), "--resume"])
    network = build_model("residual-mlp", arm="chain", depth=2, width=8, in_features=784, num_classes=10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def tables(_: Path) -> None:
        frames = read_experiment(experiment)
        speed_table(frames.runs, frames.metrics)
        print_summary(experiment)
        print_ratios(RatioOptions(experiment))

    def description(path: Path) -> None:
        tables(path)
        find_targets([experiment], [])[0].build()

    def status(path: Path) -> None:
        is_over(path.parent)
        tables(path)

    def options(path: Path) -> None:
        tables(path)
        check_out(config)

    def figures(_: Path) -> None:
        draw(FigureOptions(experiment, out=root / "figures"))

    def probe(path: Path) -> None:
        check_probe(network, load_probe(path, find_targets([experiment], [])[0], None))

    json_of, parquet_of = mutations.json_of, mutations.parquet_of
    checkpoints = sorted((run / "checkpoints").glob("step_*"))
    parts = sorted(path for table in ("metrics", "spectra") for path in (run / table).glob("*.parquet"))
    journal = _journal(run)
    return [
        Damaged("a run's config.json", [run / "config.json"], json_of, description),
        Damaged("a run's status.json", [run / "status.json"], json_of, status),
        Damaged("experiment.json", [experiment / "experiment.json"], json_of, options),
        Damaged(
            "registration",
            [root / "verify" / preregistration.FILE],
            registration_of,
            lambda path: register(path.parent, Request(claims, "demo")),
        ),
        Damaged("parts of tables", parts, parquet_of, tables),
        Damaged("journals of tables", [journal], mutations.lines_of, tables),
        Damaged("speed.parquet", [experiment / "speed.parquet"], parquet_of, tables),
        Damaged(
            "training states",
            sorted((run / "checkpoints").glob("state_*")),
            mutations.safetensors_of,
            lambda _: load_run(run, 2, network, optimizer),
        ),
        Damaged("checkpoints", checkpoints, mutations.safetensors_of, lambda path: load_into(network, path)),
        Damaged("weights of torch", _weights(root, network), mutations.bytes_of, lambda path: load_into(network, path)),
        Damaged("indices of shards", [_index(root, network)], json_of, lambda path: load_into(network, path)),
        Damaged("probes of NumPy", _probes(root), _numpy_of, probe),
        Damaged("probes of torch", [root / "probe.pt"], mutations.bytes_of, read_probe_file),
        Damaged(
            "the experiment's probe",
            [experiment / "probe.safetensors"],
            mutations.safetensors_of,
            lambda path: check_out(config) or load_probe(None, find_targets([experiment], [])[0], None),
        ),
        Damaged("images", _images(root), mutations.bytes_of, _decode),
        Damaged(
            "figures of damaged tables",
            [*parts, run / "config.json", experiment / "speed.parquet"],
            _any_of,
            figures,
            0.1,
        ),
        Made("image data in tables", image_sets.write_tables, image_sets.read),
        Made("image data in folders", image_sets.write_folders, image_sets.read),
        Made("rows of a table", table_rows.make, table_rows.read),
        command_lines.kind(experiment),
        own_data.kind(),
        report_names.kind(),
    ]


def registration_of(content: bytes, source: random.Random) -> bytes:
    """A registration that is changed, half of the time with hashes that are right again."""
    import json

    changed = mutations.json_of(content, source)
    if source.random() < 0.5:
        return changed
    try:
        tree = json.loads(changed)
        before = ""
        for entry in tree["entries"]:
            entry["sha256"] = before = preregistration._hash(entry["content"], before)
        return json.dumps(tree).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        return changed


def _any_of(content: bytes, source: random.Random) -> bytes:
    return (mutations.parquet_of if content[:4] == b"PAR1" else mutations.json_of)(content, source)


def _numpy_of(content: bytes, source: random.Random) -> bytes:
    if content[:2] == b"PK":
        return mutations.bytes_of(content, source)
    if source.random() < 0.4:
        file = io.BytesIO()
        np.save(file, mutations.array_of(source), allow_pickle=True)
        return file.getvalue()
    return mutations.npy_of(content, source)


def _journal(run: Path) -> Path:
    """Rows of spectra as a journal, as if the run had been killed before they became a part."""
    part = parts_of(run / "spectra")[0]
    path = journal_path(part.path.parent, part.number + 1)
    rows = [
        {key: value for key, value in row.items() if value is not None}
        for row in read_part(part.path, SPECTRA).to_pylist()
    ]
    Journal(path).append([{**row, "step": 1} for row in rows])
    return path


def _weights(root: Path, network: torch.nn.Module) -> list[Path]:
    contents = {"plain": network.state_dict(), "nested": {"model": network.state_dict(), "epoch": 3}}
    for name, content in contents.items():
        torch.save(content, root / f"{name}.pt")
    torch.save(network.state_dict(), root / "old.pth", _use_new_zipfile_serialization=False)
    return [root / "plain.pt", root / "nested.pt", root / "old.pth"]


def _index(root: Path, network: torch.nn.Module) -> Path:
    torch.save(network.state_dict(), root / "part.pt")
    path = root / "weights.pt.index.json"
    write_json({"metadata": {}, "weight_map": dict.fromkeys(network.state_dict(), "part.pt")}, path)
    return path


def _probes(root: Path) -> list[Path]:
    pixels = np.random.default_rng(0).random((2, 1, 28, 28), dtype=np.float32)
    np.save(root / "probe.npy", pixels)
    np.savez(root / "probe.npz", x=pixels, y=np.array([1, 2]))
    torch.save({"x": torch.from_numpy(pixels), "y": torch.tensor([1, 2])}, root / "probe.pt")
    return [root / "probe.npy", root / "probe.npz"]


def _images(root: Path) -> list[Path]:
    pixels = np.random.default_rng(0).integers(256, size=(28, 30, 3), dtype=np.uint8)
    paths = [root / f"image.{suffix}" for suffix in ("png", "jpg", "webp", "bmp", "tif", "ppm")]
    for path in paths:
        Image.fromarray(pixels).save(path)
    return paths


def _decode(path: Path) -> None:
    open_image(str(path), {"bytes": None, "path": str(path)})
