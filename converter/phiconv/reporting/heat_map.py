"""The picture of all errors of a candidate: a row for each layer, a column for each kind of matrix."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from phiconv.reporting.figures import percent
from phiconv.reporting.grid import SHADES, Shades
from phiconv.reporting.markup import tag
from phiconv.reporting.svg import WIDTH, Picture, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from phiconv.reporting.grid import ErrorGrid

__all__ = ["heat_map"]

_ROW = 17
_LEFT = 26
_TOP = 30
_OTHER = 44
"""Width of the cell of a matrix that is in no layer; two of them are side by side."""


class _Cell(NamedTuple):
    left: int
    top: int
    width: int
    value: float


def heat_map(name: str, grid: ErrorGrid, letter: str) -> Picture:
    """Cells: the relative RMSE of every matrix in percent, darker where it is larger."""
    width = (WIDTH - _LEFT) // len(grid.kinds)
    cells = list(_cells(grid, width))
    worst = max(cells, key=lambda cell: cell.value)
    layer, kind = (worst.top - _TOP) // _ROW, grid.kinds[(worst.left - _LEFT) // width]
    layers, others = len(grid.layers), -(-len(grid.others) // 2)
    picture = Picture(
        name,
        f"Errors of {letter} by layer and matrix",
        f"Relative RMSE in percent, a row for each of {layers} layers. The largest, {percent(worst.value)}, "
        f"is that of {kind} in layer {layer}, which has a frame.",
        _TOP + 4 + _ROW * layers + (_ROW + 8) * others,
    )
    _heads(picture, grid, width)
    _draw(picture, [*cells, *_others(picture, grid)], Shades.of(grid.values()))
    if worst.value > 0:
        picture.add("rect", x=worst.left, y=worst.top, width=width - 1, height=_ROW - 1, class_="frame")
    return picture


def _cells(grid: ErrorGrid, width: int) -> Iterator[_Cell]:
    for y, row in enumerate(grid.layers):
        for x, value in enumerate(row):
            if value is not None:
                yield _Cell(_LEFT + width * x, _TOP + _ROW * y, width, value)


def _heads(picture: Picture, grid: ErrorGrid, width: int) -> None:
    """Names of columns, in two lines, and numbers of layers."""
    for x, kind in enumerate(grid.kinds):
        first, _, second = kind.rpartition("_")
        for line, word in ((10, first), (23, second)):
            middle = _LEFT + width * x + width / 2
            picture.text(middle, line, short(word, width + 10), anchor="middle", class_="what head")
    numbers = (tag("tspan", str(y), x=_LEFT - 5, y=_TOP + 12 + _ROW * y) for y in range(len(grid.layers)))
    picture.add("text", *numbers, text_anchor="end")


def _others(picture: Picture, grid: ErrorGrid) -> Iterator[_Cell]:
    """Matrices in no layer, below, each with its name."""
    for number, (name, value) in enumerate(grid.others):
        left = WIDTH // 2 * (number % 2)
        top = _TOP + 8 + _ROW * len(grid.layers) + (_ROW + 8) * (number // 2)
        picture.text(left, top + 12, short(name, 112), class_="what")
        yield _Cell(left + 116, top, _OTHER, value)


def _draw(picture: Picture, cells: Sequence[_Cell], shades: Shades) -> None:
    """Cells of one shade are one path; figures are over them, row by row."""
    for shade in range(SHADES):
        some = (cell for cell in cells if shades(cell.value) == shade)
        d = "".join(f"M{c.left} {c.top}h{c.width - 1}v{_ROW - 1}h{1 - c.width}z" for c in some)
        if d:
            picture.add("path", d=d, class_=f"h{shade}")
    rows = []
    for top, row in groupby(cells, key=lambda cell: cell.top):
        figures = (tag("tspan", percent(c.value), x=c.left + c.width // 2) for c in row)
        rows.append(tag("text", *figures, y=top + 12))
    picture.add("g", *rows, class_="cells")
