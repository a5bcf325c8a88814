"""Pictures and sounds in files: any picture that Pillow opens, and WAV."""

from __future__ import annotations

import wave
from typing import TYPE_CHECKING

import numpy as np

from phiconv.errors import MalformedFileError, MissingFileError, UnsupportedModelError, UsageError
from phiconv.perception.sounds import RATE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["read_picture", "read_sound"]

_MOST_PIXELS = 1 << 26
_LONGEST = 3600  # seconds


def read_picture(path: Path) -> NDArray[np.uint8]:
    """The pixels of a picture, upright, uint8 of shape (height, width, 3).

    Raises:
        UsageError: Pillow is not installed.
        InputError: There is no such file, or no picture in it, or a very large one.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise UsageError(
            "pictures are opened with Pillow, which is not installed", hint="pip install 'phiconv[images]'"
        ) from None
    if not path.is_file():
        raise MissingFileError("no such picture", path=path)
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                message = f"a picture of {image.width} x {image.height} pixels is too large"
                raise UsageError(message, path=path, hint="make it smaller")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MalformedFileError(f"no picture that can be opened: {error}", path=path) from error


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
            data = np.frombuffer(file.readframes(frames), "<i2")
    except (wave.Error, EOFError, OSError, ZeroDivisionError) as error:
        raise MalformedFileError(f"no WAV file: {error}", path=path) from error
    whole = data[: len(data) // channels * channels].reshape(-1, channels)
    samples: NDArray[np.float32] = whole.mean(axis=1, dtype=np.float32) / np.float32(1 << 15)
    return samples
