"""Pictures of sizes, of memory, and of what models make of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.reporting.figures import context_text, percent, round_size
from phiconv.reporting.markup import coordinate
from phiconv.reporting.svg import WIDTH, Picture, Scale, axes, path_of, short, spread
from phiconv.units import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.reporting.numbers import Stored

__all__ = ["DEVICES", "best_line", "curves", "memory", "quality", "roles", "series", "sizes"]

DEVICES = (4, 8, 16, 32)
"""Gigabytes of memory of usual machines."""

_COLOURS = 6


def series(number: int) -> str:
    """The classes of a model's colour and kind of line; 0 is the original."""
    return "s0" if number == 0 else f"s{(number - 1) % _COLOURS + 1} k{(number - 1) % 5}"


def sizes(name: str, models: Sequence[Stored]) -> Picture:
    """Bars: bytes of the weights of each model."""
    row, most = 36, max(each.nbytes for each in models)
    picture = Picture(
        name,
        "Bytes of the weights",
        f"A bar for each model; {models[0].name} has {size_text(models[0].nbytes)}.",
        row * len(models),
    )
    for number, each in enumerate(models):
        y = row * number
        value = f"{size_text(each.nbytes)}, {percent(each.nbytes / models[0].nbytes)} %"
        picture.text(0, y + 13, f"{each.letter}  {short(each.name, 190)}", class_=f"{series(number)} name")
        picture.text(WIDTH, y + 13, value, anchor="end")
        picture.add(
            "rect", x=0, y=y + 18, width=max(WIDTH * each.nbytes / most, 1), height=10, class_=series(number)
        )
    return picture


def roles(name: str, model: Stored, types: Sequence[str]) -> Picture:
    """Bars: bytes of the weights by what they are for, cut by type."""
    row, most = 30, max(sum(nbytes for _, nbytes in some) for _, some in model.roles)
    picture = Picture(
        name,
        f"Where the bytes of {model.letter} are",
        "A bar for each kind of weight, the largest first, cut by the type that it is stored in.",
        row * len(model.roles),
    )
    for number, (role, some) in enumerate(model.roles):
        y, x = row * number, 0.0
        told = " + ".join(f"{kind} {size_text(nbytes)}" for kind, nbytes in some)
        picture.text(0, y + 12, short(role, 130))
        picture.text(WIDTH, y + 12, short(told, 220), anchor="end")
        for kind, nbytes in some:
            width = WIDTH * nbytes / most
            colour = f"s{types.index(kind) % (_COLOURS + 1)}"
            picture.add("rect", x=x, y=y + 17, width=max(width - 1.5, 0.5), height=8, class_=colour)
            x += width
    return picture


def memory(name: str, models: Sequence[Stored], cache: Sequence[tuple[int, int]]) -> Picture:
    """Lines: weights, keys and values together, by tokens of context."""
    picture = Picture(
        name,
        "Memory by context",
        "Bytes of the weights, and of keys and values in 16 bits, for each model as the context grows; "
        f"dashed lines at {', '.join(map(str, DEVICES))} GB.",
        270,
    )
    lowest, highest = min(m.nbytes for m in models), max(m.nbytes for m in models) + cache[-1][1]
    y = Scale(lowest / 1.5, max(highest, DEVICES[-1] * 1e9) * 1.5, 228, 24, log=True)
    x = Scale(cache[0][0], max(cache[-1][0], cache[0][0] + 1), 52, 336, log=True)
    contexts = [count for count, _ in cache]
    labels = ("tokens of context", "memory")
    axes(picture, x, y, labels, (context_text, round_size), contexts)
    for gigabytes in DEVICES:
        place = y(gigabytes * 1e9)
        d = f"M{coordinate(x.start)} {coordinate(place)}H{coordinate(x.stop)}"
        picture.add("path", d=d, class_="device")
        picture.text(x.start + 4, place - 2, f"{gigabytes} GB", class_="note")
    _lines(picture, models, [[(x(n), y(m.nbytes + more)) for n, more in cache] for m in models], y)
    return picture


