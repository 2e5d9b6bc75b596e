import math
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.claims.run.inline_svg import inline_svg
from skip_conditioning.experiments.claims.run.report import write_report
from skip_conditioning.experiments.claims.run.verdict_table import NUMBERS, ClaimResult
from skip_conditioning.experiments.claims.verdict.outcome import Comparison, Finding, Judgement, Reason, Verdict
from skip_conditioning.experiments.claims.verdict.wording import (
    SYMBOLS,
    effect,
    number,
    p_value,
    parts_in_words,
    sentence,
)
from skip_conditioning.experiments.verify import print_verdicts
from skip_conditioning.figures.drawing.saving import save
from skip_conditioning.figures.drawing.style import HOVER

HOSTILE = '<script>alert("no")</script> & <img src=http://example.org/x.png onerror=alert(1)> | `*_$x$_*` \\ \x07'
LONG = "incomprehensibilities" * 12
NAN, INF = math.nan, math.inf
_VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """What a page holds: identifiers, links, texts, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: Counter[str] = Counter()
        self.handlers: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name.endswith("href") or name == "src":
                (self.links if tag in ("a", "use") and name != "src" else self.loads).append(value or "")
            self.links += [f"#{measured}" for measured in re.findall(r"url\(#([^)]+)\)", value or "")]
            self.handlers += [name] if name.startswith("on") else []

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)


def result(name: str, judgement: Judgement, figures: tuple[Path, ...] = ()) -> ClaimResult:
    return ClaimResult(
        id=name,
        statement="Skips speed training because they improve conditioning.",
        source="MacDonald et al. 2023, section 5",
        predicted="fewer steps with the skip",
        controls=("the learning rate: best of a sweep per arm", HOSTILE),
        registered={
            "rule": {"level": 0.05, "margin": 1.1},
            "plans": {"main": {"preset": "paper-mnist", "arms": ["chain", "residual"], "options": []}},
            "comparisons": [{"measure": "steps", "arm": "residual", "other": "chain"}],
        },
        hash="ab" * 32,
        judgement=judgement,
        figures=figures,
        command=f"skip-conditioning verify {name} --size demo --out runs/verify",
        hardware="cpu (x86_64, 2 threads)",
        versions="python 3.11.2, torch 2.8.0",
        commit="0123456789ab",
        size="demo",
    )


def ratio(what: str, verdict: Verdict, *numbers: float, note: str = "", **others: float) -> Finding:
    return Finding(what, verdict, dict(zip(NUMBERS, numbers, strict=False)) | others, note=note)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[ClaimResult]:
    """All four verdicts, text that means something to HTML and to Markdown, and numbers that are none."""
    figures, folder = [], tmp_path_factory.mktemp("report")
    for name in ("one", "two"):
        figure, axis = plt.subplots()
        axis.plot([1, 2], [3, 4], "o-", gid=f"{HOVER}3 & 4 <b>")
        figures += [path for path in save(figure, folder / "mnist-speed-order" / name) if path.suffix == ".svg"]
        plt.close(figure)
    speed = (
        ratio("steps to loss 0.5, residual over chain", Verdict.SUPPORTED, 0.62, 0.51, 0.74, 0.99, 2e-5, 30,
              trials_needed=12),
        ratio("steps to loss 0.5, modified over residual", Verdict.UNDECIDED, 0.97, 0.88, 1.07, 0.99, 0.2, 30),
        ratio("log-loss at step 5, modified over residual, at the best learning rate of each arm", Verdict.REVERSED,
              1.31, 1.22, 1.42, 0.99, 0.003, 30, note="The other direction is as clear at every learning rate."),
        ratio("log-loss at step 10, scaled over chain", Verdict.NO_EFFECT, 1.01, 0.98, 1.03, 0.99, 0.52, 30),
    )  # fmt: skip
    extreme = (
        ratio(HOSTILE, Verdict.REVERSED, INF, 1.2, INF, 0.99, 1e-9, 8, note=HOSTILE),
        ratio(LONG, Verdict.VACUOUS, 0.0, 0.0, 2.0, NAN, NAN, NAN, note="κ → ∞, ‖J‖_F"),
        ratio("σ of naught", Verdict.UNDECIDED, NAN, NAN, NAN, NAN, NAN, 0, trials_needed=INF, rate=-3.2e-7),
    )
    mediated = Finding(
        "share through κ", Verdict.UNDECIDED, {"share": 0.31, "share_low": -0.2, "share_high": 0.8, "runs": 240.0}
    )
    measured = [
        result("mnist-speed-order", Judgement(Verdict.SUPPORTED, speed, "The order is as said.", "30 trials more"),
               tuple(figures)),
        result("spectrum-explains-speed", Judgement(Verdict.UNDECIDED, (mediated,), "Cannot tell.", "60 trials")),
        result("extreme", Judgement(Verdict.REVERSED, extreme, HOSTILE, HOSTILE)),
        replace(result("empty", Judgement(Verdict.VACUOUS, (), "", "")), statement=HOSTILE, registered={}, controls=()),
    ]  # fmt: skip
    return measured


@pytest.fixture(scope="module")
def written(results: list[ClaimResult]) -> Path:
    folder = results[0].figures[0].parent.parent
    write_report(folder, results)
    return folder


def test_page_is_whole_and_its_links_have_targets(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert page.tags["svg"] == 4  # two of the claim's own, two forest plots
    assert page.tags["caption"] == page.tags["table"]
    assert page.tags["title"] > 1  # the page's own, and values under the pointer
    assert page.tags["h1"] == 1
    assert page.tags["h2"] == 4


def test_page_needs_nothing_else(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    assert page.loads == []
    assert page.handlers == []
    assert not {"script", "img", "link", "iframe", "image"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_text_is_escaped_and_no_path_of_this_machine_is_told(written: Path, name: str) -> None:
    text = (written / name).read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert str(written) not in text
    assert "nan" not in re.split(r"\W+", text)
    assert "inf" not in re.split(r"\W+", text)


def test_all_outputs_agree_on_the_verdicts(written: Path, results: list[ClaimResult], capsys) -> None:
    expected = {one.id: one.judgement.verdict.value for one in results}
    table = pd.read_parquet(written / "verdicts")
    assert dict(zip(table["claim"], table["claim_verdict"], strict=True)) == expected
    assert len(table) == sum(max(1, len(one.judgement.findings)) for one in results)
    html, markdown = (written / "report.html").read_text(), (written / "report.md").read_text()
    print_verdicts(results)
    printed = capsys.readouterr().out
    for result_of in results:
        claim, verdict = result_of.id, result_of.judgement.verdict
        (row,) = re.findall(rf'<li>(?:(?!<li>).)*?<a href="#{claim}">', html)
        assert re.sub("<[^>]+>", "", row).startswith(f"{SYMBOLS[verdict]} {verdict.value}")
        assert f"| [{claim}](#{claim}) | {SYMBOLS[verdict]} {verdict.value} |" in markdown
        assert f"## {claim}: {parts_in_words(result_of.judgement)} {SYMBOLS[verdict]}" in markdown
        assert re.search(rf"^{claim} +{re.escape(SYMBOLS[verdict])} {verdict.value}", printed, re.MULTILINE)
    own = [finding for one in results for finding in one.judgement.findings]
    assert table["verdict"].dropna().tolist() == [finding.verdict.value for finding in own]
    assert "\x07" not in printed
    assert "4 claims: 1 supported; 1 reversed; 1 undecided; 1 vacuous" in printed


def test_table_has_the_numbers(written: Path) -> None:
    table = pd.read_parquet(written / "verdicts")
    first = table.iloc[0]
    assert (first["ratio"], first["ratio_low"], first["pairs"], first["trials_needed"]) == (0.62, 0.51, 30, 12)
    assert first["hash"] == "ab" * 32
    assert first["command"].startswith("skip-conditioning verify mnist-speed-order")
    assert table.query("claim == 'extreme'")["ratio"].tolist()[:2] == [INF, 0]


def test_markdown_tables_have_as_many_cells_as_heads(written: Path) -> None:
    rows = [line for line in (written / "report.md").read_text().splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", row)) - 1 for row in rows}
    assert widths == {3, 7}


def test_markdown_links_figures_beside_it(written: Path) -> None:
    links = re.findall(r"!\[[^]]*\]\(<([^>]+)>\)", (written / "report.md").read_text())
    assert links[:3] == [f"mnist-speed-order/{name}.svg" for name in ("forest_plot", "one", "two")]
    assert all((written / link).is_file() for link in links)


def test_a_second_report_replaces_the_first(written: Path, results: list[ClaimResult], tmp_path: Path) -> None:
    write_report(tmp_path, results[2:])
    (tmp_path / "verdicts" / "part-001.parquet").write_bytes(b"of another version")
    write_report(tmp_path, results[1:2])
    assert set(pd.read_parquet(tmp_path / "verdicts")["claim"]) == {"spectrum-explains-speed"}
    assert "extreme" not in (tmp_path / "report.html").read_text()


def test_the_same_results_make_the_same_report(written: Path, results: list[ClaimResult]) -> None:
    first = (written / "report.html").read_bytes()
    write_report(written, results)
    assert (written / "report.html").read_bytes() == first


def test_claims_of_one_name_keep_their_own_sections(tmp_path: Path, results: list[ClaimResult]) -> None:
    write_report(tmp_path, [results[1], results[1], replace(results[1], id="top")])
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids)) == 4
    assert {link[1:] for link in page.links} == set(page.ids)


def test_no_claims_make_an_empty_report(tmp_path: Path) -> None:
    write_report(tmp_path, [])
    assert "0 claims" in (tmp_path / "report.html").read_text()
    assert pd.read_parquet(tmp_path / "verdicts").empty


def test_missing_figure_is_named(tmp_path: Path, results: list[ClaimResult]) -> None:
    with pytest.raises(InputError, match=r"gone\.svg"):
        write_report(tmp_path, [replace(results[1], figures=(tmp_path / "gone.svg",))])


def test_inlined_figures_show_values_and_run_nothing() -> None:
    svg = f"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload="f()">
      <script>f()</script><style>* {{color: red}}</style><defs><path id="m"/><clipPath id="c"/></defs><g id="unused"/>
      <g id="{HOVER}chain &amp; &lt;b&gt;" clip-path="url(#c)"><use xlink:href="#m"/>
      <image href="http://a.b/c.png"/><a href="http://a.b/c">
      <image xlink:href="data:image/png;base64,AA=="/></a></g></svg>"""
    inlined = str(inline_svg(svg, "p.", "a <label>"))
    assert "<title>chain &amp; &lt;b&gt;</title>" in inlined
    assert 'aria-label="a &lt;label&gt;"' in inlined
    assert not re.search("script|onload|<style|http|unused", inlined)
    page = Page(inlined)
    assert sorted(page.ids) == ["p.0", "p.1"]
    assert sorted(page.links) == ["#p.0", "#p.1"]
    assert page.loads == ["data:image/png;base64,AA=="]


