"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["count_text", "size_text"]


def size_text(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def count_text(count: float) -> str:
    """A number of weights as people read it."""
    for unit in ("", "K", "M"):
        if count < 1000:
            return f"{count:.0f}{unit}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.2f}B"
