"""What an installation brings and what it leaves alone, for the wheel and for the editable install.

The environments see the packages of the one that runs the tests, so that nothing is downloaded.
"""

import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import skip_conditioning
from skip_conditioning.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
FOLDERS = ("skip_conditioning", "diagnostics", "models", "experiments", "figures")
THEIRS = ("models", "experiments", "figures", "diagnostics", "tests")
NETWORK = """
from torch import nn

def factory():
    return nn.Sequential(nn.Flatten(), Block(784, 8), nn.ReLU(), Block(8, 10))
"""
BLOCK = "from torch import nn\n\nclass Block(nn.Linear):\n    pass\n"
TRAIN = """
import torch
from skip_conditioning import SpectrumMonitor, read_experiment
import diagnostics, experiments, figures, models, tests

here = __file__.rpartition("/")[0]
for module in (diagnostics, experiments, figures, models, tests):
    assert (module.__file__ or [*module.__path__][0]).startswith(here), module

from {module} import factory

model = factory()
x, y = torch.randn(16, 784), torch.randint(10, (16,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with SpectrumMonitor(model, probe=(x[:4], y[:4]), out="runs/mine", max_overhead=None) as monitor:
    for step in range(2):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        monitor.step(step, loss=loss)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
assert set(read_experiment("runs/mine").spectra["layer"]) >= {{"1", "3"}}
torch.save(model.state_dict(), "weights.pt")
"""
# Runs scripts, each in a process of its own as Python starts it; what takes long to import is imported once for all.
SCRIPTS = """
import json, os, runpy, sys
import datasets, pandas, pyarrow.parquet, scipy.stats, seaborn, sklearn.datasets, torch._dynamo, torch.func, tyro

for folder, script, *words in json.loads(sys.argv[1]):
    print("$", script, *words, flush=True)
    child = os.fork()
    if not child:
        os.chdir(folder)
        sys.path[0], sys.argv = os.path.dirname(script), [script, *words]
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit("failed: " + " ".join((script, *words)))
"""


def run(*command: object, folder: Path) -> str:
    """Run a command in a folder, without this environment's variables; return what it prints."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP", "VIRTUAL"))}
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*words: object, folder: Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *words, folder=folder)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, as building writes into it."""
    folder = tmp_path_factory.mktemp("tree")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "gallery"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, tree, folder=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session", params=["wheel", "editable"])
def environment(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with this package in it."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import site; print(*site.getsitepackages())", folder=folder).strip())
    # Lines of .pth files in that folder are not read, so the package that is installed there stays out of sight.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    package = ["--editable", tree] if request.param == "editable" else [request.getfixturevalue("wheel")]
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    pip("--python", python, "install", *options, *package, folder=folder)
    (folder / "scripts.py").write_text(SCRIPTS)
    return folder


def write_users_folder(folder: Path, layout: str) -> tuple[str, str]:
    """Write modules called like our folders; return the module and the file of their network."""
    folder.mkdir(exist_ok=True)
    for name in THEIRS:
        if layout == "files":
            (folder / f"{name}.py").write_text(BLOCK + NETWORK)
            continue
        (folder / name).mkdir()
        (folder / name / "blocks.py").write_text(BLOCK)
        (folder / name / "mynet.py").write_text(f"from {name}.blocks import Block\n" + NETWORK)
        if layout == "packages":
            (folder / name / "__init__.py").touch()
    return ("models", "models.py") if layout == "files" else ("models.mynet", "models/mynet.py")


def run_scripts(environment: Path, *lines: tuple[object, ...]) -> str:
    """Run scripts with their words, each from the folder named first; return what they print."""
    lines = [[*map(str, line)] for line in lines]
    return run(environment / "bin" / "python", environment / "scripts.py", json.dumps(lines), folder=environment)