def test_styles_of_a_figure_are_said_once_and_stay_within_it() -> None:
    element = '<g><g><use style="fill: red; "/></g></g>\n'
    hostile = '<use style="fill: red} body{display: none"/>'
    inlined = str(inline_svg(f'<svg xmlns="http://www.w3.org/2000/svg">{3 * element}{hostile}</svg>', "figure1.2.", ""))
    assert "<style>.figure1-2-0{fill: red}</style>" in inlined
    assert inlined.count('<use class="figure1-2-0" />') == 3
    assert "body" not in inlined
    assert "<g>" not in inlined


@pytest.mark.parametrize(
    ("value", "text"),
    [(NAN, "–"), (None, "–"), (INF, "∞"), (-INF, "−∞"), (0.0, "0"), (30.0, "30"), (0.61728, "0.617"),
     (1234.5, "1234"), (-0.5, "−0.500"), (3.21e-7, "3.21×10⁻⁷"), (2e6, "2.00×10⁶"), (0.99999, "1.00")],
)  # fmt: skip
def test_numbers_have_sensible_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_p_values_go_no_lower_than_makes_sense() -> None:
    assert [p_value(value) for value in (0.04321, 1e-9, 0.0, 1.0, NAN, None)] == \
        ["0.043", "< 0.001", "< 0.001", "1", "–", "–"]  # fmt: skip


