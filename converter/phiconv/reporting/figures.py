"""Numbers as a report writes them: always the same digits for the same number."""

from __future__ import annotations

import math

from phiconv.units import size_text

__all__ = ["context_text", "figure", "percent", "round_size"]


def figure(value: float) -> str:
    """A number with three digits that count."""
    if not math.isfinite(value):
        return "not defined" if math.isnan(value) else "infinite"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits}e{int(power)}"
    return f"{value:.{max(2 - math.floor(math.log10(abs(value))), 0)}f}"


def percent(value: float) -> str:
    """A part of a whole in percent, without the sign, in five characters at most."""
    if not math.isfinite(value):
        return "∞"
    each = 100 * value
    if each == 0:
        return "0"
    if each < 0.0005:
        return "<.001"
    return f"{each:.{0 if each >= 99.95 else 1 if each >= 9.995 else 2 if each >= 0.0995 else 3}f}"


def round_size(nbytes: float) -> str:
    """Bytes of a mark on an axis: a round number."""
    return size_text(nbytes).replace(".00 ", " ").replace(".0 ", " ")


def context_text(tokens: float) -> str:
    """A context, by its usual name."""
    count = round(tokens)
    return f"{count // 1024}K" if count >= 1024 and count % 1024 == 0 else str(count)
