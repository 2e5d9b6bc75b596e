"""Reports on claims whose words are hostile: pages of the structure that harmless words have, and nothing that runs."""

import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt

from skip_conditioning.experiments.claims.run.report import write_report
from skip_conditioning.experiments.claims.run.verdict_table import ClaimResult
from skip_conditioning.experiments.claims.verdict.outcome import Finding, Judgement, Verdict
from tests.fuzz.kind import Made, WrongDataError

#: One on each line, then those that have other characters.
_HOSTILE = (
    *[
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</td></table><iframe src=//x>",
        "<!--",
        "]]>",
        "&lt;b&gt;",
        "[x](javascript:alert(1))",
        "![x](http://x/y.png)",
        "<javascript:x>",
        "[x]: http://x",
        "https://x.org",
        "javascript:x",
        "# heading",
        "- item",
        "+ item",
        "1. item",
        "12) item",
        "> quote",
        "---",
        "===",
        "***",
        "| a | b |",
        "|---|",
        "    code",
        "```",
        "~~~",
        "`code`",
        "**bold**",
        "_x_ __y__",
        "~~x~~",
        "$x$ $$y$$",
        "\\<b>",
        "..",
        "../../x",
        "/",
        "CON",
        "top",
        "TOP",
        "'\"",
        "' onclick='x",
        "&#x3c;b&#x3e;",
        ":x: @y #1",
        "[^1]",
        "[x]",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "%s {0}",
        "é",
        "🦆",
    ],
    *(
        "a\nb",
        "a\n\n# b",
        "a\r\n- b",
        "\t# x",
        "a\0",
        "a\x1b[31m",
        "a\x07",
        "\u202eabc",
        "\u2028# x",
        "\x85- x",
        "a\ufeff",
    ),
    "a" * 3000,
)

_ID = re.compile('(?<=id=")[a-z0-9_-]*')


class _Tags(HTMLParser):
    """The elements of a page with the names of their attributes, outside of figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self._figures = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self._figures += tag == "svg"
        if not self._figures:
            self.tags.append((tag, *sorted(name for name, _ in attrs)))
        if any((value or "").strip().lower().startswith(("javascript:", "data:", "//", "http:")) for _, value in attrs):
            raise WrongDataError(f"{tag} leads elsewhere: {attrs}"[:500])

    def handle_endtag(self, tag: str) -> None:
        """Note it."""
        self._figures -= tag == "svg"
        if not self._figures:
            self.tags.append((f"/{tag}",))


def _elements(text: str) -> Iterator[str]:
    """The elements of a page of Markdown."""
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        yield token.type
        for child in token.children or ():
            if child.type not in ("text", "softbreak", "text_special"):
                yield f"{child.type} {_ID.sub('', child.content) if child.type == 'html_inline' else ''}"


def _result(name: str, words: list[str], source: random.Random) -> ClaimResult:
    """A claim, all of whose words are taken from a list."""
    take = iter(words).__next__
    findings = tuple(
        Finding(
            take(),
            verdict,
            {"ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.7, "pairs": 8.0},
            note=take(),
            decides=decides,
        )
        for verdict, decides in ((Verdict.SUPPORTED, True), (Verdict.NO_EFFECT, False))
    )
    return ClaimResult(
        id=name,
        statement=take(),
        source=take(),
        predicted=take(),
        controls=(take(),),
        registered={"rule": {"level": 0.05, "margin": 1.1}, take(): take(), "more": {take(): [take()]}},
        size="demo",
        judgement=Judgement(Verdict.SUPPORTED, findings, " ".join(take().split()), take()),  # lines are paragraphs
        figures=(),
        hash=take(),
        command=take(),
        hardware=take(),
        versions=take(),
        commit=take(),
    )


def _read(given: tuple[Path, int]) -> None:
    """Write a report with harmless and with hostile words.

    Raises:
        WrongDataError: The pages differ in structure.
    """
    folder, seed = given
    source = random.Random(seed)
    harmless = ["word"] * 20
    hostile = [source.choice(_HOSTILE) if source.random() < 0.4 else "word" for _ in harmless]
    pages = []
    for number, words in enumerate((harmless, hostile)):
        out = folder / str(number)
        write_report(
            out,
            [_result(source.choice(_HOSTILE) if number else "claim", words, source), _result("b", harmless, source)],
        )
        pages.append([out / "report.html", out / "report.md"])
        escaped = [path for path in folder.iterdir() if path.name not in ("0", "1")]
        if escaped:
            raise WrongDataError(f"{escaped} lies beside the report")
    for plain, other in zip(*pages, strict=True):
        texts = [page.read_text(encoding="utf-8") for page in (plain, other)]
        parts = [_Tags(text).tags if plain.suffix == ".html" else [*_elements(text)] for text in texts]
        if parts[0] != parts[1]:
            place = next((n for n, (a, b) in enumerate(zip(*parts, strict=False)) if a != b), min(map(len, parts)))
            raise WrongDataError(
                f"{plain.suffix}: {parts[0][place : place + 3]} became {parts[1][place : place + 3]}; {hostile}"[:900]
            )
        if re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202e]", texts[1]):
            raise WrongDataError("a control character")


def kind() -> Made:
    """The kind of names and other words in reports."""
    return Made("words of reports", lambda folder, source: (folder, source.randrange(10**9)), _read, 0.3)
