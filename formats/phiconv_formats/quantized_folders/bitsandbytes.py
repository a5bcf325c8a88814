"""bitsandbytes' folders: 4 bits (NF4 and FP4) in blocks, whose scales may be quantized too; 8 bits by row.

With 4 bits the rows of a matrix follow each other without gaps, two codes to a byte, the first in the upper
half; ``quant_state`` is a text in JSON with the matrix's shape and the size of the blocks:

    weight                              U8 [n / 2, 1]
    weight.absmax                       F32 [blocks], or U8 where scales are quantized too
    weight.quant_map                    F32 [16], the value of each code
    weight.quant_state.bitsandbytes__*  U8
    weight.nested_absmax                F32, a number for so many scales
    weight.nested_quant_map             F32 [256]

    scale = absmax, or nested_quant_map[absmax] * nested_absmax + nested_offset
    weight = quant_map[code] * scale

With 8 bits, where float32 rounds after each product:

    weight         I8 [out, in]
    SCB            F32 [out]
    weight_format  U8, 0 for rows as they are

    weight = code * SCB * (1 / 127)

Source: bitsandbytes 0.50 (``functional.py``, ``backends/default/ops.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir
from phiconv.architectures.config import Config
from phiconv.ir.hub_encodings import grouped_codebook, grouped_integers
from phiconv_formats.quantized_folders.arrays import put_together
from phiconv_formats.quantized_folders.matrices import Numbers, Together, as_matrix
from phiconv_formats.shared.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from phiconv.ir.model import Checkpoint
    from phiconv_formats.quantized_folders.arrays import Arrays, Bundle

__all__ = ["assemble"]

_STATE = "weight.quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")

ARRAYS_4: Arrays = {
    "weight": ("u8",),
    "weight.absmax": ("f32", "u8"),
    "weight.quant_map": ("f32",),
    "weight.nested_absmax": ("f32",),
    "weight.nested_quant_map": ("f32",),
    **{_STATE + kind: ("u8",) for kind in _KINDS},
}
ARRAYS_8: Arrays = {"weight": ("i8",), "SCB": ("f32",), "weight_format": ("u8",)}

_LEAST_BLOCK, _LARGEST_BLOCK = 16, 1 << 16
_LARGEST = 1e30  # far from what float32 can hold


def assemble(folder: Checkpoint, quantization: Mapping[str, Any]) -> Checkpoint:  # noqa: ARG001
    """The folder with its matrices put together; each says itself how it is stored.

    Raises:
        MalformedFileError: Arrays that do not fit each other.
    """
    return put_together(put_together(folder, ARRAYS_8, "SCB", _rows), ARRAYS_4, "weight.absmax", _blocks)


# ---------------------------------------------------------------------------------------------------- 8 bits


def _rows(bundle: Bundle) -> ir.Tensor:
    rows, columns = bundle.matrix("weight")
    bundle.expect(SCB=(rows,))
    if "weight_format" in bundle and bundle.small("weight_format") != b"\0":
        raise bundle.unsupported("its weight_format is not that of plain rows")
    encoding = grouped_integers("bnb", 8, columns, ir.F32, symmetric=True, signed=True)
    groups, factors = np.zeros(columns, np.int32), np.full(columns, 1 / 127, np.float32)
    parts, shape = (bundle["weight"], bundle["SCB"]), (rows, columns)
    return as_matrix(encoding, shape, parts, _signed, groups=groups, factors=factors, name="bnb_int8")


def _signed(codes: NDArray[np.uint8], scales: NDArray[Any]) -> Numbers:
    return Numbers(codes.view(np.int8), scales)


# ---------------------------------------------------------------------------------------------------- 4 bits


@dataclass(frozen=True, slots=True)
class _Nested:
    """Scales that are quantized in blocks themselves (an `ir.Source` of a vector)."""

    codes: ir.Tensor
    scales: ir.Tensor
    block_size: int
    table: tuple[float, ...]
    offset: float
    encoding: ir.Encoding = ir.F32

    @property
    def label(self) -> str:
        return self.codes.label

    def read(self, start: int, stop: int) -> ir.FloatArray:
        codes: Any = self.codes.read(start, stop)
        first, last = start // self.block_size, -(-stop // self.block_size)
        scales: Any = self.scales.read(first, last)
        with np.errstate(all="ignore"):
            values: ir.FloatArray = np.array(self.table, np.float32)[codes.reshape(-1)]
            values *= scales.reshape(-1)[np.arange(start, stop) // self.block_size - first]
            values += np.float32(self.offset)
        return values.reshape(-1, 1)

    def changed(self) -> bool:
        return self.codes.changed()


@dataclass(frozen=True, slots=True)
class _Crossing:
    """The scale of every weight of some rows, whose blocks go on from one row to the next."""

    scales: ir.Tensor
    columns: int
    block_size: int

    @property
    def label(self) -> str:
        return self.scales.label

    def read(self, start: int, stop: int) -> ir.FloatArray:
        first, last = start * self.columns, stop * self.columns
        low = first // self.block_size
        scales: Any = self.scales.read(low, -(-last // self.block_size))
        index = np.arange(first, last) // self.block_size - low
        found: ir.FloatArray = scales.reshape(-1)[index].reshape(stop - start, self.columns)
        return found

    def changed(self) -> bool:
        return self.scales.changed()


def _blocks(bundle: Bundle) -> ir.Tensor:
    kind, state = _state(bundle)
    rows, columns = _shape(bundle, state)
    size = _size(bundle, state, "blocksize")
    count = -(-rows * columns // size)
    if columns % 2:
        raise bundle.unsupported(f"has rows of {columns} weights, which do not fill bytes")
    bundle.expect(
        **{"weight": (rows * columns // 2, 1), "weight.absmax": (count,), "weight.quant_map": (16,)}
    )
    table = np.frombuffer(bundle.small("weight.quant_map"), "<f4")
    if not np.isfinite(table).all():
        raise bundle.error("has a value that is no number", "weight.quant_map")
    scales = bundle["weight.absmax"]
    if scales.encoding != ir.F32:
        scales = _nested(bundle, state, count)
    elif "weight.nested_absmax" in bundle:
        raise bundle.error("has scales of scales that are not quantized", "weight.nested_absmax")
    scale_bits = bundle["weight.absmax"].encoding.bits_per_weight
    encoding = grouped_codebook(f"bnb_{kind}", table.tolist(), size, scale_bits)
    codes = Together(bundle["weight"], columns // 2)
    if columns % size == 0:
        return as_matrix(encoding, (rows, columns), (codes, Together(scales, columns // size)), _upper_first)
    groups = np.arange(columns, dtype=np.int32)
    parts = (codes, _Crossing(scales, columns, size))
    return as_matrix(encoding, (rows, columns), parts, _upper_first, groups=groups)


def _upper_first(packed: NDArray[np.uint8], scales: NDArray[Any]) -> Numbers:
    codes = np.empty((len(packed), 2 * packed.shape[1]), np.uint8)
    np.right_shift(packed, 4, out=codes[:, ::2])
    np.bitwise_and(packed, 15, out=codes[:, 1::2])
    return Numbers(codes, scales)


def _state(bundle: Bundle) -> tuple[str, Config]:
    """Which kind it is, and what ``quant_state`` says."""
    kinds = [kind for kind in _KINDS if _STATE + kind in bundle]
    if len(kinds) != 1:
        raise bundle.error(f"has {len(kinds)} arrays {_STATE}*, where one is expected")
    name = _STATE + kinds[0]
    at = f"tensor {bundle.base}.{name}"
    text = bundle.small(name)
    state = parse_json(text, path=bundle.path, at=at, max_values=1000)
    if not isinstance(state, dict):
        raise bundle.error("expected a JSON object", name)
    config = Config(state, bundle.path, f"{name}: ")
    if config.get("quant_type")[1] != kinds[0]:
        raise config.error("quant_type", f"must be {kinds[0]}, as the array is called")
    return kinds[0], config


def _shape(bundle: Bundle, state: Config) -> tuple[int, int]:
    shape = state.get("shape")[1]
    good = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
    if not good or math.prod(shape) != 2 * bundle["weight"].size:
        raise state.error(
            "shape", f"must be the two sizes of {2 * bundle['weight'].size} weights, not {shape!r}"
        )
    return shape[0], shape[1]


def _size(bundle: Bundle, state: Config, key: str) -> int:
    size = state.integer(key, least=_LEAST_BLOCK)
    if size > _LARGEST_BLOCK or size & (size - 1):
        raise bundle.unsupported(f"has blocks of {size} weights")
    return size


def _nested(bundle: Bundle, state: Config, count: int) -> ir.Tensor:
    size = _size(bundle, state, "nested_blocksize")
    bundle.expect(**{"weight.nested_absmax": (-(-count // size),), "weight.nested_quant_map": (256,)})
    table = np.frombuffer(bundle.small("weight.nested_quant_map"), "<f4")
    offset = state.get("nested_offset")[1]
    good = type(offset) in {int, float} and abs(offset) < _LARGEST
    if not good or not np.isfinite(table).all():
        raise state.error("nested_offset", "it and nested_quant_map must be numbers")
    source = _Nested(
        bundle["weight.absmax"], bundle["weight.nested_absmax"], size, tuple(table.tolist()), float(offset)
    )
    return ir.Tensor.of(source, (count,))
