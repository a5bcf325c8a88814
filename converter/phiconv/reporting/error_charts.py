"""Pictures of the errors of a candidate's weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from phiconv.reporting.figures import figure, round_size
from phiconv.reporting.markup import coordinate
from phiconv.reporting.svg import WIDTH, Picture, Scale, axes, path_of, short, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.quality.comparison import TensorDifference
    from phiconv.reporting.numbers import Errors, Histogram

__all__ = ["histogram", "short_name", "sizes_and_errors"]

_NAMED = 5


def short_name(name: str) -> str:
    """A matrix without what all of them have in their names."""
    return name.removeprefix("layers.").removesuffix(".weight")


def sizes_and_errors(name: str, errors: Errors, some: Sequence[TensorDifference], letter: str) -> Picture:
    """Points: bytes and error of every matrix; the worst are named at the side.

    Args:
        name: Of the picture.
        errors: Of the candidate.
        some: Its matrices with errors, the worst first.
        letter: The candidate's.
    """
    worst = some[:_NAMED]
    picture = Picture(
        name,
        f"Size and error of each matrix of {letter}",
        f"A point for each of {len(some)} matrices with errors: its bytes and its relative RMSE. The worst "
        f"are {', '.join(short_name(each.name) for each in worst)}.",
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
