"""Which scaling of "llama3" gives the divisors that a file has: their numbers are nowhere else."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir.rope import Rope, RopeScaling
from phiconv_formats.gguf.names import LLAMA3_FACTORS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from phiconv_formats.gguf.entries import Entries

__all__ = ["find_llama3"]

_CONTEXTS = tuple(1 << bits for bits in (13, *range(1, 13), *range(14, 24)))  # Llama 3's own first
_LOW_AND_HIGH = (
    (1.0, 4.0),
    *((low, high) for low in (1.0, 2.0, 4.0) for high in (2.0, 4.0, 8.0, 16.0, 32.0)),
)
_LOWS = (1, 2, 3, 4, 10, 100, 1000)
_NARROW = 1e-3  # between the limits of high and low frequencies
_CLOSE = 2e-6  # float32 rounds a few times, depending on who computed them, and differences make more of it


def find_llama3(divisors: Sequence[float], theta: float, dimensions: int, entries: Entries) -> dict[str, Any]:
    """A ``rope_scaling`` that gives these divisors.

    Usual numbers are tried first; several may fit, where few pairs lie between the two limits.

    Args:
        divisors: One for each pair.
        theta: Base of the frequencies.
        dimensions: Rotated dimensions of a head.
        entries: The file's metadata, for messages.

    Raises:
        ConfigError: None does.
    """
    frequencies = np.array(Rope(dimensions, theta, 2).inverse_frequencies(long=False))

    def fits(scaling: RopeScaling) -> bool:
        rope = Rope(dimensions, theta, scaling.original_context, scaling=scaling)
        return np.allclose(rope.divisors(), divisors, rtol=_CLOSE, atol=0)

    tried = chain(_usual(max(divisors)), _solved(np.array(divisors), frequencies))
    scaling = next(filter(fits, tried), None)
    if scaling is None:
        raise entries.error(LLAMA3_FACTORS, "these factors of rotary frequencies are not those of llama3")
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }


def _usual(factor: float) -> Iterator[RopeScaling]:
    for low, high in _LOW_AND_HIGH:
        if high > low:
            yield from (RopeScaling("llama3", factor, low, high, context) for context in _CONTEXTS)


def _solved(divisors: NDArray[np.float64], frequencies: NDArray[np.float64]) -> Iterator[RopeScaling]:
    """Those that follow from the pairs between the limits.

    The share of a frequency that stays is ``(context / wave - low) / (high - low)``. With ``low = 1`` these
    are linear equations for the context and for ``high - low``: two pairs or more determine both. With one,
    or none, any context does that lies between the waves on either side.
    """
    factor, waves = float(divisors.max()), 2 * np.pi / frequencies
    between = np.flatnonzero((divisors > 1) & (divisors < factor))
    shares = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
    if len(between) > 1:
        matrix = np.stack([1 / waves[between], -shares], axis=1)
        (context, width), *_ = np.linalg.lstsq(matrix, np.ones(len(shares)))
        for low in _LOWS:
            yield from _scaling(factor, context, width, low)
        return
    last = int(between[0]) if len(between) else np.count_nonzero(divisors == 1) - 1
    most = waves[min(last + 1, len(waves) - 1)] / waves[last] - 1
    for more in np.geomspace(1e-5, max(most, 1e-5), 256):
        for low in _LOWS:
            context = round(low * waves[last] * (1 + more)) / low
            width = (context / waves[last] - 1) / shares[0] if len(between) else _NARROW
            yield from _scaling(factor, context, width, low)


def _scaling(factor: float, context: float, width: float, low: int) -> Iterator[RopeScaling]:
    """The numbers of config.json, where the context is an integer: all three times the same number."""
    whole, high = round(low * context), low * (1 + float(width))
    # A number as people write it first: the equations know it to a few digits only.
    for each in (round(high, 3), high):
        if 2 <= whole < 1 << 31 and each > low:
            yield RopeScaling("llama3", factor, float(low), each, whole)
