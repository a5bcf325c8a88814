"""Arrays in NumPy's own file format, version 1.0 (documented in NumPy's module ``numpy.lib.format``).

Type and shape of an array are known before its file is opened, so the file's header can only be one text: it
is compared and never parsed.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from phiconv.errors import MalformedFileError
from phiconv_formats.shared.files import InputFile

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["ArrayFile", "ArrayType", "array_header", "open_array"]

ArrayType: TypeAlias = Literal["float16", "float32", "float64", "uint16", "uint32"]

_CHUNK = 1 << 22
"""Bytes that are hashed at a time."""


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """An array in a file of its own.

    Attributes:
        name: The file's.
        type: Of its numbers, which are little-endian.
        shape: Outermost dimension first.
        sha256: Of the whole file; empty where it is not known yet.
    """

    name: str
    type: ArrayType
    shape: tuple[int, ...]
    sha256: str = ""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(array_header(self)) + math.prod(self.shape) * self.dtype.itemsize

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type as NumPy has it."""
        assert self.type in get_args(ArrayType)  # noqa: S101 - of a fixed set, whoever made it
        return np.dtype(self.type).newbyteorder("<")


def array_header(array: ArrayFile) -> bytes:
    """The file's first bytes: magic, version, length, a dict as Python writes it, up to a multiple of 64."""
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    length = -(-(10 + len(text) + 1) // 64) * 64 - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"


def open_array(folder: Path, array: ArrayFile) -> NDArray[Any]:
    """Maps an array after its file was read and compared with its hash.

    Raises:
        MissingFileError: There is no such file.
        MalformedFileError: It is not this array, or a number in it is not finite.
    """
    path = folder / array.name
    head = array_header(array)
    with InputFile(path) as file:
        if file.size != array.size:
            raise MalformedFileError(
                f"has {file.size} bytes, and {array.type} of shape {array.shape} have {array.size}",
                path=path,
                hint="make the calibration again",
            )
        if file.read_bytes(0, len(head)) != head:
            raise MalformedFileError(
                f"is no array of {array.type} of shape {array.shape}",
                path=path,
                hint="make the calibration again",
            )
        digest = hashlib.sha256(head)
        for start in range(len(head), array.size, _CHUNK):
            chunk = file.read_bytes(start, min(_CHUNK, array.size - start))
            digest.update(chunk)
            if not np.isfinite(np.frombuffer(chunk, array.dtype)).all():
                raise MalformedFileError("a number is NaN or infinite", path=path, at=f"byte {start} and on")
    if digest.hexdigest() != array.sha256:
        raise MalformedFileError(
            "is not what was measured: its SHA-256 is another one than calibration.json has",
            path=path,
            hint="make the calibration again",
        )
    if math.prod(array.shape) == 0:  # no system maps nothing
        return np.empty(array.shape, array.dtype)
    return np.memmap(path, array.dtype, "r", len(head), array.shape)
