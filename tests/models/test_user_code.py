"""Networks in folders of the user's: theirs in every layout, told apart from whatever else has their names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skip_conditioning.models.user_code import load_attribute

BLOCKS = "WIDTH = 7\n"
NET = """
from torch import nn
from {package}blocks import WIDTH

def factory():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, WIDTH), nn.Linear(WIDTH, 10))
"""
BUILD = """
import sys
from skip_conditioning.models import build_model
print(*(build_model(name)[1].out_features for name in sys.argv[1:]))
"""
PACKAGES = ("models", "experiments", "figures", "diagnostics", "tests")


def in_folder(folder: Path, *names: str, **environment: str) -> str:
    """What a process in a folder prints of the widths of networks of these names."""
    run = subprocess.run(
        # -P: like the installed command, without the current folder on the import path.
        [sys.executable, "-P", "-c", BUILD, *names],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    return run.stdout.strip() or run.stderr


def write_package(folder: Path, package: str, *, init: bool, module: str = "mynet") -> None:
    path = folder / package
    path.mkdir(parents=True)
    if init:
        (path / "__init__.py").touch()
    (path / "blocks.py").write_text(BLOCKS)
    (path / f"{module}.py").write_text(NET.format(package=f"{package}."))


@pytest.mark.parametrize("init", [True, False], ids=["init", "no-init"])
def test_packages_of_our_folders_names_are_the_users(tmp_path: Path, init: bool) -> None:
    for package in PACKAGES:
        write_package(tmp_path, package, init=init)
    for package in ("relative", "absolute"):
        write_package(tmp_path, package, init=init)
    names = (*(f"{package}.mynet" for package in PACKAGES), "relative/mynet.py", f"{tmp_path}/absolute/mynet.py")
    assert in_folder(tmp_path, *(f"{name}:factory" for name in names)) == "7 7 7 7 7 7 7"


def test_another_package_of_the_name_on_the_path_is_not_taken_for_it(tmp_path: Path) -> None:
    write_package(tmp_path / "site", "models", init=True, module="other")
    write_package(tmp_path / "mine", "models", init=False)
    assert in_folder(tmp_path / "mine", "models.mynet:factory", PYTHONPATH=str(tmp_path / "site")) == "7"


def test_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "blocks.py").write_text(BLOCKS)
    for file in ("models.py", "figures.py"):
        (tmp_path / file).write_text(NET.format(package=""))
    assert in_folder(tmp_path, "models:factory", "figures.py:factory") == "7 7"


@pytest.mark.parametrize("path", ["../else where/my-net.py", "nets.v2/my-net.py", "my-nets/my-net.py"])
def test_a_file_anywhere_finds_what_lies_beside_it(tmp_path: Path, path: str) -> None:
    (tmp_path / "here").mkdir()
    folder = (tmp_path / "here" / path).parent
    folder.mkdir()
    (folder / "my-net.py").write_text(
        NET.format(package="my-nets." if folder.name == "my-nets" else "").replace(
            "from my-nets.blocks import WIDTH", "WIDTH = 7"
        )
    )
    (folder / "blocks.py").write_text(BLOCKS)
    assert in_folder(tmp_path / "here", f"{path}:factory") == "7"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.net:factory", r"there is no module 'nowhere.net', neither in .* nor installed"),
        ("nowhere/net.py:factory", r"there is no file nowhere/net.py"),
        (".relative:factory", r"'.relative' is not the name of a module"),
        ("my.net.py:factory", r"no dot in it; rename my.net.py"),
        ("good:factry", r"good has no 'factry' \(did you mean factory\?\); it defines factory, OTHER$"),
        ("good:", r"good has no ''"),
        (
            "wants:factory",
            r"importing 'wants' raised ModuleNotFoundError: No module named 'missing' \(.*wants.py, line 2",
        ),
        ("typo.py:factory", r"importing 'typo' raised SyntaxError: .*typo.py, line 1"),
        ("stops:factory", r"importing 'stops' raised SystemExit: 3 \(.*stops.py, line 1\)"),
        ("json.py:factory", r"the name 'json' is taken by .*json/__init__.py; rename yours"),
    ],
)
def test_errors_say_what_cannot_be_imported_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("good.py").write_text("from pathlib import Path\nimport os\ndef factory(): pass\nOTHER = 1\n")
    Path("wants.py").write_text("\nimport missing\n")
    Path("typo.py").write_text("def (:\n")
    Path("stops.py").write_text("raise SystemExit(3)\n")
    Path("json.py").write_text("def factory(): pass\n")
    Path("my.net.py").touch()
    with pytest.raises(ImportError, match=message) as caught:
        load_attribute(name)
    assert "\n" not in str(caught.value)


def test_a_name_of_an_installed_package() -> None:
    from torch import nn

    assert load_attribute("torch.nn:Identity") is nn.Identity
