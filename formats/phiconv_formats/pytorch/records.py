"""What the pickle of a checkpoint may speak of: names of types, storages, and tensors in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from phiconv import ir

__all__ = ["DTYPES", "STORAGES", "Global", "StorageRecord", "TensorRecord"]


def _raw(name: str, size: int) -> ir.RawEncoding:
    return ir.RawEncoding(name, 1, size)


_BYTES = _raw("u8", 1)

STORAGES: dict[str, ir.FloatEncoding | ir.RawEncoding] = {
    "torch.FloatStorage": ir.F32,
    "torch.HalfStorage": ir.F16,
    "torch.BFloat16Storage": ir.BF16,
    "torch.DoubleStorage": ir.F64,
    "torch.LongStorage": _raw("i64", 8),
    "torch.IntStorage": _raw("i32", 4),
    "torch.ShortStorage": _raw("i16", 2),
    "torch.CharStorage": _raw("i8", 1),
    "torch.ByteStorage": _BYTES,
    "torch.BoolStorage": _raw("bool", 1),
    "torch.storage.UntypedStorage": _BYTES,
    "torch.UntypedStorage": _BYTES,
}
"""What an element of a storage is, by the storage's class."""

DTYPES: dict[str, ir.FloatEncoding | ir.RawEncoding] = {
    "torch.float32": ir.F32,
    "torch.float16": ir.F16,
    "torch.bfloat16": ir.BF16,
    "torch.float64": ir.F64,
    "torch.int64": _raw("i64", 8),
    "torch.int32": _raw("i32", 4),
    "torch.int16": _raw("i16", 2),
    "torch.int8": _raw("i8", 1),
    "torch.uint8": _BYTES,
    "torch.uint16": _raw("u16", 2),
    "torch.uint32": _raw("u32", 4),
    "torch.uint64": _raw("u64", 8),
    "torch.bool": _raw("bool", 1),
    "torch.float8_e4m3fn": _raw("f8_e4m3", 1),
    "torch.float8_e5m2": _raw("f8_e5m2", 1),
}
"""What an element is, by torch's name of the dtype."""


class Global(NamedTuple):
    """A name from the pickle; nothing is imported for it."""

    name: str


@dataclass(frozen=True, slots=True)
class StorageRecord:
    """A run of numbers in the file.

    Attributes:
        key: Its name in the file.
        encoding: What an element is.
        count: How many elements it has.
    """

    key: str
    encoding: ir.FloatEncoding | ir.RawEncoding
    count: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A view of a storage: element ``i, j, ...`` is number ``offset + i * stride[0] + j * stride[1] + ...``.

    The numbers are checked to be integers, and not yet to stay inside the storage.

    Attributes:
        storage: Where the numbers are.
        offset: The first one, counted in elements of ``encoding``.
        shape: Outermost dimension first.
        stride: Elements from one index to the next, for each dimension.
        encoding: What an element is; mostly that of the storage.
    """

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    encoding: ir.FloatEncoding | ir.RawEncoding
