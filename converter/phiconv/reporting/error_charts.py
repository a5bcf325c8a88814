"""Pictures of the errors of a candidate's weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from phiconv.reporting.figures import figure, percent, round_size
from phiconv.reporting.grid import SHADES, Shades
from phiconv.reporting.markup import coordinate, tag
from phiconv.reporting.svg import WIDTH, Picture, Scale, axes, path_of, short, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.quality.comparison import TensorDifference
    from phiconv.reporting.grid import ErrorGrid
    from phiconv.reporting.numbers import Errors, Histogram

__all__ = ["heat_map", "histogram", "short_name", "sizes_and_errors"]

_ROW = 17
_LEFT = 26
_NAMED = 5


def short_name(name: str) -> str:
    """A matrix without what all of them have in their names."""
    return name.removeprefix("layers.").removesuffix(".weight")


def heat_map(name: str, grid: ErrorGrid, letter: str) -> Picture:
    """Cells: the relative RMSE of every matrix in percent, darker where it is larger."""
    shades = Shades.of(grid.values())
    cells = [
        (x, y, value) for y, row in enumerate(grid.layers) for x, value in enumerate(row) if value is not None
    ]
    worst = max(cells, key=lambda cell: cell[2])
    picture = Picture(
        name,
        f"Errors of {letter} by layer and matrix",
        f"Relative RMSE in percent, a row for each of {len(grid.layers)} layers. The largest, "
        f"{percent(worst[2])} %, is that of {grid.kinds[worst[0]]} in layer {worst[1]}, which has a frame.",
        34 + _ROW * len(grid.layers) + (8 + _ROW) * -(-len(grid.others) // 2),
    )
    width = (WIDTH - _LEFT) / len(grid.kinds)
    for x, kind in enumerate(grid.kinds):
        words = kind.rpartition("_")
        for line, word in ((10, words[0]), (23, words[2])):
            if word:
                picture.text(
                    _LEFT + width * (x + 0.5), line, short(word, width + 6), anchor="middle", class_="what"
                )
    places = [(_LEFT + width * x, 30 + _ROW * y, width, value) for x, y, value in cells]
    picture.add(
        "text",
        *_tspans([(_LEFT - 5, 42 + _ROW * y, str(y)) for y in range(len(grid.layers))]),
        text_anchor="end",
    )
    half = WIDTH / 2
    bottom = 38 + _ROW * len(grid.layers)
    for number, (other, value) in enumerate(grid.others):
        left, top = half * (number % 2), bottom + (8 + _ROW) * (number // 2)
        places.append((left + _LEFT + 90, top, 42, value))
        picture.text(left, top + 12, short(other, 112), class_="what")
    _cells(picture, places, shades)
    x, y, _ = worst
    picture.add(
        "rect", x=_LEFT + width * x, y=30 + _ROW * y, width=width - 1, height=_ROW - 1, class_="frame"
    )
    return picture


def _cells(picture: Picture, places: Sequence[tuple[float, float, float, float]], shades: Shades) -> None:
    """Draws cells (left, top, width, value), those of one shade as one path, and their figures over them."""
    for shade in range(SHADES):
        d = "".join(
            f"M{coordinate(x)} {coordinate(y)}h{coordinate(width - 1)}v{_ROW - 1}h-{coordinate(width - 1)}z"
            for x, y, width, value in places
            if shades(value) == shade
        )
        if d:
            picture.add("path", d=d, class_=f"h{shade}")
    figures = [(x + (width - 1) / 2, y + 12, percent(value)) for x, y, width, value in places]
    picture.add("text", *_tspans(figures), text_anchor="middle", class_="cell")


def _tspans(texts: Sequence[tuple[float, float, str]]) -> list[str]:
    return [tag("tspan", text, x=x, y=y) for x, y, text in texts]


def sizes_and_errors(name: str, errors: Errors, some: Sequence[TensorDifference], letter: str) -> Picture:
    """Points: bytes and error of every matrix; the worst are named at the side.

    Args:
        name: Of the picture.
        errors: Of the candidate.
        some: Its matrices, the worst first, whose errors are finite.
        letter: The candidate's.
    """
    worst = some[:_NAMED]
    picture = Picture(
        name,
        f"Size and error of each matrix of {letter}",
        f"A point for each of {len(some)} matrices: its bytes and its relative RMSE. The worst are "
        f"{', '.join(short_name(each.name) for each in worst)}.",
        250,
    )
    found = [(errors.sizes[each.name], each.difference.relative_rmse) for each in some]
    x = Scale.around([size for size, _ in found], 44, 226, log=True)
    y = Scale.around([error for _, error in found], 208, 24)
    axes(picture, x, y, ("bytes of the matrix", "relative RMSE, %"), (round_size, lambda v: f"{100 * v:.3g}"))
    points = "".join(f"M{coordinate(x(size))} {coordinate(y(error))}h0" for size, error in found)
    picture.add("path", d=points, class_="points")
    named = [(x(size), y(error)) for size, error in found[:_NAMED]]
    places = spread([place for _, place in named], 14, y.stop, y.start)
    for (left, top), place, each in zip(named, places, worst, strict=True):
        picture.add("path", d=path_of([(left, top), (232, place), (240, place)]), class_="lead")
        picture.add("circle", cx=left, cy=top, r=3.5, class_="dot s1")
        picture.text(243, place + 4, short(short_name(each.name), WIDTH - 243))
    return picture


def histogram(name: str, found: Histogram) -> Picture:
    """Bars: how often errors of a matrix have which size."""
    picture = Picture(
        name,
        f"Errors of {short_name(found.name)}",
        f"How many of its weights have which error; errors are in units of the original weights' root mean "
        f"square, from {figure(found.edges[0])} to {figure(found.edges[-1])}.",
        180,
    )
    x = Scale(found.edges[0], found.edges[-1], 44, 344)
    y = Scale.around(found.shares, 138, 24)
    axes(picture, x, y, ("error", "weights, %"), (lambda v: f"{v:.3g}", lambda v: f"{100 * v:.3g}"))
    bars = ""
    for left, right, share in zip(found.edges, found.edges[1:], found.shares, strict=False):
        height = y.start - y(share)
        if height > 0 and math.isfinite(height):
            width = coordinate(x(right) - x(left) - 1)
            bars += f"M{coordinate(x(left))} {coordinate(y.start)}v-{coordinate(height)}h{width}V{y.start}z"
    picture.add("path", d=bars or "M0 0", class_="s1")
    picture.text(WIDTH, y.stop - 9, short(short_name(found.name), 200), anchor="end", class_="title")
    return picture
