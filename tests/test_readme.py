import re
from pathlib import Path

import pytest

from skip_conditioning.experiments.verify import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKS = [
    (page, target)
    for page in PAGES
    for target in sorted(set(re.findall(r"\]\(([^)h][^)]*)\)", page.read_text())))
    if not target.startswith("#")
]


def run_examples(page, count):
    """Run the Python blocks of a page one after another, as a reader would."""
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert len(blocks) == count
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_examples(ROOT / "README.md", 11)
    printed = capsys.readouterr().out
    assert "condition_number" in printed
    assert "torch.Size([96, 2048])" in printed
    assert "PŁ ceiling" in printed


def test_the_examples_of_the_theory_run(capsys):
    run_examples(ROOT / "docs" / "theory.md", 6)
    printed = capsys.readouterr().out
    assert printed.count("chain rule at") == 5
    assert "violated" not in printed
    assert "regularity, restricted" in printed


@pytest.mark.parametrize(
    ("page", "name"),
    [
        pytest.param("README.md", "my_gains:LARGER_GAINS_ARE_FASTER", marks=pytest.mark.slow),
        ("docs/claims.md", "my_claim:SKIPS_ARE_FASTER"),
    ],
)
def test_the_claims_of_ones_own_are_tested_as_written(page, name, tmp_path, monkeypatch, capsys):
    module = name.partition(":")[0]
    text = (ROOT / page).read_text()
    (example,) = re.findall(rf"```python\n(# {module}.py\n.*?)```", text, flags=re.DOTALL)
    (tmp_path / f"{module}.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert f"skip-conditioning verify {name} --out" in text
    assert main([name, "--out", "mine", "--processes", "1"]) == 0
    assert re.search(r"-are-faster +✓ supported", capsys.readouterr().out)
    assert (tmp_path / "mine" / "report.html").exists()


@pytest.mark.parametrize(("page", "target"), LINKS, ids=lambda value: str(getattr(value, "name", value)))
def test_links_point_to_files(page, target):
    assert (page.parent / target.partition("#")[0]).exists()
