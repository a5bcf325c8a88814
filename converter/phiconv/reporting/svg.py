"""A small helper for pictures: a canvas of 360 units, scales with ticks, axes, and labels that keep apart.

A picture is as wide as a column of text, on a telephone and on a large screen: so letters have one size.
Colours are classes of the page's style sheet, which knows light and dark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from phiconv.reporting.markup import Markup, coordinate, tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from phiconv.reporting.markup import Attribute

__all__ = ["WIDTH", "Picture", "Scale", "axes", "path_of", "short", "spread"]

WIDTH = 360
"""Units from left to right, about as many pixels."""

_LETTER = 6.2
"""Width of an average letter."""


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to places on the canvas.

    Attributes:
        low, high: The ends of the values; both positive where ``log`` is.
        start, stop: Their places.
        log: Places are as far apart as the logarithms of the values.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value, which is moved between the ends."""
        value = min(max(value, self.low), self.high)
        low, high = (math.log(x) if self.log else x for x in (self.low, self.high))
        part = ((math.log(value) if self.log else value) - low) / ((high - low) or 1)
        return self.start + part * (self.stop - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values between the ends, about as many as asked for."""
        if self.log:
            return _log_ticks(self.low, self.high, most)
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    @staticmethod
    def around(values: Iterable[float], start: float, stop: float, *, log: bool = False) -> Scale:
        """A scale for some values: from zero, or with a little room at both ends where it is logarithmic."""
        finite = [x for x in values if math.isfinite(x) and (x > 0 or not log)]
        high = max(finite, default=1.0) or 1.0
        if not log:
            return Scale(min(0.0, *finite, 0.0), high * 1.05, start, stop)
        return Scale(min(finite, default=high) / 1.3, high * 1.3, start, stop, log=True)


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if len(found) <= most + 1:
            return found
    return found[:: -(-len(found) // most)]


@dataclass(slots=True)
class Picture:
    """A drawing with a title and a description for those who do not see it.

    Attributes:
        name: Unique on the page, for the two ids.
        title: What it is.
        description: What it shows, in a sentence or two.
        height: In units.
    """

    name: str
    title: str
    description: str
    height: float
    parts: list[Markup] = field(default_factory=list)

    def add(self, element: str, *children: str, **attributes: Attribute) -> None:
        """Draws an element over those that are there."""
        self.parts.append(tag(element, *children, **attributes))

    def text(
        self, x: float, y: float, text: str, *, anchor: str | None = None, **attributes: Attribute
    ) -> None:
        """Writes text whose baseline is at ``y``; ``anchor`` is "middle" or "end"."""
        self.add("text", text, x=x, y=y, text_anchor=anchor, **attributes)

    def markup(self) -> Markup:
        """The element."""
        ids = f"{self.name}-title", f"{self.name}-text"
        return tag(
            "svg",
            tag("title", self.title, id=ids[0]),
            tag("desc", self.description, id=ids[1]),
            *self.parts,
            role="img",
            aria_labelledby=" ".join(ids),
            viewBox=f"0 0 {WIDTH} {coordinate(self.height)}",
        )


def path_of(points: Iterable[tuple[float, float]]) -> str:
    """A line through points, for the attribute ``d`` of a path."""
    return "M" + "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points)


def axes(
    picture: Picture,
    x: Scale,
    y: Scale,
    labels: tuple[str, str],
    figures: tuple[Callable[[float], str], Callable[[float], str]],
    x_ticks: Sequence[float] | None = None,
) -> None:
    """Draws both axes: lines of a grid, their figures, and what they are.

    Args:
        picture: Gets them.
        x: The scale from left to right.
        y: The scale from the bottom to the top.
        labels: What x and y are.
        figures: How values are written.
        x_ticks: Values to mark, where round ones of the scale are not meant.
    """
    for value in y.ticks():
        place = y(value)
        picture.add(
            "path", d=f"M{coordinate(x.start)} {coordinate(place)}H{coordinate(x.stop)}", class_="grid"
        )
        picture.text(x.start - 5, place + 4, figures[1](value), anchor="end")
    end = -math.inf
    for value in x.ticks(6) if x_ticks is None else x_ticks:
        text, place = figures[0](value), x(value)
        if place - len(text) * _LETTER / 2 < end:
            continue
        end = place + len(text) * _LETTER / 2 + 4
        picture.add("path", d=f"M{coordinate(place)} {coordinate(y.start)}v4", class_="axis")
        picture.text(place, y.start + 16, text, anchor="middle")
    picture.add("path", d=f"M{coordinate(x.start)} {coordinate(y.start)}H{coordinate(x.stop)}", class_="axis")
    picture.text((x.start + x.stop) / 2, y.start + 31, labels[0], anchor="middle", class_="what")
    picture.text(2, y.stop - 9, labels[1], class_="what")


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places of labels beside ``places``, in the same order, at least ``gap`` apart and within the ends."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = [0.0] * len(places)
    last = low - gap
    for i in order:
        last = found[i] = max(places[i], last + gap)
    last = high + gap
    for i in reversed(order):
        last = found[i] = min(found[i], last - gap)
    return found


def short(text: str, width: float) -> str:
    """Text that fits a width, with a mark where it was cut."""
    most = max(int(width / _LETTER), 2)
    return text if len(text) <= most else text[: most - 1] + "…"
