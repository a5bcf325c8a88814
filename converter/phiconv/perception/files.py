"""Pictures and sounds in files: pictures in a few usual forms, which Pillow opens, and WAV."""

from __future__ import annotations

import warnings
import wave
from typing import TYPE_CHECKING

import numpy as np

from phiconv.errors import (
    MalformedFileError,
    MissingFileError,
    UnsupportedModelError,
    UsageError,
    printable,
)
from phiconv.perception.sounds import RATE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["FORMATS", "read_picture", "read_sound"]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""What Pillow may open, which has other forms, too: for one of them (EPS) it starts another program."""

_MOST_PIXELS = 1 << 26
_LONGEST = 3600  # seconds


def read_picture(path: Path) -> NDArray[np.uint8]:
    """The pixels of a picture, upright, uint8 of shape (height, width, 3).

    Raises:
        UsageError: Pillow is not installed.
        InputError: There is no such file, or no picture in it, or a very large one.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UsageError(
            "pictures are opened with Pillow, which is not installed", hint="pip install 'phiconv[images]'"
        ) from None
    if not path.is_file():
        raise MissingFileError("no such picture", path=path)
    try:
        # A file that is cut off or odd is opened as far as it goes, and Pillow warns, which nobody needs.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            size = image.size
            if size[0] * size[1] <= _MOST_PIXELS:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # its decoders raise whatever they stumble over
        reason = printable(error) or type(error).__name__
        raise MalformedFileError(f"no picture that can be opened: {reason}", path=path) from error
    message = f"a picture of {size[0]} x {size[1]} pixels is too large"
    raise UsageError(message, path=path, hint="make it smaller")


def read_sound(path: Path) -> NDArray[np.float32]:
    """The samples of a WAV file, from -1 to 1; the mean of its channels.

    Raises:
        InputError: There is no such file, or no WAV of 16 bits and 16,000 samples per second.
    """
    if not path.is_file():
        raise MissingFileError("no such sound", path=path)
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, frames = file.getparams()[:4]
            if (width, rate) != (2, RATE) or frames > RATE * _LONGEST:
                raise UnsupportedModelError(
                    f"a sound of {8 * width} bits, {rate} samples per second and {frames / rate:.0f} seconds",
                    path=path,
                    hint=f"convert it to WAV of 16 bits and {RATE} samples per second",
                )
            found = file.readframes(frames)
    except (wave.Error, EOFError, OSError, RuntimeError, ValueError, ZeroDivisionError) as error:
        reason = printable(error) or "it is damaged"
        raise MalformedFileError(f"no WAV file: {reason}", path=path) from error
    data = np.frombuffer(found[: len(found) // 2 * 2], "<i2")
    whole = data[: len(data) // channels * channels].reshape(-1, channels)
    samples: NDArray[np.float32] = whole.mean(axis=1, dtype=np.float32) / np.float32(1 << 15)
    return samples