def test_effects_that_are_no_ratios_carry_their_name_and_few_pairs_have_no_interval() -> None:
    numbers = {"pairs": 9, "p_sign": 0.01, "rank": 0.5, "rank_low": 0.1, "rank_high": 0.9}
    assert effect(Finding("ρ", Verdict.UNDECIDED, numbers)) == "rank 0.500 [0.100, 0.900]"
    assert effect(Finding("ρ", Verdict.UNDECIDED, numbers | {"pairs": 4})) == "rank 0.500"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"ratio": 0.59, "ratio_low": 0.53, "ratio_high": 0.7, "smaller": 30, "pairs": 30},
         "skip takes 41 % fewer steps than chain (ratio 0.530 to 0.700), in 30 of 30 pairs"),
        ({"ratio": 3.0, "ratio_low": 2.0, "ratio_high": INF, "ratio_bound": 1.0, "larger": 9, "pairs": 10},
         "skip takes at least 3 times more steps than chain, in 9 of 10 pairs"),
        ({"ratio": NAN}, "steps to the thresholds: skip below chain: in most pairs it is open which run is larger"),
    ],
)  # fmt: skip
def test_a_comparison_is_a_sentence(numbers: dict[str, float], text: str) -> None:
    comparison = Comparison("steps", "skip", "chain", "smaller")
    finding = Finding("steps to the thresholds: skip below chain", Verdict.SUPPORTED, numbers, Reason.UNKNOWN_ORDER)
    assert sentence(replace(finding, comparison=comparison)) == text


