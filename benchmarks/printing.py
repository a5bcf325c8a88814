"""What a benchmark found, as tables for people or as JSON."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = dict[str, Any]

_HEADS = {"cpu": "CPU s", "wall": "wall s", "anonymous": "anonymous MiB", "resident": "resident MiB"}


def table(rows: Sequence[Row]) -> str:
    """Aligned columns: words to the left, numbers to the right."""
    keys = list(rows[0])
    lines = [[_HEADS.get(key, key) for key in keys], *([_text(row[key]) for key in keys] for row in rows)]
    columns = []
    for key, cells in zip(keys, zip(*lines, strict=True), strict=True):
        width = max(map(len, cells))
        words = isinstance(rows[0][key], str)
        columns.append([cell.ljust(width) if words else cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def _text(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """Prints what was found: tables for people, or JSON."""
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for what, why in result.get("skipped", {}).items():
        print(f"{what}: skipped, {why}")
    if "load average" in result:
        load = ", ".join(f"{x:.2f}" for x in result["load average"])
        print(f"load average: {load}; processors: {os.cpu_count()}")
    for key in ("kernels", "threads", "steps", "speeds", "ratios", "outputs", "kills"):
        if result.get(key):
            print(f"\n{table(result[key])}")
