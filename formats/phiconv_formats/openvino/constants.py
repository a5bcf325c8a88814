"""The constants of an IR that is read: where each one lies in the .bin, and its rows as they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir
from phiconv.errors import MalformedFileError, printable
from phiconv_formats.openvino.graph import ELEMENT_BITS
from phiconv_formats.openvino.ir_graph import integer
from phiconv_formats.shared.rows import FileRows, HalfByteRows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from phiconv_formats.openvino.ir_graph import Layer
    from phiconv_formats.shared.files import InputFile

__all__ = ["Constant", "check_overlaps", "float_tensor", "numbers", "read_constant"]

_MAX_RANK = 8
_MAX_NUMBERS = 64  # of a shape, and of nothing else that is read at once
_BITS = ELEMENT_BITS | {
    "f64": 64, "f8e4m3": 8, "f8e5m2": 8, "i16": 16, "u1": 1, "u16": 16, "u2": 2, "u3": 3, "u32": 32, "u6": 6,
    "u64": 64,
}  # fmt: skip
_FLOATS = {"f64": ir.F64, "f32": ir.F32, "f16": ir.F16, "bf16": ir.BF16}


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant: numbers in the .bin, the last dimension innermost.

    Attributes:
        name: Of its layer.
        type: The element type, as IRs spell it.
        shape: Outermost dimension first, in Python integers.
        file: The .bin.
        offset: Where it begins.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    file: InputFile
    offset: int

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return -(-prod(self.shape) * _BITS[self.type] // 8)

    def matrix(self, rows: int) -> FileRows | HalfByteRows:
        """The bytes of its numbers, which have 4 bits or whole bytes, as so many rows."""
        numbers, bits = prod(self.shape) // rows, _BITS[self.type]
        whole = numbers * bits % 8 == 0
        size, encoding = numbers * bits // 8 if whole else 1, ir.RawEncoding(self.type, 1, 1)
        stored = FileRows(self.file, self.offset, size, encoding, self.name)
        return stored if whole else HalfByteRows(stored, numbers)


def read_constant(layer: Layer, file: InputFile, path: Path) -> Constant:
    """Where a layer of kind Const has its numbers.

    Args:
        layer: The layer.
        file: The .bin.
        path: The .xml, for messages.

    Raises:
        MalformedFileError: It does not say where, or says something that cannot be.
    """
    at = f"constant {layer.name}"
    element_type = layer.attributes.get("element_type", "")
    if element_type not in _BITS:
        message = f"of element type {printable(element_type, 40)!r}, which phiconv does not know"
        raise MalformedFileError(message, path=path, at=at)
    text = layer.attributes.get("shape", "")
    shape = tuple(integer(number.strip(), path, f"{at}, shape") for number in text.split(",") if text.strip())
    offset, size = (integer(layer.attributes.get(key), path, f"{at}, {key}") for key in ("offset", "size"))
    needed = -(-prod(shape[:_MAX_RANK]) * _BITS[element_type] // 8)
    if len(shape) > _MAX_RANK or size != needed:
        message = f"{size} bytes are not the size of shape {list(shape)[:_MAX_RANK]} in {element_type}"
        raise MalformedFileError(message, path=path, at=at)
    if offset + size > file.size:
        raise MalformedFileError(
            f"its bytes {offset} to {offset + size} are not in {file.path.name}, which ends at {file.size}",
            path=path,
            at=at,
            hint="the .bin is truncated, or another model's: download both files again",
        )
    return Constant(layer.name, element_type, shape, file, offset)


def check_overlaps(constants: Iterable[Constant], path: Path) -> None:
    """No constant may begin within another one; two may be the same bytes, as equal ones are.

    Raises:
        MalformedFileError: One does.
    """
    by_place = sorted((c for c in constants if c.size), key=lambda c: (c.offset, c.size))
    for before, after in pairwise(by_place):
        same = (before.offset, before.size) == (after.offset, after.size)
        if not same and after.offset < before.offset + before.size:
            message = f"overlaps constant {printable(before.name)}"
            raise MalformedFileError(message, path=path, at=f"constant {printable(after.name)}")


def float_tensor(constant: Constant, shape: Sequence[int]) -> ir.Tensor | None:
    """A constant of floats as a tensor of this shape; None if it is of another type."""
    encoding = _FLOATS.get(constant.type)
    if encoding is None:
        return None
    columns = shape[-1] if len(shape) > 1 else 1
    size = columns * encoding.dtype.itemsize
    return ir.Tensor.of(FileRows(constant.file, constant.offset, size, encoding, constant.name), shape)


def numbers(constant: Constant) -> list[int] | None:
    """The numbers of a small constant of integers; None if it is another one."""
    count = prod(constant.shape)
    if constant.type not in ("i32", "i64") or count > _MAX_NUMBERS:
        return None
    size = _BITS[constant.type] // 8
    data = constant.file.read_bytes(constant.offset, count * size)
    return [int(number) for number in np.frombuffer(data, f"<i{size}")]
