"""SVG figures as elements of an HTML page that needs no other file."""

import re
from collections.abc import Mapping
from typing import Final
from xml.etree import ElementTree

from markupsafe import Markup

from skip_conditioning.figures.drawing.style import HOVER

_REFERENCE: Final = re.compile(r"url\(\s*['\"]?#([^)'\"]+)['\"]?\s*\)")
#: Attributes with coordinates in points, for which one decimal suffices.
_COORDINATES = frozenset({"d", "points", "x", "y"})
_LONG = re.compile(r"-?\d+\.\d{2,}")
#: Elements of an SVG that show nothing, would restyle the whole page, or could run or load something.
_DROPPED = frozenset({"metadata", "script", "style", "title", "foreignObject", "animate", "set"})
#: Takes the place of the style sheet of Matplotlib's SVGs, which would apply to the whole page, and of the fonts that
#: each of their texts repeats: the font of the layout, then one as wide.
_INHERITED = "stroke-linejoin: round; stroke-linecap: butt; font-family: 'DejaVu Sans', Verdana, sans-serif"
_FONT = re.compile(r"font-family: [^;]*;? ?")


def inline_svg(svg: str, prefix: str, label: str) -> Markup:
    """An SVG as an element of an HTML page that holds others.

    Identifiers that are referred to get the prefix, so that those of several figures do not clash; all others, and
    whatever could run, load or restyle anything, are removed. A group whose id begins with
    ``figures.drawing.style.HOVER`` gets the rest of the id as a title, which browsers show under the pointer.

    Args:
        svg: The file's text.
        prefix: Of identifiers; different for each figure of a page.
        label: What the figure shows, for screen readers.

    Raises:
        ElementTree.ParseError: It is not XML.
    """
    root = ElementTree.fromstring(svg)
    attributes = [(_local(name), value) for element in root.iter() for name, value in element.items()]
    referred = {name for _, value in attributes for name in _REFERENCE.findall(value)}
    referred |= {value[1:] for name, value in attributes if name == "href" and value.startswith("#")}
    identifiers = {name: f"{prefix}{number}" for number, name in enumerate(sorted(referred))}
    _adapt(root, identifiers, set())
    _shorten(root)
    styles = _classes(root, prefix)
    if styles:
        sheet = ElementTree.Element("style")
        sheet.text = "".join(f".{name}{{{style}}}" for style, name in styles.items())
        root.insert(0, sheet)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": label, "style": _INHERITED}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(element: ElementTree.Element, identifiers: Mapping[str, str], taken: set[str]) -> None:
    element.tag = _local(element.tag)
    attributes = {_local(name): value for name, value in element.attrib.items()}
    identifier = attributes.pop("id", "")
    element.attrib.clear()
    for name, value in attributes.items():
        if name.lower().startswith("on") or (name == "href" and not value.startswith(("#", "data:image/png;"))):
            continue
        if name == "href" and value.startswith("#"):
            value = f"#{identifiers[value[1:]]}"
        if name in _COORDINATES:
            value = " ".join(_LONG.sub(lambda match: f"{float(match[0]):.1f}", value).split())
        if name == "style":
            value = _FONT.sub("", value)
        element.set(name, _REFERENCE.sub(lambda match: f"url(#{identifiers[match[1]]})", value))
    if identifier in identifiers and identifier not in taken:
        taken.add(identifier)
        element.set("id", identifiers[identifier])
    for child in list(element):
        if _local(child.tag) in _DROPPED:
            element.remove(child)
        else:
            _adapt(child, identifiers, taken)
    if identifier.startswith(HOVER):
        title = ElementTree.Element("title")
        title.text = identifier.removeprefix(HOVER)
        element.insert(0, title)


def _shorten(element: ElementTree.Element) -> None:
    """Remove white space between elements, and groups that group nothing."""
    kept: list[ElementTree.Element] = []
    for child in element:
        _shorten(child)
        child.tail = None
        is_bare = child.tag == "g" and not child.attrib and not any(each.tag == "title" for each in child)
        kept += list(child) if is_bare else [child]
    element[:] = kept
    if element.text and not element.text.strip():
        element.text = None


def _classes(root: ElementTree.Element, prefix: str) -> dict[str, str]:
    """Replace the styles of the elements inside by classes, which each style needs once; returns their names."""
    stem = re.sub(r"\W", "-", prefix)
    names: dict[str, str] = {}
    for element in root.iter():
        style = element.attrib.pop("style", "").strip(" ;") if element is not root else ""
        if style and not set("{}<>@\\") & set(style):  # or it would restyle the page
            element.set("class", names.setdefault(style, f"{stem}{len(names)}"))
    return names


def _local(name: str) -> str:
    """A tag's or an attribute's name without its namespace, which HTML does not use."""
    return name.rpartition("}")[2]
