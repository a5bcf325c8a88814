"""The format-neutral tensor.

How it is stored (``Encoding``), a piece of it in memory (``Blocks``), and a whole that is read lazily
(``Tensor``). Nothing here knows a file format, a model or a runtime. A reader makes `Tensor` objects from a
`Source`; a quantizer turns float values into `Blocks`; a format's packer turns `Blocks` into its own bytes
and back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "BF16",
    "F16",
    "F32",
    "F64",
    "Q2_K",
    "Q3_K",
    "Q4_0",
    "Q4_1",
    "Q4_K",
    "Q5_0",
    "Q5_1",
    "Q5_K",
    "Q6_K",
    "Q8_0",
    "AnyBlockEncoding",
    "BlockEncoding",
    "Blocks",
    "Encoded",
    "Encoding",
    "FloatArray",
    "FloatEncoding",
    "RawEncoding",
    "Run",
    "Source",
    "SuperBlockEncoding",
    "Tensor",
    "concatenate",
    "constant",
    "stack",
]

FloatArray: TypeAlias = "NDArray[np.float32]"


# ------------------------------------------------------------------------------------------------ encodings


@dataclass(frozen=True, slots=True)
class FloatEncoding:
    """Every weight is one floating-point number."""

    name: str
    dtype: np.dtype[np.generic]

    block_size = 1

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        return 8.0 * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class BlockEncoding:
    """``block_size`` neighbouring weights of a row share a scale.

    It gives them back as ``weight = scale * (code - offset) + minimum``.

    Attributes:
        name: The name the field knows it by.
        block_size: Weights per block, a multiple of 4.
        bits: Bits of a code.
        offset: Subtracted from a code; codes of an encoding with offset 0 and no minimum are signed.
        has_minimum: Whether a block also has a minimum (asymmetric); 0 otherwise.
    """

    name: str
    block_size: int
    bits: int
    offset: int = 0
    has_minimum: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        return self.bits + (32.0 if self.has_minimum else 16.0) / self.block_size


@dataclass(frozen=True, slots=True)
class SuperBlockEncoding:
    """Blocks of ``block_size`` weights, cut into sub-blocks whose scales are small integers.

    A block has a float16 scale and, where ``has_minimum``, a float16 minimum. A sub-block has an integer that
    multiplies the scale, and one that multiplies the minimum. In float32, in this order of operations, ::

        weight = (scale * sub_scale) * (code - offset) - minimum * sub_minimum

    The minimum is thus subtracted (it is 0 or more), where that of a `BlockEncoding` is added.

    Attributes:
        name: The name the field knows it by.
        bits: Bits of a code; codes are never negative.
        sub_block_size: Weights per sub-block, a multiple of 4.
        scale_bits: Bits of a sub-scale, and of a sub-minimum.
        offset: Subtracted from a code. Where there is one, sub-scales may be negative; else neither they nor
            sub-minima are.
        has_minimum: Whether there are a minimum and sub-minima.
        block_size: Weights per block.
    """

    name: str
    bits: int
    sub_block_size: int
    scale_bits: int
    offset: int = 0
    has_minimum: bool = False
    block_size: int = 256

    @property
    def sub_blocks(self) -> int:
        """Sub-blocks per block."""
        return self.block_size // self.sub_block_size

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        scales = 2 if self.has_minimum else 1
        return self.bits + scales * (self.scale_bits / self.sub_block_size + 16.0 / self.block_size)


@dataclass(frozen=True, slots=True)
class RawEncoding:
    """Elements that phiconv lists and copies but cannot compute with: integers, types not decoded yet."""

    name: str
    block_size: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        return 8.0 * self.block_bytes / self.block_size


AnyBlockEncoding: TypeAlias = BlockEncoding | SuperBlockEncoding
"""The encodings of `Blocks`."""

Encoding: TypeAlias = FloatEncoding | AnyBlockEncoding | RawEncoding

F64 = FloatEncoding("f64", np.dtype("<f8"))
F32 = FloatEncoding("f32", np.dtype("<f4"))
F16 = FloatEncoding("f16", np.dtype("<f2"))
BF16 = FloatEncoding("bf16", np.dtype(ml_dtypes.bfloat16))

# llama.cpp's classic blocks (ggml-common.h): one float16 scale for 32 weights, some with a float16 minimum.
Q4_0 = BlockEncoding("q4_0", 32, 4, offset=8)
Q4_1 = BlockEncoding("q4_1", 32, 4, has_minimum=True)
Q5_0 = BlockEncoding("q5_0", 32, 5, offset=16)
Q5_1 = BlockEncoding("q5_1", 32, 5, has_minimum=True)
Q8_0 = BlockEncoding("q8_0", 32, 8)

# llama.cpp's "K-quants": 256 weights with one float16 scale, in sub-blocks of 16 or 32.
Q2_K = SuperBlockEncoding("q2_k", 2, sub_block_size=16, scale_bits=4, has_minimum=True)
Q3_K = SuperBlockEncoding("q3_k", 3, sub_block_size=16, scale_bits=6, offset=4)
Q4_K = SuperBlockEncoding("q4_k", 4, sub_block_size=32, scale_bits=6, has_minimum=True)
Q5_K = SuperBlockEncoding("q5_k", 5, sub_block_size=32, scale_bits=6, has_minimum=True)
Q6_K = SuperBlockEncoding("q6_k", 6, sub_block_size=16, scale_bits=8, offset=32)


# --------------------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True, slots=True)
class Blocks:
    """``n`` quantized blocks, unpacked: what the quantization says, not how a file stores it.

    Codes are laid out *quads first*: ``codes[i, b, j]`` is weight ``4 * i + j`` of block ``b``. So every
    NumPy operation over them is one long vector over the blocks, and four neighbouring codes are one 32-bit
    word for a packer (``words``). Blocks follow each other as in the tensor, row by row; any range of them is
    a slice of axis 1.

    Attributes:
        encoding: How codes, scales and minima give weights.
        codes: uint8 (int8 where the encoding's codes are signed), shape (block_size / 4, n, 4), C-contiguous.
        scales: float16, shape (n,).
        minima: float16, shape (n,), or None where the encoding has none.
        sub_scales: Of a `SuperBlockEncoding` what multiplies the scale in each sub-block, shape
            (sub-blocks of a block, n): int8 where the encoding has an offset, else uint8.
        sub_minima: What multiplies the minimum, in the same way; None where the encoding has none.
    """

    encoding: AnyBlockEncoding
    codes: NDArray[np.uint8] | NDArray[np.int8]
    scales: NDArray[np.float16]
    minima: NDArray[np.float16] | None = None
    sub_scales: NDArray[np.uint8] | NDArray[np.int8] | None = None
    sub_minima: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return int(self.scales.shape[0])

    def words(self) -> NDArray[np.uint32]:
        """The codes as little-endian words of four, shape (block_size / 4, n)."""
        return np.ascontiguousarray(self.codes).view("<u4")[..., 0]

    @staticmethod
    def join(parts: Sequence[Blocks]) -> Blocks:
        """Blocks of several parts, one after the other, without touching a code."""
        first = parts[0]
        if len(parts) == 1:
            return first
        codes = np.concatenate([p.codes for p in parts], axis=1)
        names = ("scales", "minima", "sub_scales", "sub_minima")
        others: list[list[Any]] = [[getattr(part, name) for part in parts] for name in names]
        joined: list[Any] = [None if o[0] is None else np.concatenate(o, axis=-1) for o in others]
        return Blocks(first.encoding, codes, *joined)


Encoded: TypeAlias = "NDArray[np.generic] | Blocks"
"""Rows of a tensor in memory: an array of the stored float type, shape (rows, columns), or `Blocks`; of a
`RawEncoding` the stored bytes, uint8 of shape (rows, bytes of a row)."""


# -------------------------------------------------------------------------------------------------- tensors


class Source(Protocol):
    """A stored tensor, seen as a matrix, whose rows can be read in any order and from any thread."""

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""

    @property
    def encoding(self) -> Encoding:
        """How the rows are stored."""

    def read(self, start: int, stop: int) -> Encoded:
        """Reads rows ``start`` to ``stop`` into memory of their own."""

    def changed(self) -> bool:
        """Whether what it reads is no longer what was opened."""


@dataclass(frozen=True, slots=True)
class Run:
    """Rows ``start`` to ``stop`` of one source."""

    source: Source
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that is read when it is needed, and only the rows that are needed.

    As a matrix it has ``rows`` rows of ``columns`` weights; the last dimension is the row. A vector counts as
    one column, so that it can be cut anywhere. Slices and joins are views: they move no weight.

    Attributes:
        shape: The logical shape, outermost dimension first, in Python integers.
        runs: Where its rows are, in order; neighbours of one source are one run.
    """

    shape: tuple[int, ...]
    runs: tuple[Run, ...]

    @staticmethod
    def of(source: Source, shape: Sequence[int]) -> Tensor:
        """The whole of a source."""
        tensor = Tensor(tuple(shape), ())
        return Tensor(tensor.shape, (Run(source, 0, tensor.rows),))

    @property
    def columns(self) -> int:
        """Weights in a row."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else math.prod(self.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def encoding(self) -> Encoding:
        """How it is stored."""
        return self.runs[0].source.encoding

    @property
    def label(self) -> str:
        """Where it is stored, for messages."""
        return self.runs[0].source.label if self.runs else "an empty tensor"

    def slice_rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of a vector or a matrix, as a view."""
        if not 0 <= start <= stop <= self.rows or len(self.shape) > 2:
            raise IndexError(f"rows {start}:{stop} of a tensor of shape {self.shape}")
        return Tensor((stop - start, *self.shape[1:]), _cut(self.runs, start, stop))

    def reshape(self, shape: Sequence[int]) -> Tensor:
        """The same rows under another shape; the row itself must stay."""
        other = Tensor(tuple(shape), self.runs)
        if (other.rows, other.columns) != (self.rows, self.columns):
            raise ValueError(f"{self.shape} cannot be seen as {tuple(shape)}")
        return other

    def read(self, start: int, stop: int) -> Encoded:
        """Reads rows ``start`` to ``stop`` into memory of their own."""
        pieces = _cut(self.runs, start, stop) or (Run(self.runs[0].source, 0, 0),)
        if len(pieces) == 1:
            return pieces[0].source.read(pieces[0].start, pieces[0].stop)
        return _join([run.source.read(run.start, run.stop) for run in pieces], len(pieces))


@dataclass(frozen=True, slots=True)
class _Constant:
    """Float32 values that come from no file."""

    label: str
    values: tuple[float, ...]
    encoding: Encoding = F32

    def read(self, start: int, stop: int) -> FloatArray:
        return np.array(self.values[start:stop], dtype="<f4").reshape(-1, 1)

    def changed(self) -> bool:
        return False


def constant(values: Sequence[float], label: str) -> Tensor:
    """A float32 vector of given values."""
    return Tensor.of(_Constant(label, tuple(values)), (len(values),))


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """Joins vectors or matrices along their rows, as a view."""
    rows = sum(t.shape[0] for t in tensors)
    if len({t.shape[1:] for t in tensors}) != 1 or len({t.encoding for t in tensors}) != 1:
        raise ValueError(f"cannot join {[(t.shape, t.encoding.name) for t in tensors]}")
    return Tensor((rows, *tensors[0].shape[1:]), _merge(run for t in tensors for run in t.runs))


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stacks matrices of one shape into one tensor with a new outermost dimension, as a view."""
    if len({t.shape for t in tensors}) != 1:
        raise ValueError(f"cannot stack {[t.shape for t in tensors]}")
    joined = concatenate(tensors)
    return joined.reshape((len(tensors), *tensors[0].shape))


def _cut(runs: Iterable[Run], start: int, stop: int) -> tuple[Run, ...]:
    """The runs of rows ``start`` to ``stop``."""
    result, at = [], 0
    for run in runs:
        low, high = max(start - at, 0), min(stop - at, len(run))
        if low < high:
            result.append(Run(run.source, run.start + low, run.start + high))
        at += len(run)
    return tuple(result)


def _merge(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Joins neighbouring runs of one source, so that a fused tensor is read in one piece again."""
    result: list[Run] = []
    for run in runs:
        if result and result[-1].source is run.source and result[-1].stop == run.start:
            result[-1] = Run(run.source, result[-1].start, run.stop)
        else:
            result.append(run)
    return tuple(result)


def _join(pieces: Sequence[Encoded], count: int) -> Encoded:
    blocks = [p for p in pieces if isinstance(p, Blocks)]
    if len(blocks) == count:
        return Blocks.join(blocks)
    return np.concatenate([p for p in pieces if not isinstance(p, Blocks)])
