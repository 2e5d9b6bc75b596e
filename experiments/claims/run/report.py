"""The report on a set of claims: one HTML page that needs no other file, the same as Markdown, and a table."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import clear_disk_errors, write_parquet
from skip_conditioning.experiments.claims.run.inline_svg import inline_svg
from skip_conditioning.experiments.claims.run.preregistration import leaves
from skip_conditioning.experiments.claims.run.verdict_table import ClaimResult, counts, verdict_table
from skip_conditioning.experiments.claims.verdict import wording
from skip_conditioning.experiments.claims.verdict.outcome import Finding, Verdict
from skip_conditioning.figures.drawing.saving import save
from skip_conditioning.figures.forest_plot import forest_plot

#: Secondary findings in the report at most; the table has all.
_MOST_SECONDARY: Final = 12

#: What is seen in a figure, by the beginning of its file's name.
_CAPTIONS: Final[Mapping[str, str]] = {
    "forest_plot": "Ratio of the first arm to the second in each comparison that decides, with its interval; the band "
    "counts as no effect.",
    "loss_curves": "Training loss by step: the mean over trials of its logarithm, and a standard deviation to "
    "either side.",
    "singular_value_histograms": "How the singular values of each arm's Jacobian are distributed over the first steps.",
    "interventions": "Each arm against the one without a skip: to the right or left better conditioned, below faster. "
    "If conditioning drives speed, arms lie along a falling or rising line through the cross.",
    "ranking": "How well each quantity at initialisation predicts the speed of arms left out; 0: not at all.",
    "doses": "Conditioning and slowness over the gain of the skip, and against each other; one line a trial.",
    "learning_rates": "Steps to the thresholds by learning rate in the pilot runs, which choose each arm's best.",
    "matched_conditioning": "Steps against conditioning, one line for each family of arms. One common line speaks for "
    "conditioning, parallel lines for the skip as such.",
    "random_matrices": "Singular values of random matrices A, which reach 0, and of I + A, which do not.",
    "regularity": "The smallest eigenvalue of the tangent kernel and the bound from the layers, along training.",
    "bounds_along_training": "The squared gradient between its lower and upper bound, along training.",
    "convergence_at_infinity": "Loss, length of the parameters and smallest eigenvalue along training.",
    "curvature_growth": "Norm of the Hessian as the parameters grow, with the exponents fitted.",
}


@dataclass(frozen=True)
class _Figure:
    """A figure of a section: its name and what is seen in it, in words; its markup, and its path in the Markdown."""

    name: str
    caption: str
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
    def headline(self) -> str:
        """The first line of what was seen."""
        return next(iter(self.result.judgement.answer.splitlines()), "")

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
            .render(sections=sections, counts=counts(results), about=_about(results), most_secondary=_MOST_SECONDARY)
        )
        _write_text(page, out / f"report.{suffix}")
    part = out / "verdicts" / "part-000.parquet"
    write_parquet(verdict_table(results), part)
    for other in (out / "verdicts").glob("*.parquet"):
        if other != part:
            other.unlink()


def _about(results: Sequence[ClaimResult]) -> str:
    """The data sets and the date of the report."""
    sets = {
        "demo": "bundled digits",
        "mnist": "MNIST",
        "reduced": "parts of CIFAR and ImageNet",
        "cifar": "CIFAR and ImageNet",
    }
    named = ", ".join(sets[size] for size in dict.fromkeys(result.size for result in results))
    return f"Tested on {named or 'nothing'}, {datetime.now(UTC):%d %B %Y}."


def _section(out: Path, result: ClaimResult, anchor: str, number: int) -> _Section:
    drawn = _draw_forest_plot(out / anchor, result)
    paths = [*drawn, *(path for path in result.figures if path.resolve() not in {other.resolve() for other in drawn})]
    figures = []
    for position, path in enumerate(paths):
        name = wording.words(path.stem)
        try:
            # Anchors have no dots, so no identifier within a figure is that of a claim.
            prefix = f"figure{number}.{position}."
            svg = inline_svg(path.read_text(encoding="utf-8"), prefix, wording.printable(f"{name}: {result.id}"))
        except (OSError, ValueError, ElementTree.ParseError) as error:
            raise InputError(f"{path} cannot be read as an SVG ({error}); draw it again") from error
        link = Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
        figures.append(_Figure(name, _caption(path.stem), svg, link))
    rule = tuple(rule_sentences(result.registered))
    registered = tuple((" › ".join(path), _plain(value)) for path, value in leaves(result.registered))
    return _Section(result, anchor, rule, registered, tuple(figures))


def _caption(name: str) -> str:
    """What is seen in a figure, or its name in words."""
    known = next((text for beginning, text in _CAPTIONS.items() if name.startswith(beginning)), None)
    return known or f"{wording.words(name).capitalize()}."


def _draw_forest_plot(directory: Path, result: ClaimResult) -> list[Path]:
    rows = [
        {
            "what": wording.printable(finding.what),
            "verdict": finding.verdict.value,
            "ratio": float(finding.numbers["ratio"]),
            **dict(zip(("low", "high"), wording.interval(finding, "ratio"), strict=True)),
            "label": wording.effect_and_pairs(finding),
        }
        for finding in result.judgement.findings
        if not math.isnan(finding.numbers.get("ratio", math.nan)) and finding.decides
    ]
    if not rows:
        return []
    figure = forest_plot(pd.DataFrame(rows), equivalent=_margin(result.registered))
    return save(figure, directory / "forest_plot", ["svg"])


def _margin(registered: Mapping[str, Any]) -> float | None:
    """The margin that was registered; None without one."""
    rule = registered.get("rule")
    margin = rule.get("margin") if isinstance(rule, Mapping) else None
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
    if isinstance(rule, Mapping) and {"level", "margin"} <= set(rule):
        margin = rule["margin"]
        sentences.append(
            f"The chance that any interval of the claim misses is held to {100 * rule['level']:.3g} % (Bonferroni); "
            f"ratios from {1 / margin:.3g} to {margin:.3g} count as no effect, or a small one."
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
        "effect": wording.effect,
        "pairs": wording.pairs,
        "level": wording.level,
        "parts": wording.parts_in_words,
        "slug": _slug,
    }
    environment.globals |= {
        "symbols": wording.SYMBOLS,
        "meanings": wording.MEANINGS,
        "missing": wording.MISSING,
    }
    return environment


def _slug(verdict: Verdict) -> str:
    """A verdict as the name of a class of the style sheet."""
    return verdict.name.lower().replace("_", "-")


def _shown(value: Any) -> Any:
    """The value of a template's expression before it is escaped, without control characters."""
    return wording.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _markdown(text: str) -> str:
    """Text escaped for Markdown, in one line, also inside a table."""
    line = escape(" ".join(wording.printable(str(text)).split()), quote=False)
    escaped = re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", line)
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", escaped)  # or it begins an item of a list, or a rule


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
