"""Elements of HTML and SVG.

All text is escaped unless it is `Markup` already: so no text from a file can be any.
"""

from __future__ import annotations

from html import escape
from typing import TypeAlias

__all__ = ["Attribute", "Markup", "join", "tag"]

Attribute: TypeAlias = "str | float | None"

_EMPTY = {"meta", "br", "wbr", "circle", "line", "path", "rect"}
"""Elements that have nothing in them."""


class Markup(str):
    """Text that is markup, and needs no escaping."""

    __slots__ = ()


def join(*parts: str) -> Markup:
    """Puts markup and text together; text is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def tag(element: str, *children: str, **attributes: Attribute) -> Markup:
    """An element.

    Args:
        element: Its name.
        children: Markup, or text.
        attributes: Their values; those that are None are left out, numbers get two decimals at most. A
            trailing underscore is dropped, others become hyphens: ``class_``, ``aria_label``. ``viewBox`` has
            none.
    """
    values = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if element in _EMPTY:
        return Markup(f"<{element}{values}/>")
    return Markup(f"<{element}{values}>{join(*children)}</{element}>")


def _value(value: str | float) -> str:
    return _escaped(value) if isinstance(value, str) else coordinate(value)


def _escaped(text: str) -> str:
    """Text as markup; what nobody would see, or what turns the direction of writing, is spelled out."""
    shown = (c if c.isprintable() or c in "\n\t\u00a0" else c.encode("unicode_escape").decode() for c in text)
    return escape("".join(shown))


def coordinate(value: float) -> str:
    """A number of a drawing, as short as it can be with one decimal."""
    text = f"{value:.1f}"
    return "0" if text in {"-0.0", "0.0"} else text.removesuffix(".0")
