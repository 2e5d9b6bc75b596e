"""The report on a set of claims: one HTML page that needs no other file, the same as Markdown, and a table."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
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
from skip_conditioning.experiments.claims.run.inline_svg import inline_svg
from skip_conditioning.experiments.claims.run.preregistration import leaves
from skip_conditioning.experiments.claims.run.verdict_table import ClaimResult, counts, verdict_table
from skip_conditioning.experiments.claims.verdict import formatting
from skip_conditioning.experiments.claims.verdict.claim import Finding
from skip_conditioning.figures.drawing.saving import save
from skip_conditioning.figures.forest_plot import forest_plot


@dataclass(frozen=True)
class _Figure:
    """A figure of a section: its name in words, its markup in the page, and its path in the Markdown."""

    name: str
    svg: Markup
    link: str


@dataclass(frozen=True)
class _Section:
    """A claim as the templates see it; ``anchor`` is unique, ``rule`` are the sentences that say how it is decided."""

    result: ClaimResult
    anchor: str
    rule: tuple[str, ...]
    registered: tuple[tuple[str, str], ...]
    figures: tuple[_Figure, ...]

    @property
    def deciding(self) -> list[Finding]:
        """The findings that the verdict rests on."""
        return [finding for finding in self.result.judgement.findings if finding.decides]

    @property
    def secondary(self) -> list[Finding]:
        """The findings for information."""
        return [finding for finding in self.result.judgement.findings if not finding.decides]


def write_report(out: Path, results: Sequence[ClaimResult]) -> None:
    """Write ``report.html``, ``report.md`` and the table ``verdicts``, and a forest plot into each claim's folder.

    Args:
        out: The folder; made if missing. An earlier report is replaced.
        results: In the order of the report.

    Raises:
        InputError: The folder cannot be written, or a claim's figure is missing or not an SVG.
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
            .render(sections=sections, counts=counts(results))
        )
        _write_text(page, out / f"report.{suffix}")
    part = out / "verdicts" / "part-000.parquet"
    write_parquet(verdict_table(results), part)
    for other in (out / "verdicts").glob("*.parquet"):
        if other != part:
            other.unlink()


def _section(out: Path, result: ClaimResult, anchor: str, number: int) -> _Section:
    drawn = _draw_forest_plot(out / anchor, result)
    paths = [*drawn, *(path for path in result.figures if path.resolve() not in {other.resolve() for other in drawn})]
    figures = []
    for position, path in enumerate(paths):
        name = formatting.words(path.stem)
        try:
            # Anchors have no dots, so no identifier within a figure is that of a claim.
            prefix = f"figure{number}.{position}."
            svg = inline_svg(path.read_text(encoding="utf-8"), prefix, f"{name}: {result.id}")
        except (OSError, ValueError, ElementTree.ParseError) as error:
            raise InputError(f"{path} cannot be read as an SVG ({error}); draw it again") from error
        link = Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
        figures.append(_Figure(name, svg, link))
    rule = tuple(rule_sentences(result.registered))
    registered = tuple((" › ".join(path), _plain(value)) for path, value in leaves(result.registered))
    return _Section(result, anchor, rule, registered, tuple(figures))


def _draw_forest_plot(directory: Path, result: ClaimResult) -> list[Path]:
    rows = [
        {
            "what": formatting.printable(finding.what),
            "verdict": finding.verdict,
            "ratio": float(finding.numbers["ratio"]),
            **dict(zip(("low", "high"), formatting.interval(finding, "ratio"), strict=True)),
            "label": formatting.effect_and_pairs(finding),
        }
        for finding in result.judgement.findings
        if not math.isnan(finding.numbers.get("ratio", math.nan)) and finding.decides
    ]
    if not rows:
        return []
    figure = forest_plot(pd.DataFrame(rows), equivalent=_equivalence_margin(result.registered))
    return save(figure, directory / "forest_plot", ["svg"])


def _equivalence_margin(registered: Mapping[str, Any]) -> float | None:
    """The equivalence margin that was registered; None without one."""
    rule = registered.get("rule")
    margin = rule.get("equivalence_margin") if isinstance(rule, Mapping) else None
    return None if margin is None else float(margin)


def _plain(value: Any) -> str:
    """A plain JSON value, or a list of them, as text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    if value == {}:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def rule_sentences(registered: Mapping[str, Any]) -> list[str]:
    """The sentences that say how a verdict follows, from the registered ``rule`` and ``combined`` if they are there."""
    rule = registered.get("rule")
    sentences = []
    if isinstance(rule, Mapping) and {"level", "equivalence_margin", "min_pairs"} <= set(rule):
        margin = rule["equivalence_margin"]
        sentences.append(
            f"The chance that any of the comparisons comes out wrongly is held to {100 * rule['level']:.3g} % "
            f"(Holm's correction); ratios from {1 / margin:.3g} to {margin:.3g} count as no effect, and with fewer "
            f"than {rule['min_pairs']} pairs nothing is decided."
        )
    elif isinstance(rule, Mapping):
        texts = [f"{name}: {text}" for name, text in rule.items() if isinstance(text, str)]
        sentences.append(_sentence("; ".join(texts)))
    elif isinstance(rule, str):
        sentences.append(_sentence(rule))
    if isinstance(registered.get("combined"), str):
        sentences.append(_sentence(f"The claim as a whole: {registered['combined']}"))
    return [sentence for sentence in sentences if sentence]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""


def _anchors(names: Sequence[str]) -> list[str]:
    """Distinct identifiers, valid in links and in paths, one for each name."""
    anchors = ["top"]
    for name in names:
        stem = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") or "claim"
        anchor, count = stem, 1
        while anchor in anchors:
            count += 1
            anchor = f"{stem}-{count}"
        anchors.append(anchor)
    return anchors[1:]


def _environment(suffix: str) -> Environment:
    """The environment of the templates: HTML is escaped everywhere, Markdown in the filters ``cell`` and ``fenced``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=suffix == "html", undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=_shown,
    )  # fmt: skip
    environment.filters |= {
        "cell": _markdown,
        "fenced": _fenced,
        "effect": formatting.effect,
        "pairs": formatting.pairs,
        "corrected_p": formatting.corrected_p,
        "equivalence_p": formatting.equivalence_p,
        "other_numbers": formatting.other_numbers,
    }
    environment.globals |= {
        "symbols": formatting.SYMBOLS,
        "meanings": formatting.MEANINGS,
        "missing": formatting.MISSING,
    }
    return environment


def _shown(value: Any) -> Any:
    """The value of a template's expression before it is escaped, without control characters."""
    return formatting.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _markdown(text: str) -> str:
    """Text escaped for Markdown, in one line, also inside a table."""
    return re.sub(
        r"([\\`*_{}\[\]|#~$])", r"\\\1", escape(" ".join(formatting.printable(str(text)).split()), quote=False)
    )


def _fenced(text: str) -> str:
    """Text as a block of code, with a fence longer than any within it."""
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
