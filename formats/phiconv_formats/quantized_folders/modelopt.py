"""Folders of NVIDIA's ModelOpt, which TensorRT-LLM, vLLM and SGLang load. The dtypes tell the form.

    form   weight             weight_scale            value of a code; scale
    fp8    F8_E4M3 [out, in]  F32 [], [out], blocks   E4M3
    nvfp4  U8 [out, in / 2]   F8_E4M3 [out, in / 16]  E2M1; weight_scale * weight_scale_2
    int4   U8 [out / 2, in]   F32 [out, groups]       two's complement, even rows in the lower halves
    int8   I8 [out, in]       F32 [] or [out]         two's complement
    mxfp4  U8 [out, in / 2]   U8 [out, in / 32]       E2M1; E8M0
    mxfp8  F8_E4M3 [out, in]  U8 [out, in / 32]       E4M3; E8M0

Scales of blocks of 128 x 128 have the shape [rows, 1, columns, 1]. ``weight_scale_2`` is F32, one number.
``pre_quant_scale`` [in] is what activations are multiplied with before they meet the weights, so it is the
weights' own factor. ``input_scale`` and the scales of keys and values are for activations: not read. All
products are rounded to float32. Source: ModelOpt 0.47 (``torch/quantization/qtensor``,
``torch/export/quant_utils.py``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir
from phiconv.ir.hub_encodings import HUB_MXFP4, HUB_MXFP8, HUB_NVFP4, grouped_integers
from phiconv_formats.quantized_folders.arrays import put_together
from phiconv_formats.quantized_folders.fp8 import fp8_matrix
from phiconv_formats.quantized_folders.matrices import Numbers, RowPairs, Together, as_matrix
from phiconv_formats.quantized_folders.settings import read_settings, refuse
from phiconv_formats.quantized_folders.small_floats import e4m3_numbers, e4m3_values, mxfp4_numbers
from phiconv_formats.shared.bit_stream import unpack_halves
from phiconv_formats.shared.rows import SharedRows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

    from phiconv.ir.model import Checkpoint
    from phiconv_formats.quantized_folders.arrays import Arrays, Bundle
    from phiconv_formats.quantized_folders.matrices import Stored
    from phiconv_formats.shared.rows import Rows

__all__ = ["assemble"]

_FLOATS = ("f32", "bf16", "f16")

ARRAYS: Arrays = {
    "weight": ("f8_e4m3", "u8", "i8"),
    "weight_scale": ("f32", "f8_e4m3", "u8"),
    "weight_scale_2": ("f32",),
    "pre_quant_scale": _FLOATS,
    "input_scale": _FLOATS,
}

_FORMS = {
    ("f8_e4m3", "f32"): "fp8",
    ("u8", "f8_e4m3"): "nvfp4",
    ("u8", "f32"): "int4",
    ("i8", "f32"): "int8",
    ("u8", "u8"): "mxfp4",
    ("f8_e4m3", "u8"): "mxfp8",
}
"""The form by the dtypes of weight and weight_scale."""

_ALGORITHMS = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_PB_WO": "fp8",
    "FP8_PB_REAL": "fp8",
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "W4A8_NVFP4_FP8": "nvfp4",
    "W4A16_AWQ": "int4",
    "W8A16": "int8",
    "W8A8_SQ_PER_CHANNEL": "int8",
    "MXFP4": "mxfp4",
    "W4A8_MXFP4_FP8": "mxfp4",
    "MXFP8": "mxfp8",
}
"""The form that a ``quant_algo`` has; a mixture may have any."""

_FP8_BLOCK = 128


def assemble(folder: Checkpoint, quantization: Mapping[str, Any]) -> Checkpoint:
    """The folder with its matrices put together.

    Raises:
        MalformedFileError: Arrays that do not fit each other or the configuration.
        ConfigError: A setting that is wrong, or not read.
    """
    settings = read_settings(folder, quantization)
    settings = settings.section("quantization") or settings  # as hf_quant_config.json has it
    stated = str(settings.get("quant_algo")[1]).upper()
    if stated not in _ALGORITHMS and stated != "MIXED_PRECISION":
        raise refuse(settings, "quant_algo", "the quantization")
    allowed = [_ALGORITHMS[stated]] if stated in _ALGORITHMS else _FORMS.values()
    return put_together(folder, ARRAYS, "weight_scale", partial(_matrix, allowed))


def _matrix(allowed: Collection[str], bundle: Bundle) -> ir.Tensor:
    dtypes = bundle["weight"].encoding.name, bundle["weight_scale"].encoding.name
    form = _FORMS.get(dtypes)
    if form is None or form not in allowed or ("weight_scale_2" in bundle) != (form == "nvfp4"):
        there = ", ".join(f"{name} of {array.encoding.name}" for name, array in bundle.arrays.items())
        raise bundle.error(f"has {there}, which quant_algo in config.json does not mean")
    return _MAKERS[form](bundle)


def _factors(bundle: Bundle, columns: int) -> ir.FloatArray | None:
    """What each column is multiplied with, if anything."""
    if "pre_quant_scale" not in bundle:
        return None
    bundle.expect(pre_quant_scale=(columns,))
    encoding = bundle["pre_quant_scale"].encoding
    assert isinstance(encoding, ir.FloatEncoding)  # noqa: S101 - see ARRAYS
    factors: ir.FloatArray = np.frombuffer(bundle.small("pre_quant_scale"), encoding.dtype).astype(np.float32)
    return factors


def _with_factors(
    bundle: Bundle,
    encoding: Stored,
    shape: tuple[int, int],
    parts: tuple[Rows, ...],
    numbers: Callable[..., Numbers],
) -> ir.Tensor:
    return as_matrix(encoding, shape, parts, numbers, factors=_factors(bundle, shape[1]))


def _fp8(bundle: Bundle) -> ir.Tensor:
    rows, columns = bundle.matrix("weight")
    if "pre_quant_scale" in bundle:
        raise bundle.unsupported("has factors of its columns beside FP8")
    scales = bundle["weight_scale"]
    if scales.size == 1:
        return fp8_matrix("modelopt_fp8", bundle, scales.reshape((1, 1)), (rows, columns))
    if len(scales.shape) == 1:
        bundle.expect(weight_scale=(rows,))
        return fp8_matrix("modelopt_fp8", bundle, scales, (1, columns))
    height, width = -(-rows // _FP8_BLOCK), -(-columns // _FP8_BLOCK)
    bundle.expect(weight_scale=(height, 1, width, 1))
    return fp8_matrix("modelopt_fp8", bundle, Together(scales, width), (_FP8_BLOCK, _FP8_BLOCK))


def _nvfp4(bundle: Bundle) -> ir.Tensor:
    rows, half = bundle.matrix("weight")
    columns = 2 * half
    bundle.expect(weight_scale=(rows, -(-columns // HUB_NVFP4.block_size)))
    if bundle["weight_scale_2"].size != 1:
        raise bundle.error("is not one number", "weight_scale_2")
    whole = float(np.frombuffer(bundle.small("weight_scale_2"), "<f4")[0])
    parts = (bundle["weight"], bundle["weight_scale"])
    return _with_factors(bundle, HUB_NVFP4, (rows, columns), parts, partial(_nvfp4_numbers, whole))


def _nvfp4_numbers(whole: float, packed: NDArray[np.uint8], scales: NDArray[np.uint8]) -> Numbers:
    with np.errstate(all="ignore"):
        return Numbers(unpack_halves(packed), e4m3_values(scales) * np.float32(whole))


def _int4(bundle: Bundle) -> ir.Tensor:
    half, columns = bundle.matrix("weight")
    rows, groups = 2 * half, bundle.matrix("weight_scale")[1]
    bundle.expect(weight_scale=(rows, groups))
    if columns % groups:
        raise bundle.error(f"has {groups} groups of {columns} inputs", "weight_scale")
    encoding = grouped_integers("modelopt", 4, columns // groups, ir.F32, symmetric=True)
    parts = (RowPairs(bundle["weight"]), bundle["weight_scale"])
    return _with_factors(bundle, encoding, (rows, columns), parts, _int4_numbers)


def _int4_numbers(codes: NDArray[np.uint8], scales: NDArray[Any]) -> Numbers:
    return Numbers(codes ^ np.uint8(8), scales)


def _int8(bundle: Bundle) -> ir.Tensor:
    rows, columns = bundle.matrix("weight")
    scales: Rows = bundle["weight_scale"]
    if bundle["weight_scale"].size == 1:
        scales = SharedRows(bundle["weight_scale"].reshape((1, 1)), rows)
    else:
        bundle.expect(weight_scale=(rows,))
    encoding = grouped_integers("modelopt", 8, columns, ir.F32, symmetric=True, signed=True)
    return _with_factors(bundle, encoding, (rows, columns), (bundle["weight"], scales), _int8_numbers)


def _int8_numbers(codes: NDArray[np.uint8], scales: NDArray[Any]) -> Numbers:
    return Numbers(codes.view(np.int8), scales)


def _mxfp4(bundle: Bundle) -> ir.Tensor:
    rows, half = bundle.matrix("weight")
    bundle.expect(weight_scale=(rows, -(-2 * half // HUB_MXFP4.block_size)))
    parts = (bundle["weight"], bundle["weight_scale"])
    return _with_factors(bundle, HUB_MXFP4, (rows, 2 * half), parts, mxfp4_numbers)


def _mxfp8(bundle: Bundle) -> ir.Tensor:
    rows, columns = bundle.matrix("weight")
    size = HUB_MXFP8.block_size
    bundle.expect(weight_scale=(rows, -(-columns // size)))
    parts = (bundle["weight"], bundle["weight_scale"])
    return _with_factors(bundle, HUB_MXFP8, (rows, columns), parts, partial(e4m3_numbers, size))


_MAKERS = {
    "fp8": _fp8,
    "nvfp4": _nvfp4,
    "int4": _int4,
    "int8": _int8,
    "mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
}
