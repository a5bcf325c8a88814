"""Where the tensors of an ONNX graph are: every place is checked before a tensor is read.

A file of weights stands in the model's own folder. A name that leads out of it, by itself or by a link, is
refused; so are places outside of the file, and such that cover each other in part.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv.errors import MalformedFileError, UnsupportedModelError, printable
from phiconv_formats.shared.files import InputFile
from phiconv_formats.shared.rows import FileRows

if TYPE_CHECKING:
    from phiconv_formats.onnx.graph_reader import GraphFile, StoredTensor

__all__ = ["FLOATS", "INT4", "INT8", "TYPES", "UINT4", "UINT8", "Initializers", "is_plain_name"]

INT4, INT8, UINT4, UINT8 = 22, 3, 21, 2

FLOATS = {1: ir.F32, 10: ir.F16, 16: ir.BF16, 11: ir.F64}
"""The float types by ONNX's numbers."""

TYPES = {
    1: ("FLOAT", 32),
    2: ("UINT8", 8),
    3: ("INT8", 8),
    4: ("UINT16", 16),
    5: ("INT16", 16),
    6: ("INT32", 32),
    7: ("INT64", 64),
    9: ("BOOL", 8),
    10: ("FLOAT16", 16),
    11: ("DOUBLE", 64),
    12: ("UINT32", 32),
    13: ("UINT64", 64),
    16: ("BFLOAT16", 16),
    21: ("UINT4", 4),
    22: ("INT4", 4),
}
"""Name and bits of an element of every type that phiconv can find its way in, by ONNX's numbers."""


class Initializers:
    """The tensors of a graph.

    Args:
        graph: The graph.
        model: Its file.

    Attributes:
        tensors: By name, as the graph has them.
        path: The graph's file.

    Raises:
        MissingFileError: A file of weights is not there.
        MalformedFileError: A tensor of an unknown type, or at a place where it cannot be.
    """

    def __init__(self, graph: GraphFile, model: InputFile) -> None:
        self.tensors = graph.tensors
        self.path = model.path
        self._files: dict[str, InputFile] = {"": model}
        for tensor in graph.tensors.values():
            self._check(tensor)
        self._check_overlaps()

    def error(self, tensor: StoredTensor, message: str) -> MalformedFileError:
        """A `MalformedFileError` about a tensor."""
        return MalformedFileError(message, path=self.path, at=f"tensor {printable(tensor.name)}")

    def unsupported(self, tensor: StoredTensor, message: str) -> UnsupportedModelError:
        """An `UnsupportedModelError` about a tensor."""
        at = f"tensor {printable(tensor.name)}"
        return UnsupportedModelError(message, path=self.path, at=at, hint="convert the original checkpoint")

    def floats(self, tensor: StoredTensor) -> ir.Tensor:
        """A tensor of floats, as it is stored."""
        columns = tensor.shape[-1] if len(tensor.shape) > 1 else 1
        encoding = self.float_type(tensor)
        source = self.rows(tensor, columns * encoding.dtype.itemsize, encoding)
        return ir.Tensor.of(source, tensor.shape)

    def float_type(self, tensor: StoredTensor) -> ir.FloatEncoding:
        """The type of a tensor of floats."""
        if tensor.data_type not in FLOATS or not tensor.shape:
            name = TYPES[tensor.data_type][0]
            raise self.error(tensor, f"{name} of shape {list(tensor.shape)}, where floats are expected")
        return FLOATS[tensor.data_type]

    def rows(self, tensor: StoredTensor, row_bytes: int, encoding: ir.Encoding | None = None) -> FileRows:
        """A tensor as rows of so many bytes each; of an encoding, where it is one of floats."""
        if tensor.length != self._size(tensor):  # numbers inside the graph that are no raw bytes
            raise self.unsupported(tensor, "is stored in a way that phiconv does not read")
        encoding = encoding or ir.RawEncoding("bytes", 1, 1)
        return FileRows(self._files[tensor.file], tensor.offset, row_bytes, encoding, tensor.name)

    def _size(self, tensor: StoredTensor) -> int:
        return -(-math.prod(tensor.shape) * TYPES[tensor.data_type][1] // 8)

    def _check(self, tensor: StoredTensor) -> None:
        """Type, size and place of a tensor."""
        if tensor.data_type not in TYPES:
            raise self.error(tensor, f"type {tensor.data_type}, which phiconv does not know")
        if not tensor.file:
            return
        tensor.file = self._plain_name(tensor)
        if tensor.file not in self._files:
            self._files[tensor.file] = InputFile(self.path.parent / tensor.file)
        size, end = self._size(tensor), self._files[tensor.file].size
        tensor.length = size if tensor.length is None else tensor.length
        if tensor.length != size:
            what = f"{TYPES[tensor.data_type][0]} of shape {printable(list(tensor.shape), 90)}"
            raise self.error(tensor, f"{what} takes {size} bytes, and the graph says {tensor.length}")
        if tensor.offset + size > end:
            message = f"ends at byte {tensor.offset + size} of {tensor.file}, which has {end}"
            raise self.error(tensor, f"{message}: it is truncated")

    def _plain_name(self, tensor: StoredTensor) -> str:
        """The file of weights, which has to be one in the model's folder: one name for one file."""
        name = tensor.file.removeprefix("./")
        if not is_plain_name(name):
            raise self.error(tensor, f"{printable(name, 80)} is not the name of a file in the same folder")
        return name

    def _check_overlaps(self) -> None:
        """No tensor may begin within another one; two may be the same bytes, as codes used twice are."""
        placed = (t for t in self.tensors.values() if t.file and t.length)
        by_place = sorted(placed, key=lambda t: (t.file, t.offset, t.length))
        for before, after in pairwise(by_place):
            same = (before.offset, before.length) == (after.offset, after.length)
            if before.file == after.file and not same and after.offset < before.offset + (before.length or 0):
                raise self.error(after, f"overlaps tensor {printable(before.name)}")


def is_plain_name(name: str) -> bool:
    """Whether it is the name of a file, and leads nowhere else."""
    return not set(name) & set("/\\:\0") and name not in {"", ".", ".."} and len(name.encode()) < 256
