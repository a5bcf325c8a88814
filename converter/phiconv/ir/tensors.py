"""A piece of a tensor in memory (`Blocks`), and a whole that is read lazily (`Tensor`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from phiconv.brief import Brief
from phiconv.ir.encodings import F32, AnyBlockEncoding, Encoding

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "Blocks",
    "Effort",
    "Encoded",
    "FloatArray",
    "Run",
    "Source",
    "Tensor",
    "concatenate",
    "constant",
    "stack",
]

FloatArray: TypeAlias = "NDArray[np.float32]"

Effort: TypeAlias = Literal["exact", "fast", "best"]
"""What to spend on a quantization: "exact" gives the very bytes of llama.cpp; "fast" may give others, in the
same encoding and with about the same error, see `fast`."""


# --------------------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True, slots=True, repr=False)
class Blocks(Brief):
    """``n`` quantized blocks, unpacked: what the quantization says, not how a file stores it.

    Codes are laid out *quads first*: ``codes[i, b, j]`` is weight ``4 * i + j`` of block ``b``. So every
    NumPy operation over them is one long vector over the blocks, and four neighbouring codes are one 32-bit
    word for a packer (``words``). Blocks follow each other as in the tensor, row by row; any range of them is
    a slice of axis 1.

    Attributes:
        encoding: How codes, scales and minima give weights.
        codes: uint8 (int8 where the encoding's codes are signed), shape (block_size / 4, n, 4), C-contiguous.
        scales: float16 (or the encoding's own type), shape (n,).
        minima: Of the scales' type, shape (n,), or None where the encoding has none.
        sub_scales: What multiplies the scale in each sub-block, small integers, shape (sub-blocks of a block,
            n); None where the encoding has no sub-blocks.
        sub_minima: What multiplies the minimum, in the same way; None where the encoding has none.
        zero_points: What is subtracted from the codes of a block, uint8 of shape (n,); None where the
            encoding has none.
        global_scales: What the scale of a block is divided by, a number of the whole tensor that the block is
            of, float32 of shape (n,); None where there is none.
    """

    encoding: AnyBlockEncoding
    codes: NDArray[np.uint8] | NDArray[np.int8]
    scales: NDArray[np.floating[Any]]
    minima: NDArray[np.floating[Any]] | None = None
    sub_scales: NDArray[np.integer[Any]] | None = None
    sub_minima: NDArray[np.integer[Any]] | None = None
    zero_points: NDArray[np.uint8] | None = None
    global_scales: FloatArray | None = None

    def __len__(self) -> int:
        return int(self.scales.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = [getattr(self, field.name) for field in fields(self)[1:]]
        return sum(int(array.nbytes) for array in arrays if array is not None)

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
        names = ("scales", "minima", "sub_scales", "sub_minima", "zero_points", "global_scales")
        others: list[list[Any]] = [[getattr(part, name) for part in parts] for name in names]
        joined: list[Any] = [None if o[0] is None else np.concatenate(o, axis=-1) for o in others]
        return Blocks(first.encoding, codes, *joined)

    def take(self, indices: NDArray[np.intp]) -> Blocks:
        """Some of the blocks, in the given order."""
        others: list[Any] = [getattr(self, field.name) for field in fields(self)[2:]]
        taken: list[Any] = [None if other is None else other[..., indices] for other in others]
        return Blocks(self.encoding, self.codes[:, indices], *taken)


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
        """Whether what it reads is no longer what was opened.

        Raises:
            MalformedFileError: It is, and its checksum, if it has one, says that it is damaged.
        """


@dataclass(frozen=True, slots=True, repr=False)
class Run(Brief):
    """Rows ``start`` to ``stop`` of one source."""

    source: Source
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, repr=False)
class Tensor(Brief):
    """A tensor that is read when it is needed, and only the rows that are needed.

    As a matrix it has ``rows`` rows of ``columns`` weights; the last dimension is the row. A vector counts as
    one column, so that it can be cut anywhere. Slices and joins are views: they move no weight.

    Attributes:
        shape: The logical shape, outermost dimension first, in Python integers.
        runs: Where its rows are, in order; neighbours of one source are one run.
    """

    SHOWN = ("label", "shape", "encoding")

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

    def changed(self) -> bool:
        """Whether what it reads is no longer what was opened (see `Source.changed`)."""
        return any(run.source.changed() for run in self.runs)


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
