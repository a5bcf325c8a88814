"""The part of a page about the errors of one candidate's weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from phiconv.reporting import error_charts
from phiconv.reporting.cards import aside, card, drawn, folded, note, section, shades, table
from phiconv.reporting.error_charts import short_name
from phiconv.reporting.figures import figure, percent
from phiconv.reporting.grid import Shades, matrices
from phiconv.reporting.heat_map import heat_map
from phiconv.units import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.quality.comparison import TensorDifference
    from phiconv.reporting.grid import ErrorGrid
    from phiconv.reporting.markup import Markup
    from phiconv.reporting.numbers import Candidate, Histogram

__all__ = ["error_section"]

_WORST = 10
"""Matrices that are listed."""

_HISTOGRAMS = "Errors of the worst matrices"


def error_section(candidate: Candidate) -> Markup:
    """By layer, by size, and of the worst matrices."""
    letter, errors = candidate.stored.letter, candidate.errors
    some = [m for m in matrices(errors.comparison) if 0 < m.difference.relative_rmse < math.inf]
    return section(
        f"Errors of {letter}: {candidate.stored.name}",
        *_not_finite(candidate),
        _by_layer(errors.grid, letter),
        *([_by_size(candidate, some)] if some else []),
        _worst(errors.histograms, letter),
    )


def _not_finite(candidate: Candidate) -> list[Markup]:
    total = candidate.errors.comparison.total
    if not total.nonfinite:
        return []
    counts = f"{total.nonfinite_a} weights of A and {total.nonfinite_b} of {candidate.stored.letter}"
    return [note("Not finite", f"{counts} are NaN or infinite; they are in none of the numbers.")]


def _by_layer(grid: ErrorGrid | None, letter: str) -> Markup:
    title = "By layer and matrix"
    if grid is None:
        return note(title, "Weights are matched by name, so that nobody knows their layers.")
    starts = [0.0, *Shades.of(grid.values()).edges] if any(grid.values()) else [0.0]
    return card(
        title,
        drawn(heat_map(f"grid-{letter}", grid, letter)),
        shades("Relative RMSE in percent", map(percent, starts)),
        folded("Numbers", *_grid_tables(grid)),
    )


def _grid_tables(grid: ErrorGrid) -> list[Markup]:
    rows = [
        (str(layer), *("" if value is None else percent(value) for value in row))
        for layer, row in enumerate(grid.layers)
    ]
    found = [table("Relative RMSE in percent, by layer", ("layer", *grid.kinds), rows)]
    if grid.others:
        others = [(name, percent(value)) for name, value in grid.others]
        found.append(table("Outside the layers", ("matrix", "relative RMSE, %"), others))
    return found


def _by_size(candidate: Candidate, some: Sequence[TensorDifference]) -> Markup:
    letter, errors = candidate.stored.letter, candidate.errors
    head = ("matrix", "type", "bytes", "RMSE, %", "max error")
    rows = [
        (
            short_name(each.name),
            each.type_b,
            size_text(errors.sizes[each.name]),
            percent(each.difference.relative_rmse),
            figure(each.difference.max_error),
        )
        for each in some[:_WORST]
    ]
    return card(
        "Size and error",
        drawn(error_charts.sizes_and_errors(f"points-{letter}", errors, some, letter)),
        table(f"The worst {len(rows)} of {len(some)} matrices with errors", head, rows),
    )


def _worst(found: Sequence[Histogram], letter: str) -> Markup:
    if not found:
        return note(_HISTOGRAMS, "No matrix has an error that could be drawn.")
    head = ("bin", *(short_name(each.name) for each in found))
    rows = [
        (str(i + 1), *(f"{figure(each.edges[i])}: {percent(each.shares[i])}" for each in found))
        for i in range(len(found[0].shares))
    ]
    remark = (
        "How many weights of a matrix have which error, in units of the root mean square of its original "
        "weights; the outer bars have all that is beyond them, too."
    )
    return card(
        _HISTOGRAMS,
        *(drawn(error_charts.histogram(f"errors-{letter}-{i}", each)) for i, each in enumerate(found)),
        aside(remark),
        folded("Numbers", table("Where each bin begins, and percent of the weights in it", head, rows)),
    )
