"""What phiconv reads and writes, for a person or for a program with ``--json``."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

from phiconv import recipes
from phiconv.architectures import ARCHITECTURES
from phiconv_formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["families", "formats_lines", "formats_object"]

_WIDTH = 100
"""Columns of the longest line of names."""


def formats_object() -> dict[str, Any]:
    """What phiconv reads and writes, for ``--json``."""
    return {
        "formats": [
            {
                "name": f.name,
                "title": f.title,
                "suffixes": list(f.suffixes),
                "read": f.reader is not None,
                "write": f.writer is not None,
            }
            for f in FORMATS.values()
        ],
        "presets": {target: module.PRESETS for target, module in recipes.TARGETS.items()},
        "quantizations": {target: list(module.DEFAULTS) for target, module in recipes.TARGETS.items()},
        "architectures": {
            a.name: {"classes": list(a.classes), "models": a.title} for a in ARCHITECTURES.values()
        },
    }


def formats_lines() -> list[str]:
    """What phiconv reads and writes, for people."""
    lines = ["Formats:"]
    for f in FORMATS.values():
        ways = " and ".join(w for w, can in (("read", f.reader), ("written", f.writer)) if can)
        looks = [*f.suffixes, *(["a folder"] if f.folder else [])]
        lines.append(f"  {f.name} ({', '.join(looks)}): {ways}; {f.title}")
    for target, module in recipes.TARGETS.items():
        presets = ", ".join(f"--{name} = {recipe}" for name, recipe in module.PRESETS.items())
        lines.append(f"Presets for {target}: {presets}")
        lines.append(f"Quantizations for {target} (--quant):")
        for stems, sizes in families(module.DEFAULTS):
            lines += textwrap.wrap(", ".join(stems), _WIDTH, initial_indent="  ", subsequent_indent="    ")
            if sizes:
                lines.append(f"    and each of these with {', '.join(sizes)}")
    lines.append("Models:")
    lines += [f"  {a.name} ({', '.join(a.classes)}): {a.title}" for a in ARCHITECTURES.values()]
    return lines


def families(names: Iterable[str]) -> list[tuple[list[str], list[str]]]:
    """Names of recipes without the sizes of their blocks, together where they come in the same sizes.

    Returns:
        Names, and the endings that each of them can have; none for those that stand alone.
    """
    sizes: dict[str, list[str]] = {}
    for name in names:
        stem, size = re.fullmatch(r"(.+?)(-g\d+|-channel)?", name).groups()  # type: ignore[union-attr]
        sizes.setdefault(stem, []).extend([size] if size else [])
    groups: dict[tuple[str, ...], list[str]] = {}
    for stem, found in sizes.items():
        groups.setdefault(tuple(found), []).append(stem)
    return [(stems, list(found)) for found, stems in groups.items()]