def test_numbers_that_are_none_or_infinite_survive_everywhere(
    tmp_path: Path, results: list[ClaimResult], capsys
) -> None:
    """Whatever a rule could not compute is a dash or a sign in every output, and itself in the table."""
    values = (INF, -INF, NAN)
    names = (*NUMBERS, "trials_needed", "share", "share_low", "share_high", "ratio_bound")
    findings = tuple(Finding(f"all {value}", Verdict.UNDECIDED, dict.fromkeys(names, value)) for value in values)
    findings += tuple(Finding(f"share {value}", Verdict.UNDECIDED, {"share": value}) for value in values)
    write_report(tmp_path, [replace(results[1], judgement=Judgement(Verdict.UNDECIDED, findings, "", ""))])
    print_verdicts([replace(results[1], judgement=Judgement(Verdict.UNDECIDED, findings, "", ""))])
    table = pd.read_parquet(tmp_path / "verdicts")
    for name in names:
        assert table[name].tolist()[:2] == [INF, -INF]
        assert table[name].isna().tolist()[:3] == [False, False, True]
    outputs = [(tmp_path / name).read_text() for name in ("report.html", "report.md")] + [capsys.readouterr().out]
    for text in outputs[:2]:
        shown = re.sub(r"<svg.*?</svg>", "", re.sub(r"(all|share) −?-?(inf|nan)", "", text), flags=re.DOTALL)
        assert not {"nan", "inf"} & set(re.split(r"\W+", shown))
        assert "∞" in text


def test_bounds_are_shown_as_such_in_every_output(tmp_path: Path, results: list[ClaimResult], capsys) -> None:
    findings = (
        ratio("σ_min, skip above none", Verdict.SUPPORTED, 1.8e11, 1.2e11, INF, 0.99, 1e-9, 10, ratio_bound=1.0),
        ratio("κ, skip below none", Verdict.SUPPORTED, 5.0e-9, 0.0, 6.0e-9, 0.99, 1e-9, 10, ratio_bound=-1.0),
    )
    assert [effect(one) for one in findings] == ["≥ 1.80×10¹¹ [1.20×10¹¹, ∞]", "≤ 5.00×10⁻⁹ [0, 6.00×10⁻⁹]"]
    measured = [replace(results[1], judgement=Judgement(Verdict.SUPPORTED, findings, "", ""))]
    write_report(tmp_path, measured)
    print_verdicts(measured)
    plot = (tmp_path / "spectrum-explains-speed" / "forest_plot.svg").read_text()
    for text in ((tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text(), plot):
        assert "≥ 1.80×10¹¹" in text
        assert "≤ 5.00×10⁻⁹" in text
    assert pd.read_parquet(tmp_path / "verdicts")["ratio_bound"].tolist() == [1, -1]


def test_the_rule_is_said_in_sentences_and_secondary_findings_are_folded(
    tmp_path: Path, results: list[ClaimResult]
) -> None:
    findings = (
        *results[0].judgement.findings[:1],
        Finding("steps to the threshold: a below b", Verdict.SUPPORTED, decides=False),
    )
    one = replace(results[1], judgement=Judgement(Verdict.SUPPORTED, findings, "", ""))
    one = replace(one, registered={**one.registered, "combined": "supported where all are"})
    write_report(tmp_path, [one])
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "is held to 5 % (Bonferroni); ratios from 0.909 to 1.1 count as no effect, or a small one." in text
        assert "The claim as a whole: supported where all are." in text
    html = (tmp_path / "report.html").read_text()
    summary = r"<summary>Beside it \(1\)</summary>"
    (folded,) = re.findall(rf"<details>\s*{summary}(.*?)</details>", html, re.DOTALL)
    assert '<th scope="row" class="long">steps to the threshold: a below b</th>' in folded


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_opens_in_a_browser(written: Path, tmp_path: Path, width: int, dark: bool) -> None:
    """No error in the console, nothing wider than the window, every link leads somewhere, light and dark differ."""
    # The page is shown within a frame of the given width: a headless window cannot be as narrow as a phone.
    check = """<iframe src="report.html" style="width:%dpx;height:3000px;border:0"></iframe><pre id="out"></pre><script>
      onload = () => { const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
        const dead = [...page.querySelectorAll("a[href^='#']")].filter(a => !page.getElementById(a.hash.slice(1)));
        document.querySelector("#out").textContent = JSON.stringify([root.scrollWidth - root.clientWidth, dead.length,
          getComputedStyle(page.body).backgroundColor, page.querySelectorAll("svg").length]); };</script>"""
    (written / "frame.html").write_text(check % width)
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--allow-file-access-from-files", "--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        "--dump-dom", (written / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    (out,) = re.findall(r'<pre id="out">(.*?)</pre>', done.stdout)
    colour = "rgb(22, 23, 24)" if dark else "rgb(255, 255, 255)"
    assert out == f'[0,0,"{colour}",4]'
