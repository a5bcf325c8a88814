"""What phiconv reads and writes, for a person or for a program with ``--json``."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from phiconv import recipes
from phiconv.architectures import ARCHITECTURES
from phiconv.architectures.multimodal import KINDS
from phiconv.recipes.peers import PEERS
from phiconv_formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.recipes.grammar import Family

__all__ = ["family_lines", "formats_lines", "formats_object"]

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
        "bytes_of": PEERS,
        "presets": {target: module.PRESETS for target, module in recipes.TARGETS.items()},
        "quantizations": {target: module.RECIPES.names() for target, module in recipes.TARGETS.items()},
        "architectures": {
            a.name: {"classes": list(a.classes), "models": a.title} for a in ARCHITECTURES.values()
        },
        "text_parts": [{"names": list(k.names), "models": k.title, "as": k.text.name} for k in KINDS],
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
        lines += [line for family in module.RECIPES.families for line in family_lines(family)]
    lines += [f"Compared with for {target}: {_names(peers)}" for target, peers in PEERS.items() if peers]
    lines.append("Models:")
    lines += [f"  {a.name} ({', '.join(a.classes)}): {a.title}" for a in ARCHITECTURES.values()]
    lines.append("Models whose text part is converted:")
    lines += [f"  {k.names[0]}, as {k.text.name}: {k.title}" for k in KINDS]
    return lines


def _names(peers: Mapping[str, str]) -> str:
    """Tools with their versions."""
    return ", ".join(f"{name} {version}" for name, version in peers.items())


def family_lines(family: Family) -> list[str]:
    """How the names of a family are built, and which sizes of groups ``N`` stands for."""
    sizes = [f"{n} (usual)" if n == family.groups[0] else str(n) for n in sorted(family.groups) if n]
    text = f"{family}   N = {', '.join(sizes)}" if len(sizes) > 1 else str(family)
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
