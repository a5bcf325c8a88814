"""A comparison, for a person or a program."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from phiconv.cli.report import shape_text, table
from phiconv.errors import printable
from phiconv.reporting.figures import percent
from phiconv.reporting.grid import Shades, error_grid
from phiconv.units import count_text

if TYPE_CHECKING:
    from phiconv.quality.comparison import Comparison, Difference

__all__ = ["comparison_lines", "comparison_object"]

_HEAD = ("", "shape", "types", "relative RMSE", "max error", "cosine", "SQNR", "")


def comparison_object(found: Comparison, *, tensors: bool = True) -> dict[str, Any]:
    """A comparison, for ``--json``; what is infinite or undefined is null, for JSON has no such numbers."""
    result: dict[str, Any] = {
        "a": str(found.a),
        "b": str(found.b),
        "matched_by": found.matched_by,
        "total": {**_numbers(found.total), "bits_per_weight": [found.bits_a, found.bits_b]},
    }
    if found.without_encoders:
        result["without_encoders"] = True
    if tensors:
        result["tensors"] = [
            {
                "name": t.name,
                "shape": list(t.shape),
                "types": [t.type_a, t.type_b],
                **_numbers(t.difference),
                "bits_per_weight": [t.bits_a, t.bits_b],
            }
            for t in found.tensors
        ]
    return result


def _numbers(difference: Difference) -> dict[str, Any]:
    numbers = {
        "relative_rmse": difference.relative_rmse,
        "max_error": difference.max_error,
        "cosine": difference.cosine,
        "sqnr_db": difference.sqnr,
    }
    return {
        "weights": difference.weights,
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "nonfinite": [difference.nonfinite_a, difference.nonfinite_b],
    }


def comparison_lines(found: Comparison, *, tensors: bool = True) -> list[str]:
    """A comparison, for people."""
    total = found.total
    lines = [
        f"{printable(found.a)}: {found.bits_a:.2f} bits per weight",
        f"{printable(found.b)}: {found.bits_b:.2f} bits per weight",
        f"  {count_text(total.weights)} weights in {len(found.tensors)} tensors, by {found.matched_by}",
        (
            f"  relative RMSE {total.relative_rmse:.3e}, max error {total.max_error:.3e}, "
            f"cosine {total.cosine:.8f}, SQNR {total.sqnr:.2f} dB"
        ),
    ]
    if found.without_encoders:
        lines.append("  what one of them sees with is not compared: the other is a language model alone")
    if total.nonfinite:
        lines.append(f"  warning: {_nonfinite(total)}; these weights are in none of the numbers")
    lines += grid_lines(found)
    if tensors:
        rows = [
            (
                printable(t.name),
                shape_text(t.shape),
                t.type_a if t.type_a == t.type_b else f"{t.type_a} -> {t.type_b}",
                f"{t.difference.relative_rmse:.3e}",
                f"{t.difference.max_error:.3e}",
                f"{t.difference.cosine:.8f}",
                f"{t.difference.sqnr:.2f} dB",
                _nonfinite(t.difference) if t.difference.nonfinite else "",
            )
            for t in found.tensors
        ]
        lines += table([_HEAD, *rows], frozenset({3, 4, 5, 6}))
    return lines


def grid_lines(found: Comparison) -> list[str]:
    """The errors of all matrices, a line for each layer; at most 80 columns for up to eight matrices."""
    grid = error_grid(found)
    if grid is None:
        return []
    shades = Shades.of(grid.values())

    def cell(value: float | None) -> str:
        return "" if value is None else f"{_SHADES[shades(value)]}{percent(value):>5}"

    heads = zip(*(kind.rpartition("_")[::2] for kind in grid.kinds), strict=True)
    rows = [(str(layer), *map(cell, row)) for layer, row in enumerate(grid.layers)]
    others = (f"{printable(name)} {cell(value).strip()}" for name, value in grid.others)
    return [
        "  relative RMSE in percent, by layer:",
        *(f"  {'':5}" + "".join(f" {printable(word, 8):>8}" for word in words) for words in heads),
        *(f"  {layer:>5}" + "".join(f" {each:>8}" for each in cells) for layer, *cells in rows),
        f"  outside the layers: {', '.join(others)}",
    ]


_SHADES = " .:+*#"
"""From the least errors to the largest, in signs that every terminal has."""


def _nonfinite(difference: Difference) -> str:
    return f"{difference.nonfinite_a} and {difference.nonfinite_b} are NaN or infinite"
