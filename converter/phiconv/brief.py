"""How objects of the library look where they are printed: one line, and a small table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields
from html import escape
from itertools import islice
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["LONGEST", "Brief"]

LONGEST = 280
"""The most characters of an object's ``repr``."""

_LONGEST_VALUE = 60
_SHOWN_ITEMS = 4


class Brief:
    """A dataclass whose ``repr`` names what matters, however much it holds.

    Its decorator says ``repr=False``, or dataclasses would write one of their own.

    Attributes:
        SHOWN: The attributes to show; by default all fields.
    """

    __slots__ = ()

    SHOWN: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        start, line = f"{type(self).__name__}(", ""
        for name, value in _values(self):
            each = f"{', ' if line else ''}{name}={brief(value)}"
            if len(start) + len(line) + len(each) > LONGEST - len(", ...)"):
                return f"{start}{line}, ...)"
            line += each
        return f"{start}{line})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = [(name, brief(value)) for name, value in _values(self)]
        return f"<b>{escape(type(self).__name__)}</b>{_table(rows)}{_table(*self._rows())}"

    def _rows(self) -> tuple[Iterable[tuple[object, ...]], tuple[str, ...]]:
        """More rows for a notebook, and their heads; none by default."""
        return (), ()


def brief(value: object) -> str:
    """A value on one short line: containers of many things are counted, and long texts cut."""
    if isinstance(value, Brief):
        return f"<{type(value).__name__}>"
    if isinstance(value, PurePath | str):
        return repr(_cut(str(value)))
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping | AbstractSet | tuple | list):
        return _counted(value)
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "dtype"):
        return f"<{value.dtype} {tuple(shape)}>"
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"<{type(value).__name__}>"


def _counted(values: Mapping[Any, Any] | AbstractSet[Any] | tuple[Any, ...] | list[Any]) -> str:
    """A few simple things one by one, others by their number."""
    if isinstance(values, tuple | list) and len(values) <= _SHOWN_ITEMS:
        text = ", ".join(brief(value) for value in values)
        if len(text) <= _LONGEST_VALUE:
            return f"({text}{',' * (len(values) == 1)})" if isinstance(values, tuple) else f"[{text}]"
    return f"<{len(values)} item{'s' * (len(values) != 1)}>"


def _cut(text: str) -> str:
    """The text, its end alone if it is long: of a path that is what matters."""
    return text if len(text) <= _LONGEST_VALUE else f"...{text[3 - _LONGEST_VALUE :]}"


def _values(instance: Brief) -> Iterator[tuple[str, object]]:
    """What is shown of an object. What is None, empty or as usual says nothing."""
    usual = {f.name: f.default for f in fields(instance)}  # type: ignore[arg-type] # all are dataclasses
    for name in type(instance).SHOWN or usual:
        value = getattr(instance, name)
        nothing = value is None or (isinstance(value, Mapping | tuple | str) and not value)
        if not nothing and (name not in usual or value is not usual[name]):
            yield name, value


def _table(rows: Iterable[tuple[object, ...]], heads: tuple[str, ...] = (), most: int = 20) -> str:
    """Rows as HTML, the first of them; names from files are text in it, never markup."""
    shown = [*islice(rows, most)]
    if not shown:
        return ""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in shown)
    return f"<table>{f'<tr>{head}</tr>' * bool(heads)}{body}</table>"