def curves(
    name: str, models: Sequence[Stored], starts: Sequence[int], values: Sequence[Sequence[float]], tokens: int
) -> Picture:
    """Lines: divergence from the original along a text, of all candidates."""
    picture = Picture(
        name,
        "Divergence along the text",
        f"Mean divergence from {models[0].name} in {len(starts)} pieces of the text, a line for each model.",
        250,
    )
    everything = [value for row in values for value in row if value > 0]
    y = Scale.around(everything, 208, 24, log=True)
    x = Scale(0, tokens, 52, 336)
    axes(picture, x, y, ("tokens of the text", "nats"), (lambda v: f"{v:.0f}", lambda v: f"{v:g}"))
    middles = [(a + b) / 2 for a, b in zip(starts, [*starts[1:], tokens], strict=True)]
    lines = [
        [(x(place), y(value or y.low)) for place, value in zip(middles, row, strict=True)] for row in values
    ]
    _lines(picture, models[1:], lines, y, first=1)
    return picture


def _lines(
    picture: Picture,
    models: Sequence[Stored],
    lines: Sequence[Sequence[tuple[float, float]]],
    y: Scale,
    first: int = 0,
) -> None:
    """Draws a line for each model, with its letter at the end."""
    places = spread([line[-1][1] for line in lines], 12, y.stop, y.start)
    for number, (model, line, place) in enumerate(zip(models, lines, places, strict=True), first):
        picture.add("path", d=path_of(line), class_=f"line {series(number)}")
        picture.text(WIDTH - 12, place + 4, model.letter, class_=f"{series(number)} name")


def best_line(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points have none that is as small and better, or as good and smaller; by size."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    found: list[int] = []
    for i in order:
        if not found or points[i][1] < points[found[-1]][1]:
            found.append(i)
    return found


def quality(name: str, models: Sequence[Stored], errors: Sequence[float], measure: str) -> Picture:
    """Points: size and error of each candidate, and a line through the best ones.

    Args:
        name: Of the picture.
        models: The candidates.
        errors: Of each, the less the better.
        measure: What they are.
    """
    points = [(model.nbytes, error) for model, error in zip(models, errors, strict=True)]
    best = best_line(points)
    picture = Picture(
        name,
        "Size against quality",
        f"A point for each candidate: bytes of its weights and {measure}. The line goes through those that "
        f"no other beats in both: {', '.join(models[i].letter for i in best)}.",
        262,
    )
    x = Scale.around([size for size, _ in points], 52, 344)
    y = Scale.around(errors, 220, 24, log=True)
    axes(picture, x, y, ("bytes of the weights", measure), (round_size, lambda v: f"{v:g}"))
    places = [(x(size), y(error or y.low)) for size, error in points]
    steps = [places[best[0]]]
    for i in best[1:]:
        steps += [(places[i][0], steps[-1][1]), places[i]]
    picture.add("path", d=path_of(steps), class_="line best")
    taken: list[tuple[float, float]] = [*places]
    for number, (place, model) in enumerate(zip(places, models, strict=True), 1):
        radius = 5 if number - 1 in best else 3.5
        picture.add("circle", cx=place[0], cy=place[1], r=radius, class_=f"dot {series(number)}")
        label = _free_place(place, taken)
        taken.append(label)
        picture.text(label[0], label[1] + 4, model.letter, anchor="middle", class_=f"{series(number)} name")
    return picture


def _free_place(point: tuple[float, float], taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A place beside a point that nothing else is near to, or else the one that is farthest from others."""

    def room(place: tuple[float, float]) -> float:
        inside = 56 < place[0] < WIDTH - 6 and 20 < place[1] < 214
        nearest = min(max(abs(place[0] - x), abs(place[1] - y)) for x, y in taken)
        return min(nearest, 11) if inside else -1

    around = [(11, -9), (-11, -9), (11, 10), (-11, 10), (0, -14), (0, 15), (15, 0), (-15, 0), (22, -16)]
    return max(((point[0] + dx, point[1] + dy) for dx, dy in around), key=room)
