"""Folders of FP8 numbers: fine-grained as DeepSeek's and transformers', or with one scale for a matrix.

    weight            F8_E4M3 [out, in]
    weight_scale_inv  F32 [out / block, in / block], rounded up; E8M0 where scale_fmt says ue8m0
    weight_scale      the same under vLLM's and AutoFP8's name, mostly one number
    input_scale       of the activations, which are quantized as they come: not read

    weight = code * scale

Whatever its name says, ``weight_scale_inv`` is what codes are multiplied with. Source: transformers 5.24
(``integrations/finegrained_fp8.py``, ``Fp8Dequantize``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from phiconv.ir.hub_encodings import grouped_fp8
from phiconv_formats.quantized_folders.arrays import put_together
from phiconv_formats.quantized_folders.matrices import as_matrix
from phiconv_formats.quantized_folders.settings import read_settings, refuse
from phiconv_formats.quantized_folders.small_floats import e4m3_numbers
from phiconv_formats.shared.rows import SharedRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv import ir
    from phiconv.ir.model import Checkpoint
    from phiconv_formats.quantized_folders.arrays import Arrays, Bundle
    from phiconv_formats.shared.rows import Rows

__all__ = ["assemble", "fp8_matrix"]

_SCALES = ("weight_scale_inv", "weight_scale")

ARRAYS: Arrays = {
    "weight": ("f8_e4m3",),
    "weight_scale_inv": ("f32", "bf16", "f8_e8m0"),
    "weight_scale": ("f32", "bf16"),
    "input_scale": ("f32", "bf16"),
    "activation_scale": ("f32", "bf16"),
}


def assemble(folder: Checkpoint, quantization: Mapping[str, Any]) -> Checkpoint:
    """The folder with its matrices put together.

    Raises:
        MalformedFileError: Arrays that do not fit each other or the configuration.
        ConfigError: A setting that is wrong, or not read.
    """
    settings = read_settings(folder, quantization)
    stated = settings.get("weight_block_size")[1]
    pair = isinstance(stated, list) and len(stated) == 2
    if stated is not None and not (pair and all(type(n) is int and 0 < n < 1 << 31 for n in stated)):
        raise refuse(settings, "weight_block_size", "a size of blocks that is")
    block = (stated[0], stated[1]) if stated is not None else (128, 128)
    for scale in _SCALES:
        folder = put_together(folder, ARRAYS, scale, partial(_matrix, block, scale))
    return folder


def _matrix(block: tuple[int, int], scale: str, bundle: Bundle) -> ir.Tensor:
    rows, columns = bundle.matrix("weight")
    scales, (height, width) = bundle[scale], block
    grid = (-(-rows // height), -(-columns // width))
    if all(name in bundle for name in _SCALES):
        raise bundle.error("has scales under two names")
    if scales.size == 1 and (scales.shape != (1, 1) or grid != (1, 1)):
        return fp8_matrix("fp8", bundle, scales.reshape((1, 1)), (rows, columns))
    if scale == "weight_scale" and scales.shape in {(rows,), (rows, 1)}:
        return fp8_matrix("fp8", bundle, scales.reshape((rows, 1)), (1, columns))
    bundle.expect(**{scale: grid})
    return fp8_matrix("fp8", bundle, scales, block)


def fp8_matrix(
    method: str, bundle: Bundle, scales: Rows, block: tuple[int, int], name: str = "weight"
) -> ir.Tensor:
    """A matrix of E4M3 numbers.

    Args:
        method: Who stores them so, for the name.
        bundle: Has the numbers.
        scales: Of blocks of the matrix: (rows / height, columns / width) of them, both rounded up.
        block: Height and width.
        name: What the numbers are called.
    """
    height, width = block
    encoding = grouped_fp8(method, width, height)
    parts = (bundle[name], SharedRows(scales, height))
    return as_matrix(encoding, bundle.matrix(name), parts, partial(e4m3_numbers, width))
