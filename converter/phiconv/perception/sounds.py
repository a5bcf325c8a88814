"""Sounds made ready for Phi-4-multimodal's encoder: the logarithm of a mel spectrogram.

From ``feature_extraction_phi4_multimodal.py`` of transformers 5.24. The scale of pitches is Kaldi's:
``mel(f) = 1127 * log(1 + f / 700)``.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RATE", "log_mel"]

RATE = 16000
"""Samples per second."""

_FRAME, _STEP, _FFT = 400, 160, 512
_EMPHASIS = 0.97
_HIGHEST = 7690.0
_LOUDEST = 32768
"""Samples from -1 to 1 are computed with as if they were 16-bit integers."""


def log_mel(samples: NDArray[np.floating[Any]], bands: int = 80) -> NDArray[np.float32]:
    """The spectrogram of a sound.

    Args:
        samples: One channel, 16,000 per second, from -1 to 1.
        bands: How many pitches.

    Returns:
        Natural logarithms of energies, none below 0, shape (frames, bands).

    Raises:
        UsageError: It is shorter than a frame, or has more than one channel.
    """
    if samples.ndim != 1 or len(samples) < _FRAME:
        raise UsageError("a sound is one channel of at least 400 samples, 16,000 per second")
    x = samples.astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(x, _FRAME)[::_STEP]
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    sharpened = (frames - np.float32(_EMPHASIS) * before) * np.float32(_LOUDEST)
    spectrum = np.fft.rfft(np.hamming(_FRAME) * sharpened, _FFT).astype(np.complex64)
    energy = np.abs(spectrum) ** 2 @ _triangles(bands).astype(np.float32)
    result: NDArray[np.float32] = np.log(np.maximum(energy, 1))
    return result


def _mel(frequency: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    mel: NDArray[np.float64] = 1127.0 * np.log(1 + frequency / 700)
    return mel


@cache
def _triangles(bands: int) -> NDArray[np.float64]:
    """How much of each frequency is in each band: triangles on the scale of pitches that overlap by half.

    Returns:
        Shape (frequencies, bands).
    """
    corners = np.linspace(0, 1127.0 * math.log(1 + _HIGHEST / 700), bands + 2)
    pitches = _mel(RATE / _FFT * np.arange(_FFT // 2 + 1))[:, None]
    rising = (pitches - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - pitches) / np.diff(corners)[1:]
    return np.maximum(np.minimum(rising, falling), 0)
