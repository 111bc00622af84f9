"""One HTML page: a heading, a sentence that sums it up, and sections made of cards, facts, tables, charts and images.

Everything is inside the file. Whatever is put in is escaped by Jinja or MarkupSafe, unless it is `Markup` already. The
page's own script is the only one that may run: the content security policy names its digest.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup as Markup  # every maker of a page needs it

if TYPE_CHECKING:
    from jinja2 import Environment

FEWEST_TO_FILTER = 12
"""A table with fewer rows has no field to filter them by."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page, with a heading that the page's index leads to."""

    title: str
    body: Markup
    note: str = ""
    """What a reader has to know to understand it."""
    folded: bool = False
    """Whether it is closed until one opens it."""

    @property
    def anchor(self) -> str:
        """The section's name in an address."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table that is more than a text."""

    text: str
    sort: float | str | None = None
    """What the column is sorted by; None: the text."""
    href: str = ""
    share: float | None = None
    """Length of a bar before the text, 0 to 1."""
    tone: str = ""
    """``good`` or ``bad``: coloured, with an arrow."""
    span: tuple[float, float] | None = None
    """Ends of an interval around zero, each -1 to 1, drawn instead of the text."""


def number_cell(value: float | None, decimals: int = 3, **more: Any) -> Cell:
    """Return a cell with a number; a dash where there is none, below all numbers."""
    return Cell(text="-" if value is None else f"{value:.{decimals}f}", sort=-1e300 if value is None else value, **more)


def text_cell(text: str) -> Cell:
    """Return a cell that is sorted by the number that its text begins with; a dash is below all numbers."""
    found = re.match(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)
    return Cell(text=text, sort=float(found[0]) if found else -1e300 if text in ("-", "") else None)


Row = Sequence[Cell | str | float | None]
"""The cells of a row; a number that is no `Cell` is shown with three decimals, a whole one with none."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that can be sorted by each column and, where it is long, filtered."""

    name: str
    """What its rows are; read out, not shown."""
    head: Sequence[str]
    rows: Sequence[Row]
    marked: Iterable[int] = ()
    """Rows that stand out."""
    groups: Mapping[int, str] | None = None
    """Headings between rows, before the row of that number; such a table is not sorted."""


def render_page(
    title: str,
    sections: Iterable[Section | None],
    *,
    summary: str = "",
    links: Mapping[str, str] | None = None,
    live: bool = False,
) -> str:
    """Return an HTML document that needs no other file and no network.

    Args:
        title: Its heading.
        sections: Its parts; None and those without content are left out.
        summary: The sentence that a reader in a hurry needs.
        links: Where else to look, address by name; one that does not begin with http(s) has to be relative.
        live: Whether a server renders the page: it is then asked for a newer one every few seconds.
    """
    script = _file("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = [section for section in sections if section is not None and section.body.strip()]
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            summary=summary,
            sections=shown,
            links={name: href for name, href in (links or {}).items() if _is_safe(href)},
            written=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            style=Markup(_file("style.css")),
            script=Markup(script),
            digest=digest,
            live=live,
        )
    )


def cards(values: Mapping[str, str]) -> Markup:
    """Return figures in large type, value by name."""
    return _part("cards", values)


def facts(values: Mapping[str, object]) -> Markup:
    """Return facts as a list of names and values; those that are None or empty are left out."""
    return _part("facts", {name: value for name, value in values.items() if value not in (None, "")})


def table(content: Table) -> Markup:
    """Return a table; empty without rows."""
    if not content.rows:
        return Markup("")
    rows = [[cell if isinstance(cell, Cell) else _cell(cell) for cell in row] for row in content.rows]
    numeric = [all(isinstance(row[i].sort, int | float) for row in rows) for i in range(len(content.head))]
    is_long = content.groups is None and len(rows) >= FEWEST_TO_FILTER
    return _part("table", content, rows, numeric, set(content.marked), is_long)


def text(*sentences: str) -> Markup:
    """Return paragraphs."""
    return Markup("").join(Markup("<p>{}</p>").format(sentence) for sentence in sentences if sentence)


def bullets(entries: Iterable[str | Markup]) -> Markup:
    """Return a list of points; empty without any."""
    items = Markup("").join(Markup("<li>{}</li>").format(entry) for entry in entries)
    return Markup("<ul>{}</ul>").format(items) if items else Markup("")


def folded(name: str, body: Markup) -> Markup:
    """Return something that is closed until one opens it."""
    return Markup("<details><summary>{}</summary>{}</details>").format(name, body)


def scrolling(name: str, body: Markup) -> Markup:
    """Return something that scrolls sideways inside its own frame, by keyboard too."""
    return Markup('<div class="wide" tabindex="0" role="region" aria-label="{}">{}</div>').format(name, body)


def grid(parts: Iterable[Markup], kind: str = "charts") -> Markup:
    """Return parts side by side, as many as fit: ``charts``, ``small``, ``images`` or ``gallery``."""
    joined = Markup("").join(parts)
    return Markup('<div class="{}">{}</div>').format(kind, joined) if joined else joined


def beside(*parts: Markup) -> Markup:
    """Return parts in one row where there is room, each as wide as it needs."""
    return Markup('<div class="beside">{}</div>').format(Markup("").join(parts)) if any(parts) else Markup("")


def figure(jpeg: bytes, size: tuple[int, int], alt: str, caption: str | Markup = "") -> Markup:
    """Return an image with its caption, the bytes of its JPEG in it; ``size`` is (width, height) in pixels."""
    return Markup(
        '<figure><img src="data:image/jpeg;base64,{}" width="{}" height="{}" alt="{}">'
        "<figcaption>{}</figcaption></figure>"
    ).format(base64.b64encode(jpeg).decode(), *size, alt or "image", caption)


def _cell(value: str | float | None) -> Cell:
    if isinstance(value, str):
        return Cell(text=value)
    return number_cell(value) if isinstance(value, float) or value is None else Cell(text=f"{value:,}", sort=value)


def _is_safe(href: str) -> bool:
    return re.match(r"https?://|[^:/?#]*(?:[/?#]|$)", href) is not None and not href.startswith("//")


def _part(name: str, *values: object) -> Markup:
    return Markup(getattr(_environment().get_template("parts.html").module, name)(*values))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # only where a page is made

    loader = PackageLoader("yolofleet.reports", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _file(name: str) -> str:
    return resources.files("yolofleet.reports").joinpath("templates", name).read_text(encoding="utf-8")
