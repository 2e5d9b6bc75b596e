"""The report on a set of claims: one HTML page that needs nothing else, the same as Markdown, and a table."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import clear_disk_errors, write_parquet
from skip_conditioning.experiments.claims.verdict import presentation as verdicts
from skip_conditioning.experiments.claims.verdict.claim import Finding
from skip_conditioning.experiments.claims.verdict.presentation import Result, effect, pairs, verdict_table
from skip_conditioning.experiments.claims.verdict.wording import ASIDE, rule_in_words
from skip_conditioning.figures.drawing.saving import save
from skip_conditioning.figures.drawing.style import HOVER
from skip_conditioning.figures.forest_plot import forest_plot

_REFERENCE = re.compile(r"url\(\s*['\"]?#([^)'\"]+)['\"]?\s*\)")
#: Attributes with coordinates, in points; two decimals are as fine as any screen or printer.
_COORDINATES = frozenset({"d", "points", "x", "y"})
_LONG = re.compile(r"-?\d+\.\d{3,}")
#: Parts of an SVG that say nothing to a reader, would restyle the whole page, or could run or load something.
_DROPPED = frozenset({"metadata", "script", "style", "title", "foreignObject", "animate", "set"})
#: What the style sheet of Matplotlib's SVGs says, which cannot stay a style sheet of the whole page, and the fonts that
#: each of their texts repeats: the one that the layout was made for, then one as wide.
_INHERITED = "stroke-linejoin: round; stroke-linecap: butt; font-family: 'DejaVu Sans', Verdana, sans-serif"
_FONT = re.compile(r"font-family: [^;]*;? ?")


@dataclass(frozen=True)
class _Figure:
    """A figure of a section: its name in words, the markup to inline, and the link from the Markdown."""

    name: str
    svg: Markup
    link: str


@dataclass(frozen=True)
class _Section:
    """A claim as the templates see it; ``anchor`` is unique, ``rule`` the sentences that say how it is decided."""

    result: Result
    anchor: str
    rule: tuple[str, ...]
    registered: tuple[tuple[str, str], ...]
    figures: tuple[_Figure, ...]

    @property
    def deciding(self) -> list[Finding]:
        """The findings that the verdict rests on."""
        return [finding for finding in self.result.judgement.findings if not finding.what.startswith(ASIDE)]

    @property
    def beside(self) -> list[Finding]:
        """The others."""
        return [finding for finding in self.result.judgement.findings if finding.what.startswith(ASIDE)]


def write_report(out: Path, results: Sequence[Result]) -> None:
    """Write ``report.html``, ``report.md`` and the table ``verdicts``, and a forest plot into each claim's folder.

    Args:
        out: The folder; made if missing. What an earlier report left in these files is replaced.
        results: In the order in which they are to be shown.

    Raises:
        InputError: The folder cannot be written, or a claim's figure is missing or is no SVG.
    """
    with clear_disk_errors(out):
        (out / "verdicts").mkdir(parents=True, exist_ok=True)
    anchors = _anchors([result.id for result in results])
    sections = [
        _section(out, result, anchor, n) for n, (result, anchor) in enumerate(zip(results, anchors, strict=True))
    ]
    for suffix in ("html", "md"):
        page = (
            _environment(suffix)
            .get_template(f"report.{suffix}.jinja")
            .render(sections=sections, counts=verdicts.counts(results))
        )
        _write_text(page, out / f"report.{suffix}")
    part = out / "verdicts" / "part-000.parquet"
    write_parquet(verdict_table(results), part)
    for other in (out / "verdicts").glob("*.parquet"):
        if other != part:
            other.unlink()


def inline_svg(svg: str, prefix: str, label: str) -> Markup:
    """An SVG as an element of an HTML page beside others.

    Identifiers get the prefix where something refers to them and go where nothing does, so those of several figures
    do not clash; whatever could run, load or restyle anything goes too. A group whose id begins with
    ``figures.forest_plot.HOVER`` gets the rest of it as a title, which browsers show under the pointer.

    Args:
        svg: The file's text.
        prefix: Of identifiers; different for each figure of a page.
        label: What the figure shows, for those who do not see it.

    Raises:
        ElementTree.ParseError: It is no XML.
    """
    root = ElementTree.fromstring(svg)
    attributes = [(_local(name), value) for element in root.iter() for name, value in element.items()]
    referred = {found for _, value in attributes for found in _REFERENCE.findall(value)}
    referred |= {value[1:] for name, value in attributes if name == "href" and value.startswith("#")}
    places = {name: f"{prefix}{place}" for place, name in enumerate(sorted(referred))}
    _adapt(root, places, set())
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": label, "style": _INHERITED}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(element: ElementTree.Element, places: Mapping[str, str], taken: set[str]) -> None:
    element.tag = _local(element.tag)
    attributes = {_local(name): value for name, value in element.attrib.items()}
    identifier = attributes.pop("id", "")
    element.attrib.clear()
    for name, value in attributes.items():
        if name.lower().startswith("on") or (name == "href" and not value.startswith(("#", "data:image/png;"))):
            continue
        if name == "href" and value.startswith("#"):
            value = f"#{places[value[1:]]}"
        if name in _COORDINATES:
            value = _LONG.sub(lambda match: f"{float(match[0]):.2f}", value)
        if name == "style":
            value = _FONT.sub("", value)
        element.set(name, _REFERENCE.sub(lambda match: f"url(#{places[match[1]]})", value))
    if identifier in places and identifier not in taken:
        taken.add(identifier)
        element.set("id", places[identifier])
    for child in list(element):
        if _local(child.tag) in _DROPPED:
            element.remove(child)
        else:
            _adapt(child, places, taken)
    if identifier.startswith(HOVER):
        title = ElementTree.Element("title")
        title.text = identifier.removeprefix(HOVER)
        element.insert(0, title)


def _local(name: str) -> str:
    """A tag's or an attribute's name without its namespace, which HTML does without."""
    return name.rpartition("}")[2]


def _section(out: Path, result: Result, anchor: str, number: int) -> _Section:
    drawn = _draw_forest_plot(out / anchor, result)
    paths = [*drawn, *(path for path in result.figures if path.resolve() not in {one.resolve() for one in drawn})]
    figures = []
    for place, path in enumerate(paths):
        name = verdicts.words(path.stem)
        try:
            # No anchor has a dot, so no identifier within a figure is that of a claim.
            prefix = f"figure{number}.{place}."
            svg = inline_svg(path.read_text(encoding="utf-8"), prefix, f"{name}: {result.id}")
        except (OSError, ValueError, ElementTree.ParseError) as error:
            raise InputError(f"{path} cannot be read as an SVG ({error}); draw it again") from error
        link = Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
        figures.append(_Figure(name, svg, link))
    rule = tuple(rule_in_words(result.registered))
    return _Section(result, anchor, rule, tuple(_rows(result.registered)), tuple(figures))


def _draw_forest_plot(directory: Path, result: Result) -> list[Path]:
    rows = [
        {
            "what": verdicts.printable(finding.what),
            "verdict": finding.verdict,
            "ratio": float(finding.numbers["ratio"]),
            **dict(zip(("low", "high"), verdicts.interval(finding, "ratio"), strict=True)),
            "label": verdicts.effect_and_pairs(finding),
        }
        for finding in result.judgement.findings
        if not math.isnan(finding.numbers.get("ratio", math.nan)) and not finding.what.startswith(ASIDE)
    ]
    if not rows:
        return []
    figure = forest_plot(pd.DataFrame(rows), equivalent=_equivalent(result.registered))
    return save(figure, directory / "forest_plot", ["svg"])


def _equivalent(registered: Any) -> float | None:
    """The bound of equivalence that was registered, wherever in it; None where none was."""
    if isinstance(registered, Mapping):
        own = registered.get("equivalent")
        if isinstance(own, int | float) and own > 1:
            return float(own)
        registered = list(registered.values())
    inner = registered if isinstance(registered, list | tuple) else ()
    return next((found for found in map(_equivalent, inner) if found is not None), None)


def _rows(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Plain JSON values as rows of a path and a text; a list of plain values is one row."""
    if isinstance(value, Mapping) and (value or not path):
        for name, inner in value.items():
            yield from _rows(inner, f"{path} › {name}" if path else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping | list | tuple) for inner in value):
        for place, inner in enumerate(value, 1):
            yield from _rows(inner, f"{path} › {place}" if path else str(place))
    elif isinstance(value, list | tuple):
        yield path, ", ".join(map(_plain, value)) or "none"
    else:
        yield path, "none" if value == {} else _plain(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _anchors(names: Sequence[str]) -> list[str]:
    """Identifiers that are valid in links and in paths, one for each name, none twice."""
    found = ["top"]
    for name in names:
        stem = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") or "claim"
        anchor, count = stem, 1
        while anchor in found:
            count += 1
            anchor = f"{stem}-{count}"
        found.append(anchor)
    return found[1:]


def _environment(suffix: str) -> Environment:
    """Templates' surroundings: everything is escaped in HTML; in Markdown what goes through ``cell`` or ``fenced``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=suffix == "html", undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=_shown,
    )  # fmt: skip
    environment.filters |= {
        "cell": _markdown,
        "fenced": _fenced,
        "what": _what,
        "effect": effect,
        "pairs": pairs,
        "corrected_p": verdicts.corrected_p,
        "equivalence_p": verdicts.equivalence_p,
        "other_numbers": verdicts.other_numbers,
    }
    environment.globals |= {"symbols": verdicts.SYMBOLS, "meanings": verdicts.MEANINGS, "missing": verdicts.MISSING}
    return environment


def _shown(value: Any) -> Any:
    """What a template's expression becomes: text that is to be escaped yet, without control characters."""
    return verdicts.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _what(finding: Finding) -> str:
    """What was compared, without the words that it decides nothing where its table says so."""
    return finding.what.removeprefix(ASIDE)


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line, also inside a table."""
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", escape(" ".join(verdicts.printable(str(text)).split()), quote=False))


def _fenced(text: str) -> str:
    """Text as a block of code, whatever it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _write_text(text: str, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with clear_disk_errors(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
