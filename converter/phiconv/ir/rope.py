"""Rotary position embeddings: which angle turns a pair of dimensions at a position."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from phiconv.brief import Brief

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Rope", "RopeScaling", "Scaling"]

Scaling: TypeAlias = Literal["linear", "llama3"]
"""``rope_type`` in config.json."""


@dataclass(frozen=True, slots=True, repr=False)
class RopeScaling(Brief):
    """Frequencies that are scaled for a longer context than a model was first trained for.

    "linear" divides all by ``factor`` (https://arxiv.org/abs/2306.15595). "llama3" divides those whose waves
    are longer than ``original_context / low_freq_factor`` positions, leaves alone those whose waves are
    shorter than ``original_context / high_freq_factor``, and goes from the one to the other in between (Llama
    3.1; transformers' modeling_rope_utils.py).
    """

    kind: Scaling
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def frequency(self, frequency: float) -> float:
        """What becomes of a frequency; every step is rounded to float32, in transformers' order."""
        share = self._share(frequency)
        if share in {0.0, 1.0}:
            return frequency if share else _float32(frequency / _float32(self.factor))
        scaled = _float32(_float32(_float32(1 - share) * frequency) / _float32(self.factor))
        return _float32(scaled + _float32(share * frequency))

    def divisor(self, frequency: float) -> float:
        """What a frequency is divided by; every step is rounded to float32, in llama.cpp's order."""
        share = self._share(frequency)
        if share in {0.0, 1.0}:
            return 1.0 if share else self.factor
        return _float32(1 / _float32(_float32(_float32(1 - share) / _float32(self.factor)) + share))

    def _share(self, frequency: float) -> float:
        """How much of a frequency stays as it is: from 1 for the shortest waves to 0 for the longest."""
        if self.kind == "linear":
            return 0.0
        # torch divides a number by a tensor in two steps: it multiplies by the reciprocal.
        wave = _float32(_float32(1 / frequency) * _float32(2 * math.pi))
        if wave < self.original_context / self.high_freq_factor:
            return 1.0
        if wave > self.original_context / self.low_freq_factor:
            return 0.0
        count = _float32(_float32(1 / wave) * self.original_context)
        waves = _float32(count - self.low_freq_factor)
        return _float32(waves / (self.high_freq_factor - self.low_freq_factor))


@dataclass(frozen=True, slots=True, repr=False)
class Rope(Brief):
    """Rotary position embedding over the first ``dimensions`` of each head, in halves (NeoX style).

    With ``short_factor`` and ``long_factor`` it is LongRoPE (https://arxiv.org/abs/2402.13753): frequency
    ``i`` is divided by the short factor ``i`` up to ``original_context`` positions, by the long one beyond.

    Attributes:
        dimensions: Rotated dimensions of a head, even.
        theta: Base of the frequencies.
        short_factor, long_factor: ``dimensions / 2`` divisors each, or empty.
        original_context: Positions the model was first trained for.
        short_mscale, long_mscale: What cos and sin are multiplied by, at every length.
        scaling: Another way in which the frequencies are scaled; there are no LongRoPE factors then.
    """

    dimensions: int
    theta: float
    original_context: int
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    short_mscale: float = 1.0
    long_mscale: float = 1.0
    scaling: RopeScaling | None = None

    @staticmethod
    def longrope_mscale(scale: float, original_context: int) -> float:
        """LongRoPE's attention factor, sqrt(1 + ln(scale) / ln(original)): the context grew by ``scale``."""
        return math.sqrt(1 + math.log(scale) / math.log(original_context)) if scale > 1 else 1.0

    def is_long(self, length: int) -> bool:
        """Whether a sequence of this many positions takes the long factors, at all of its positions."""
        return bool(self.long_factor) and length > self.original_context

    def inverse_frequencies(self, *, long: bool) -> tuple[float, ...]:
        """Radians per position of each rotated pair, ``1 / (factor[i] * theta ** (2 * i / dimensions))``.

        Every step is rounded to float32. The models were trained so, and at position 100 000 even the last
        bit of a frequency turns a pair by 0.01 radians.

        Args:
            long: Take the long factors instead of the short ones.

        Returns:
            ``dimensions / 2`` numbers that are float32 exactly.
        """
        half = self.dimensions // 2
        factors = (self.long_factor if long else self.short_factor) or (1.0,) * half
        divisors = (_float32(_float32(f) * power) for f, power in zip(factors, self._powers(), strict=True))
        frequencies = (_float32(1 / divisor) if divisor else math.inf for divisor in divisors)
        return tuple(frequencies if self.scaling is None else map(self.scaling.frequency, frequencies))

    def divisors(self) -> tuple[float, ...]:
        """What `scaling` divides each frequency by, as float32; 1 for all without one."""
        scaling = self.scaling
        frequencies = (_float32(1 / power) for power in self._powers())
        return tuple(1.0 if scaling is None else scaling.divisor(frequency) for frequency in frequencies)

    def _powers(self) -> Iterator[float]:
        """``theta ** (2 * i / dimensions)`` for every pair."""
        theta = _float32(self.theta)
        return (_float32(theta ** _float32(2 * i / self.dimensions)) for i in range(self.dimensions // 2))

    def mscale(self, *, long: bool) -> float:
        """What cos and sin are multiplied by."""
        return self.long_mscale if long else self.short_mscale


def _float32(value: float) -> float:
    """The nearest float32, infinity where it is too large."""
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.inf
    return rounded
