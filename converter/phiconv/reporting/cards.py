"""What a page is put together from: sections, cards with pictures, tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from phiconv.reporting.charts import series
from phiconv.reporting.markup import Markup, join, tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from phiconv.reporting.numbers import Stored
    from phiconv.reporting.svg import Picture

__all__ = ["aside", "card", "drawn", "folded", "key", "note", "section", "shades", "table"]

_NARROW = 8
"""Columns that fit a telephone."""


def section(title: str, *cards: str) -> Markup:
    """Some cards under a heading."""
    return tag("section", tag("h2", title), tag("div", *cards, class_="cards"))


def card(title: str, *parts: str, full: bool = False) -> Markup:
    """Something with a heading of its own; ``full`` is as wide as the page."""
    return tag("section", tag("h3", title), *parts, class_="card full" if full else "card")


def drawn(picture: Picture, *parts: str) -> Markup:
    """A picture, and what belongs to it."""
    return tag("figure", picture.markup(), *parts)


def aside(text: str) -> Markup:
    """A remark."""
    return tag("p", text, class_="muted")


def note(title: str, text: str) -> Markup:
    """A card that says why there is nothing in it."""
    return card(title, aside(text))


def shades(what: str, starts: Iterable[str]) -> Markup:
    """Where each shade begins; each has a kind of line below it, too."""
    parts = [tag("span", f"\u00a0{start}\u00a0", class_=f"t{i}") for i, start in enumerate(starts)]
    return tag("p", f"{what}, from: ", *parts, class_="shades")


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str | None = None
) -> Markup:
    """A table whose first row and first column are headers.

    Args:
        caption: What it is.
        head: The first row.
        rows: The others.
        kind: "words" where cells are no numbers; "tokens" where all but the last ones are tokens.
    """
    top = tag("tr", *(tag("th", _breakable(cell), scope="col") for cell in head))
    body = [
        tag("tr", tag("th", _breakable(first), scope="row"), *(tag("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    found = tag(
        "table",
        tag("caption", caption),
        tag("thead", top),
        tag("tbody", *body),
        class_=kind,
    )
    return found if len(head) <= _NARROW else tag("div", found, class_="wide")


def _breakable(text: str) -> Markup:
    """A name that may go on in the next line after an underscore or a dot."""
    return Markup(tag("wbr").join(join(piece) for piece in re.split(r"(?<=[_.])(?=.)", text)))


def folded(summary: str, *parts: str) -> Markup:
    """What is shown when somebody asks for it."""
    return tag("details", tag("summary", summary), *parts)


def key(models: Iterable[Stored], first: int = 0) -> Markup:
    """Which letter is which model."""
    return tag(
        "ul",
        *(
            tag("li", tag("b", model.letter, class_=series(number)), join(" ", model.name))
            for number, model in enumerate(models, first)
        ),
        class_="key",
    )
