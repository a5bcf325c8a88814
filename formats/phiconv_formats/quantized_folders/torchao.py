"""torchao's folders: the class of each tensor is described in the metadata of the safetensors files.

    NAME._weight_qdata       I8 or F8_E4M3 [out, in]
    NAME._weight_scale       F32 or BF16 [out / height, in / width], of blocks of the metadata's block_size
    NAME._weight_zero_point  I8, of the same shape; absent for floats

    weight = (qdata - zero_point) * scale

Read are ``Int8Tensor``, ``IntxUnpackedToInt8Tensor``, whose codes of a few bits take a byte each, and
``Float8Tensor``. Source: torchao 0.18 (``prototype/safetensors``, ``quantization/quantize_/workflows``).
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir
from phiconv.architectures.config import Config
from phiconv.errors import MalformedFileError
from phiconv.ir.hub_encodings import grouped_integers
from phiconv_formats.quantized_folders.arrays import SMALL, put_together
from phiconv_formats.quantized_folders.fp8 import fp8_matrix
from phiconv_formats.quantized_folders.matrices import Numbers, as_matrix
from phiconv_formats.shared.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from phiconv.ir.model import Checkpoint
    from phiconv_formats.quantized_folders.arrays import Arrays, Bundle

__all__ = ["assemble"]

_DATA, _SCALE, _ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"
ARRAYS: Arrays = {_DATA: ("i8", "f8_e4m3"), _SCALE: ("f32", "bf16", "f16"), _ZERO: ("i8",)}
_MOST_TEXT = 1 << 16


def assemble(folder: Checkpoint, quantization: Mapping[str, Any]) -> Checkpoint:  # noqa: ARG001
    """The folder with its matrices put together; the metadata says of each how it is stored.

    Raises:
        MalformedFileError: Arrays that do not fit each other or the metadata.
        UnsupportedModelError: A class that is not read.
    """
    return put_together(folder, ARRAYS, _DATA, partial(_matrix, folder.metadata))


def _matrix(metadata: Mapping[str, Any], bundle: Bundle) -> ir.Tensor:
    rows, columns = bundle.matrix(_DATA)
    kind, described = _description(metadata, bundle)
    height, width = _block(described, bundle, (rows, columns))
    bundle.expect(**dict.fromkeys((_SCALE, _ZERO), (rows // height, columns // width)))
    is_float = bundle[_DATA].encoding.name == "f8_e4m3"
    if is_float != (kind == "Float8Tensor") or (is_float and _ZERO in bundle):
        raise bundle.error(f"is no {kind}, as the metadata says", _DATA)
    if is_float:
        return fp8_matrix("torchao_fp8", bundle, bundle[_SCALE], (height, width), _DATA)
    if height != 1:
        raise bundle.unsupported(f"has blocks of {height} rows")
    bits = 8 if kind == "Int8Tensor" else _bits(described, bundle)
    return _integers(bundle, (rows, columns), bits, width)


def _description(metadata: Mapping[str, Any], bundle: Bundle) -> tuple[str, Config]:
    """The class of a tensor, and its attributes."""
    name = f"{bundle.base}.weight"
    text = metadata.get(name)
    if not isinstance(text, str) or len(text) > _MOST_TEXT:
        raise bundle.error("the metadata of the file does not say what this is", _DATA)
    value = parse_json(text.encode(), path=bundle.path, at=f"metadata {name}", max_values=1000)
    found = Config(value if isinstance(value, dict) else {}, bundle.path, f"{name}: ")
    kind, attributes = found.get("_type")[1], found.section("_data")
    if kind not in ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor"):
        raise bundle.unsupported(f"is stored as torchao's {kind!r:.60}")
    if attributes is None:
        raise found.error("_data", "missing")
    if attributes.get("act_pre_scale")[1] is not None:
        raise bundle.unsupported("has factors of its inputs")
    return kind, attributes


def _block(described: Config, bundle: Bundle, shape: tuple[int, int]) -> tuple[int, int]:
    block = described.get("block_size")[1]
    good = isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    if not good or any(size % n for size, n in zip(shape, block, strict=True)):
        raise bundle.error(f"cannot be cut into the blocks that the metadata states ({block!r:.60})", _DATA)
    return block[0], block[1]


def _bits(described: Config, bundle: Bundle) -> int:
    target = described.section("target_dtype")
    found = re.fullmatch("int([2-8])", str(target.get("_data")[1] if target else ""))
    if found is None:
        raise bundle.unsupported("has another target_dtype than int2 to int8")
    return int(found[1])


def _integers(bundle: Bundle, shape: tuple[int, int], bits: int, group_size: int) -> ir.Tensor:
    kind, parts = bundle[_SCALE].encoding, (bundle[_DATA], bundle[_SCALE])
    assert isinstance(kind, ir.FloatEncoding)  # noqa: S101 - see ARRAYS
    symmetric = _all_zero(bundle)
    encoding = grouped_integers("torchao", bits, group_size, kind, symmetric=symmetric)
    numbers = partial(_numbers, bits, bundle[_DATA].label)
    return as_matrix(encoding, shape, parts if symmetric else (*parts, bundle[_ZERO]), numbers)


def _all_zero(bundle: Bundle) -> bool:
    """Whether a matrix is symmetric, though it has zero points; very many of these are not looked at."""
    return _ZERO not in bundle or (bundle[_ZERO].size <= SMALL and not any(bundle.small(_ZERO)))


def _numbers(
    bits: int,
    label: str,
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[np.uint8] | None = None,
) -> Numbers:
    """Signed codes and zero points counted from the least on.

    Raises:
        MalformedFileError: One has more bits.
    """
    middle = np.uint8(1 << (bits - 1))
    counted = [None if c is None else c + middle for c in (codes, zero_points)]  # bytes wrap around
    if any(c is not None and np.any(c >> bits) for c in counted if bits < 8):
        raise MalformedFileError(f"has a number of more than {bits} bits", path=label)
    assert counted[0] is not None  # noqa: S101 - codes there are
    return Numbers(counted[0], scales, counted[1])