def check_the_users_modules(environment: Path, tmp_path: Path, layouts: tuple[str, ...]) -> None:
    """Run the user's script and training of the user's network, by module and by file, in folders of these layouts."""
    command = environment / "bin" / "skip-conditioning"
    small = ("--steps", "1", "--trials", "1", "--lr", "0.1", "--arms", "default", "--model-options", "--no-diagnostics")
    lines = []
    for layout in layouts:
        folder = tmp_path / layout
        module, file = write_users_folder(folder, layout)
        (folder / "train.py").write_text(TRAIN.format(module=module))
        train = (folder, command, "train", "paper-mnist", "--dataset", "digits", *small)
        lines += [
            (folder, folder / "train.py"),
            (*train, "--model", f"{module}:factory", "--out", "by-module"),
            (*train, "--model", f"{file}:factory", "--out", "by-file"),
        ]
    run_scripts(environment, *lines)
    assert len({path.parents[2] for path in tmp_path.glob("*/by-*/runs/*/metrics/*.parquet")}) == 2 * len(layouts)


def test_what_is_called_like_our_folders_stays_the_users(environment: Path, tmp_path: Path) -> None:
    check_the_users_modules(environment, tmp_path, ("folders",))


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["wheel"], indirect=True)
def test_so_do_packages_and_single_files(environment: Path, tmp_path: Path) -> None:
    check_the_users_modules(environment, tmp_path, ("packages", "files"))


# What the editable install adds, finding the folders, is tested above.
@pytest.mark.slow
@pytest.mark.parametrize("environment", ["wheel"], indirect=True)
def test_every_subcommand_works_in_a_users_folder(environment: Path, tmp_path: Path) -> None:
    write_users_folder(tmp_path, "folders")
    command = environment / "bin" / "skip-conditioning"
    names = [name for group in COMMANDS.values() for name in group]
    small = ["--steps", "2", "--trials", "1", "--lr", "0.1", "--arms", "chain", "residual", "--layers", "blocks.0"]
    network = ["--model-options", "depth=2", "width=8", "--subset", "32"]
    for_real = [
        ["train", "demo", "--out", "runs/demo", *network, *small],
        ["figures", "runs/demo", "--only", "loss_curves"],
        ["summary", "runs/demo"],
        ["speed", "runs/demo"],
        ["ratios", "runs/demo"],
        ["analyse", "runs/demo", "--map", "layer", "--layers", "blocks.0"],
    ]
    lines = [["--version"], ["models"], *for_real]
    lines += [[name, "--help"] for name in sorted(set(names) - {line[0] for line in lines})]
    printed = run_scripts(environment, *((tmp_path, command, *line) for line in lines))
    expected = (skip_conditioning.__version__, "preact-resnet18", "usage: skip-conditioning")
    assert all(words in printed for words in expected)
    assert "κ" in printed
    assert [*(tmp_path / "runs" / "demo" / "figures").glob("*.png")]
    assert [*(tmp_path / "runs" / "demo" / "analysis" / "spectra").glob("*.parquet")]


def test_the_wheel_holds_one_package_with_everything_in_it(tree: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (
            archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")
        )
    sources = {path.relative_to(tree) for folder in FOLDERS for path in (tree / folder).rglob("*") if path.is_file()}
    kinds = (".py", ".pyi", ".jinja", ".typed")
    expected = {
        ("" if path.parts[0] == "skip_conditioning" else "skip_conditioning/") + path.as_posix()
        for path in sources
        if path.suffix in kinds or path.name in kinds
    }
    assert files == expected
    assert entry_points.split() == ["[console_scripts]", "skip-conditioning", "=", "skip_conditioning.__main__:main"]


def test_setup_lists_every_folder_of_modules() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    parents = [path.parent.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    packages = sorted(
        ".".join(("skip_conditioning", *parent.parts)) for parent in parents if parent.parts[0] != "skip_conditioning"
    )
    assert setup["options"]["packages"].split() == ["skip_conditioning", *packages]
