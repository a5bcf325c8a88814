"""Pictures made ready for a model's encoder, as the model's own processor does it.

Three ways: Phi-3.5-vision and Phi-4-multimodal cut a picture into square crops and add one small view of the
whole ("HD transform"); Phi-4-reasoning-vision takes it whole, in its own proportions. All start from 8-bit
colours and resize these to the very bytes of Pillow, or of PyTorch where that is what the processor uses.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.errors import UsageError
from phiconv.forward.resampling import antialiased, bicubic, resized
from phiconv.ir.senses import Picture

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from phiconv.forward.resampling import Taps
    from phiconv.ir.senses import Senses, Vision

    Pixels = NDArray[np.uint8]

__all__ = ["normalization", "patch_limits", "prepare", "resized_pixels"]

_WHITE = 255
_BITS = 22
"""Behind the point, of Pillow's weights for 8-bit colours; PyTorch's have no more."""

_TORCH_LIMIT = 1 << 15


def prepare(senses: Senses, pixels: Pixels) -> Picture:
    """Makes a picture ready.

    Args:
        senses: The model's; its preprocessor_config.json says how many crops there may be, and what is
            subtracted and divided by.
        pixels: Red, green, blue, uint8 of shape (height, width, 3).

    Raises:
        UsageError: It is no such array, or the model does not see.
    """
    if senses.vision is None:
        raise UsageError("this model has no encoder of pictures that phiconv knows")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UsageError("a picture is an array of uint8, of shape (height, width, 3)")
    return _WAYS[senses.kind](pixels, senses.vision.parameters, senses.preprocessor)


def normalization(senses: Senses) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What is subtracted from each colour, as a part of 1, and what that is divided by.

    Raises:
        UsageError: preprocessor_config.json has something else than three numbers.
    """
    mean, std = (_CLIP_MEAN, _CLIP_STD) if senses.kind == "phi3_v" else (_HALF, _HALF)
    return _colours(senses.preprocessor, "image_mean", mean), _colours(senses.preprocessor, "image_std", std)


def patch_limits(senses: Senses) -> tuple[int, int]:
    """How many patches a picture has at least and at most, where it is taken whole.

    Raises:
        UsageError: preprocessor_config.json, or config.json, has no such numbers.
    """
    settings = {**senses.config, **senses.preprocessor}
    return _integer(settings, "min_num_patches", 256), _integer(settings, "max_num_patches", 3600)


def resized_pixels(pixels: Pixels, height: int, width: int, *, pytorch: bool = False) -> Pixels:
    """An 8-bit picture in another size (bilinear), with the bytes of Pillow's ``resize``, or of PyTorch's.

    Both compute in whole numbers, an axis at a time, and round weights to so many bits behind the point.
    Pillow is that of release 13; those before it never begin with the height.
    """
    fewer = pixels.shape[0] - height
    down_first = not pytorch and fewer > 0 and fewer > 2 * (pixels.shape[1] - width)
    for axis in (0, 1) if down_first else (1, 0):
        if pixels.shape[axis] != (height, width)[axis]:
            taps = antialiased(pixels.shape[axis], (height, width)[axis])
            pixels = _resized_axis(pixels, taps, axis, _pytorch_bits(taps) if pytorch else _BITS)
    return pixels


def _pytorch_bits(taps: Taps) -> int:
    """As many as leave the largest weight within 16 bits; so it is where a processor has AVX2."""
    largest, bits = float(taps.weights.max()), 0
    while bits < _BITS and int(0.5 + largest * (1 << (bits + 1))) < _TORCH_LIMIT:
        bits += 1
    return bits


def _resized_axis(pixels: Pixels, taps: Taps, axis: int, bits: int) -> Pixels:
    whole = np.floor(taps.weights * (1 << bits) + 0.5)  # none is negative
    sums = resized(pixels.astype(np.float64), taps._replace(weights=whole), axis)  # exact: below 2**53
    return np.clip(np.floor((sums + (1 << (bits - 1))) / (1 << bits)), 0, 255).astype(np.uint8)


