"""Networks in folders of the user's: theirs in every layout, told apart from whatever else has their names."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from skip_conditioning.models.user_code import load_attribute
from tests.processes import ROOT, run_forked

BLOCKS = "WIDTH = 7\n"
NET = """
from torch import nn
from {package}blocks import WIDTH

def factory():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, WIDTH), nn.Linear(WIDTH, 10))
"""
#: As in the installed command, neither the folder of these tests nor the current one is on the import path.
BUILD = """
import os, sys
from skip_conditioning.models import build_model
tests, folder, site, *names = sys.argv[1:]
os.chdir(folder)
sys.path[:] = [*([site] if site else []), *(path for path in sys.path if path not in ("", tests))]
print(*(build_model(name)[1].out_features for name in names))
"""
PACKAGES = ("models", "experiments", "figures", "diagnostics", "tests")


def write_package(folder: Path, package: str, *, init: bool, module: str = "mynet") -> None:
    path = folder / package
    path.mkdir(parents=True)
    if init:
        (path / "__init__.py").touch()
    (path / "blocks.py").write_text(BLOCKS)
    (path / f"{module}.py").write_text(NET.format(package=f"{package}."))


def packages_of_our_folders_names(folder: Path, init: bool) -> list[str]:
    for package in PACKAGES:
        write_package(folder, package, init=init)
    for package in ("relative", "absolute"):
        write_package(folder, package, init=init)
    return [*(f"{package}.mynet" for package in PACKAGES), "relative/mynet.py", f"{folder}/absolute/mynet.py"]


def another_package_of_the_name_on_the_path(folder: Path) -> list[str]:
    write_package(folder / "site", "models", init=True, module="other")
    write_package(folder, "models", init=False)
    return ["models.mynet"]


def single_files(folder: Path) -> list[str]:
    (folder / "blocks.py").write_text(BLOCKS)
    for file in ("models.py", "figures.py"):
        (folder / file).write_text(NET.format(package=""))
    return ["models", "figures.py"]


def a_file_beside_which_another_lies(folder: Path, path: str) -> list[str]:
    place = (folder / path).parent
    place.mkdir()
    (place / "blocks.py").write_text(BLOCKS)
    (place / "my-net.py").write_text(NET.format(package="") if place.name != "my-nets" else NET.replace(
        "from {package}blocks import WIDTH", "WIDTH = 7"
    ))  # fmt: skip
    return [path]


LAYOUTS: dict[str, Callable[[Path], list[str]]] = {
    "packages": partial(packages_of_our_folders_names, init=True),
    "packages without __init__": partial(packages_of_our_folders_names, init=False),
    "another package of the name": another_package_of_the_name_on_the_path,
    "single files": single_files,
    "outside": partial(a_file_beside_which_another_lies, path="../else where/my-net.py"),
    "dotted folder": partial(a_file_beside_which_another_lies, path="nets.v2/my-net.py"),
    "folder that is no name": partial(a_file_beside_which_another_lies, path="my-nets/my-net.py"),
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """What a process in the folder of each layout prints of the widths of its networks, and how many these are."""
    arguments, counts = [], []
    for layout, write in LAYOUTS.items():
        folder = tmp_path_factory.mktemp("layout") / layout
        folder.mkdir()
        names = write(folder)
        site = folder / "site"
        counts.append(len(names))
        arguments.append([str(ROOT), str(folder), str(site) if site.exists() else "", *(f"{n}:factory" for n in names)])
    done = run_forked(BUILD, arguments, tmp_path_factory.mktemp("output"), imports=["skip_conditioning.models"])
    texts = [out.strip() or errors for _, out, errors in done]
    return dict(zip(LAYOUTS, zip(texts, counts, strict=True), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_networks_of_every_layout_are_the_users(printed: dict[str, tuple[str, int]], layout: str) -> None:
    text, count = printed[layout]
    assert text == " ".join(["7"] * count)


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