def _phi3v(pixels: Pixels, vision: Vision, settings: Mapping[str, Any]) -> Picture:
    """As many crops as the picture's proportions and ``num_crops`` allow, padded with white on two sides."""
    side = vision.crop_size or 0
    tall = pixels.shape[1] < pixels.shape[0]
    if tall:
        pixels = pixels.transpose(1, 0, 2)
    ratio = pixels.shape[1] / pixels.shape[0]
    scale, most = 1, _integer(settings, "num_crops", 4)
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= most:
        scale += 1
    width, height = side * scale, max(int(side * scale / ratio), 1)
    padded = math.ceil(height / side) * side
    top = (padded - height) // 2
    canvas = np.full((padded, width, 3), _WHITE, np.uint8)
    canvas[top : top + height] = resized_pixels(pixels, height, width)
    if tall:
        canvas = canvas.transpose(1, 0, 2)
    normal = _normalized(canvas, settings, _CLIP_MEAN, _CLIP_STD)
    return Picture(_crops(normal, side), (canvas.shape[0] // side, canvas.shape[1] // side))


def _phi4mm(pixels: Pixels, vision: Vision, settings: Mapping[str, Any]) -> Picture:
    """A grid of crops with the proportions nearest to the picture's, padded with white right and below."""
    side, size = vision.crop_size or 0, vision.patch_size
    height, width = pixels.shape[:2]
    rows, columns = _grid(height, width, side, _integer(settings, "dynamic_hd", 36))
    scale = min(columns * side / width, rows * side / height)
    if columns * side / width < rows * side / height:
        new = (min(int(height * scale), rows * side), columns * side)
    else:
        new = (rows * side, min(int(width * scale), columns * side))
    canvas = np.full((rows * side, columns * side, 3), _WHITE, np.uint8)
    canvas[: new[0], : new[1]] = resized_pixels(pixels, max(new[0], 1), max(new[1], 1), pytorch=True)
    shown = np.ones((rows * side // size, columns * side // size), np.bool_)
    for axis, (whole, used) in enumerate(zip(canvas.shape, new, strict=False)):
        if (empty := (whole - used) // size) > 0:
            np.moveaxis(shown, axis, 0)[-empty:] = False
    normal = _normalized(canvas, {}, _HALF, _HALF)
    patches = side // size
    masks = shown.reshape(rows, patches, columns, patches).transpose(0, 2, 1, 3).reshape(-1, patches, patches)
    masks = np.concatenate([np.ones((1, patches, patches), np.bool_), masks])
    return Picture(_crops(normal, side), (rows, columns), masks)


def _grid(height: int, width: int, side: int, most: int) -> tuple[int, int]:
    """Rows and columns of crops: as the picture needs, or the nearest proportions that are not too many."""
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    if rows * columns <= most:
        return rows, columns
    ratio, best, found = width / height, math.inf, (1, 1)
    grids = [(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if i * j <= most]
    for i, j in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(ratio - i / j)
        if difference < best or (difference == best and width * height > 0.5 * side * side * i * j):
            best, found = difference, (j, i)
    return found


def _phi4_siglip(pixels: Pixels, vision: Vision, settings: Mapping[str, Any]) -> Picture:
    """Resized so that the number of patches is about its own, within limits; each side whole patches."""
    size = vision.patch_size
    height, width = pixels.shape[:2]
    least, most = _integer(settings, "min_num_patches", 256), _integer(settings, "max_num_patches", 3600)
    own = max((height // size) * (width // size), 1)
    rows, columns = _patches_within(height, width, size, min(max(own, least), most))
    new = resized_pixels(pixels, rows * size, columns * size)
    normal = _normalized(new, settings, _HALF, _HALF)
    return Picture(normal[None])


def _patches_within(height: int, width: int, size: int, most: int) -> tuple[int, int]:
    """The largest scale of a picture at which its patches, rounded up, are not too many.

    ``get_image_size_for_max_num_patches`` of transformers 5.24: a search between two scales, which ends where
    they are 1e-5 apart.
    """

    def patches(scale: float) -> tuple[int, int]:
        rows, columns = (max(math.ceil(n * scale / size), 1) for n in (height, width))
        return rows, columns

    low, high = 1e-5 / 10, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(patches(middle)) <= most else (low, middle)
    return patches(low)


_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _normalized(
    pixels: Pixels, settings: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> NDArray[np.float32]:
    """``(pixels / 255 - mean) / std``, float32 of shape (3, height, width)."""
    subtracted, divided = (_colours(settings, k, v) for k, v in (("image_mean", mean), ("image_std", std)))
    x = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    result: NDArray[np.float32] = (x - subtracted[:, None, None]) / divided[:, None, None]
    return result


def _crops(normal: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The small view of the whole, and the crops row by row."""
    colours, height, width = normal.shape
    small = normal
    for axis in (2, 1):
        small = resized(small, bicubic(small.shape[axis], side), axis).astype(np.float32)
    cut = normal.reshape(colours, height // side, side, width // side, side).transpose(1, 3, 0, 2, 4)
    return np.concatenate([small[None], cut.reshape(-1, colours, side, side)])


def _integer(settings: Mapping[str, Any], key: str, usual: int) -> int:
    value = settings.get(key, usual)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 16:
        raise UsageError(f"{key} in preprocessor_config.json is {value!r}, and no number of them")
    return value


def _colours(settings: Mapping[str, Any], key: str, usual: tuple[float, ...]) -> NDArray[np.float32]:
    value = settings.get(key, usual)
    try:
        found = np.array(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0, np.float32)
    if found.shape != (3,) or not np.isfinite(found).all() or (key == "image_std" and not (found > 0).all()):
        raise UsageError(f"{key} in preprocessor_config.json is no three numbers for red, green, blue")
    return found


_WAYS: dict[str, Callable[[Pixels, Vision, Mapping[str, Any]], Picture]] = {
    "phi3_v": _phi3v,
    "phi4mm": _phi4mm,
    "phi4_multimodal": _phi4mm,
    "phi4-siglip": _phi4_siglip,
}
"""By `Senses.kind`."""
