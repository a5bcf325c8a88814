"""The matrices of an ONNX graph, put together from the tensors that its operators read.

How a matrix is stored is said by the operator that reads it and its attributes; what it is called, by the
name of its tensor of codes or floats. A matrix has N rows (outputs) and K columns (inputs), as in a
checkpoint; ``MatMul`` and ``DequantizeLinear`` before it have it transposed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from phiconv import ir
from phiconv.errors import UsageError
from phiconv_formats.onnx.graph import ZEROS
from phiconv_formats.onnx.initializers import FLOATS, INT4, INT8, UINT4, UINT8
from phiconv_formats.onnx.integers import element_type, row_sizes, unpack_integers
from phiconv_formats.onnx.matrix_rows import BlockColumns, FloatColumns
from phiconv_formats.onnx.packing import row_bytes, unpack
from phiconv_formats.onnx.store import SCALE_TYPE
from phiconv_formats.shared.rows import AssembledRows, FileRows, HalfByteRows, NarrowScales

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from phiconv_formats.onnx.graph_reader import GraphFile, Node, StoredTensor
    from phiconv_formats.onnx.initializers import Initializers

__all__ = ["Matrix", "find_matrices"]

_NAME = re.compile(r"(.+?)(?:\.MatMul)?\.weight(?:_\w+)?")
_Size = TypeVar("_Size")
_LONGEST_CHAIN = 8
_PASSED = {"Cast", "Identity", "Reshape", "Transpose"}
"""What may stand between a tensor and the operator that reads it."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of the graph.

    Attributes:
        path: Its name without what says that it is a matrix: "model.layers.0.attn.qkv_proj".
        tensor: Its weights.
        parts: Names of the tensors that it is made of.
        lookup: It is a table that rows are taken from, not one to multiply with.
    """

    path: str
    tensor: ir.Tensor
    parts: tuple[str, ...]
    lookup: bool = False


@dataclass(frozen=True, slots=True)
class _Value:
    """What an operator reads, as the tensor or the ``DequantizeLinear`` that it comes from."""

    tensor: StoredTensor | None
    scaled: Node | None
    transposed: bool


def find_matrices(graph: GraphFile, tensors: Initializers) -> list[Matrix]:
    """Every matrix that an operator of the graph reads, in the order of the nodes.

    Args:
        graph: The graph.
        tensors: Its tensors.

    Raises:
        MalformedFileError: Tensors of a matrix that do not fit each other.
        UnsupportedModelError: A way to store a matrix that phiconv does not read.
    """
    finder = _Finder(graph, tensors)
    return [matrix for node in graph.nodes for matrix in finder.of(node)]


class _Finder:
    """Finds the matrices of single nodes."""

    def __init__(self, graph: GraphFile, tensors: Initializers) -> None:
        self._tensors = tensors
        self._makers = {name: node for node in graph.nodes for name in node.outputs if name}
        scaled = (node for node in graph.nodes if node.operator == "DequantizeLinear")
        self._before_scaling = {name for node in scaled for name in node.inputs}

    def of(self, node: Node) -> Iterator[Matrix]:
        """The matrices that a node reads."""
        match node.operator:
            case "MatMulNBits":
                yield from self._packed(node)
            case "GatherBlockQuantized":
                yield from self._packed_table(node)
            case "MatMul":
                yield from self._product(node, as_stored=False)
            case "FusedMatMul":
                yield from self._product(node, as_stored=bool(node.integer("transB", 0)))
            case "Gather" if node.integer("axis", 0) == 0 and not self._before_scaling & set(node.outputs):
                yield from self._table(node)
            case "QMoE" | "MoE":
                yield from self._experts(node)
            case "DequantizeLinear":
                yield from self._looked_up(node)

    # ------------------------------------------------------------------------------------- what a value is

    def _value(self, name: str) -> _Value:
        """Where a value comes from, if that is a tensor of the graph."""
        transposed = False
        for _ in range(_LONGEST_CHAIN):
            if name in self._tensors.tensors:
                return _Value(self._tensors.tensors[name], None, transposed)
            maker = self._makers.get(name)
            if maker is not None and maker.operator == "DequantizeLinear":
                return _Value(None, maker, transposed)
            if maker is None or maker.operator not in _PASSED:
                break
            transposed ^= maker.operator == "Transpose" and maker.lists.get("perm", [1, 0]) == [1, 0]
            name = maker.input(0)
        return _Value(None, None, transposed)

    def _tensor(self, node: Node, index: int) -> StoredTensor | None:
        return self._value(node.input(index)).tensor

    def _needed(self, node: Node, index: int, of: StoredTensor) -> StoredTensor:
        tensor = self._tensor(node, index)
        if tensor is None:
            raise self._tensors.error(
                of, f"input {index} of {node.operator} with it is no tensor of the file"
            )
        return tensor

    def _path(self, tensor: StoredTensor) -> str:
        match = _NAME.fullmatch(tensor.name)
        return match[1] if match else tensor.name

    def _matrix(self, tensor: ir.Tensor, parts: Sequence[StoredTensor], *, lookup: bool = False) -> Matrix:
        return Matrix(self._path(parts[0]), tensor, tuple(part.name for part in parts), lookup)

    # ----------------------------------------------------------------------------------------------- floats

    def _product(self, node: Node, *, as_stored: bool) -> Iterator[Matrix]:
        """The second factor; ``as_stored`` where the operator itself transposes it."""
        value = self._value(node.input(1))
        yield from self._plain(value, by_row=as_stored != value.transposed)

    def _table(self, node: Node) -> Iterator[Matrix]:
        value = self._value(node.input(0))
        yield from self._plain(value, by_row=not value.transposed, lookup=True)

    def _plain(self, value: _Value, *, by_row: bool, lookup: bool = False) -> Iterator[Matrix]:
        """A matrix of floats, or one that ``DequantizeLinear`` gives; by row, or transposed."""
        if value.scaled is not None:
            yield from self._scaled(value.scaled, by_row=by_row, lookup=lookup)
        elif value.tensor is not None and len(value.tensor.shape) == 2 and value.tensor.data_type in FLOATS:
            tensor = self._tensors.floats(value.tensor)
            yield self._matrix(tensor if by_row else self._turned(tensor), [value.tensor], lookup=lookup)

    def _turned(self, tensor: ir.Tensor) -> ir.Tensor:
        source = tensor.runs[0].source
        assert isinstance(source, FileRows)  # noqa: S101 - what Initializers.floats makes
        assert isinstance(source.encoding, ir.FloatEncoding)  # noqa: S101
        height, width = tensor.shape
        return ir.Tensor.of(FloatColumns(source, source.encoding, height), (width, height))

    # ----------------------------------------------------------------------------------------------- blocks

    def _packed(self, node: Node) -> Iterator[Matrix]:
        """The matrix of a ``MatMulNBits``."""
        codes = self._tensor(node, 1)
        if codes is None:
            return
        if node.input(4) or node.integer("weight_prepacked", 0) > 0:
            raise self._tensors.unsupported(codes, "its columns or bytes are in an order of their own")
        shape = (node.integer("N", 0), node.integer("K", 0))
        bits = node.integer("bits", 4)
        yield self._blocks(codes, self._parts(node, codes, (1, 2, 3)), shape, bits, node)

    def _packed_table(self, node: Node) -> Iterator[Matrix]:
        """The table of a ``GatherBlockQuantized``."""
        codes = self._tensor(node, 0)
        if codes is None:
            return
        if node.integer("gather_axis", 0) != 0 or node.integer("quantize_axis", 1) not in {1, -1}:
            raise self._tensors.unsupported(codes, "its blocks do not lie in its rows")
        parts, bits = self._parts(node, codes, (0, 2, 3)), node.integer("bits", 4)
        if not codes.shape or not codes.shape[0]:
            raise self._tensors.error(codes, f"a table of shape {list(codes.shape)}")
        columns = math.prod(codes.shape[1:])
        if codes.data_type == UINT8:
            yield self._blocks(
                codes, parts, (codes.shape[0], columns * 8 // max(bits, 1)), bits, node, lookup=True
            )
        else:
            yield self._integers(codes, parts, (codes.shape[0], columns), node, lookup=True)

    def _experts(self, node: Node) -> Iterator[Matrix]:
        """Both matrices of a mixture of experts; of the first the rows of gate and up by turns."""
        for number, index in ((1, 2), (2, 5 if node.operator == "QMoE" else 4)):
            value = self._tensor(node, index)
            if value is None:
                return
            if node.integer("swiglu_fusion", 0) != 1 or len(value.shape) != 3:
                raise self._tensors.unsupported(
                    value, "its experts are joined in another way than phiconv does"
                )
            if node.operator == "MoE":
                yield self._matrix(self._tensors.floats(value), [value])
                continue
            bits = node.integer(f"fc{number}_expert_weight_bits", node.integer("expert_weight_bits", 4))
            parts = self._parts(node, value, (index, index + 1, 10 + number))
            experts, rows, size = value.shape
            yield self._blocks(value, parts, (experts, rows, size * 8 // max(bits, 1)), bits, node)

    def _parts(self, node: Node, codes: StoredTensor, inputs: tuple[int, int, int]) -> list[StoredTensor]:
        """Codes, scales, and zero points if there are any."""
        given = inputs[:2] + ((inputs[2],) if node.input(inputs[2]) else ())
        return [codes, *(self._needed(node, index, codes) for index in given[1:])]

    def _encoding(self, parts: Sequence[StoredTensor], bits: int, size: int) -> ir.BlockEncoding:
        codes, scales = parts[0], parts[1]
        kind = self._tensors.float_type(scales)
        encoding = ir.onnx_affine(bits, size, kind, symmetric=len(parts) < 3) if bits in {4, 8} else None
        if encoding not in ir.ONNX_AFFINE["default"]:
            message = f"{bits} bits in blocks of {size} with scales of {kind.name}"
            raise self._tensors.unsupported(codes, f"{message} are nothing that phiconv reads")
        return encoding

    def _blocks(
        self,
        codes: StoredTensor,
        parts: Sequence[StoredTensor],
        shape: tuple[int, ...],
        bits: int,
        node: Node,
        *,
        lookup: bool = False,
    ) -> Matrix:
        """A matrix in the layout of `packing.pack`."""
        encoding = self._encoding(parts, bits, node.integer("block_size", 0))
        wanted = [UINT8, parts[1].data_type, UINT8]
        if [part.data_type for part in parts] != wanted[: len(parts)]:
            raise self._tensors.unsupported(codes, "its codes or zero points are no bytes")
        sizes = self._sizes(codes, row_bytes, encoding, shape[-1])
        return self._rows(
            parts,
            encoding,
            shape,
            [(size, 1) for size in sizes],
            partial(_unpack, encoding, shape[-1]),
            lookup=lookup,
        )

    def _sizes(
        self,
        codes: StoredTensor,
        count: Callable[[ir.BlockEncoding, int], tuple[_Size, ...]],
        encoding: ir.BlockEncoding,
        columns: int,
    ) -> tuple[_Size, ...]:
        try:
            return count(encoding, columns)
        except UsageError as error:
            raise self._tensors.unsupported(codes, error.message) from None

    def _rows(
        self,
        parts: Sequence[StoredTensor],
        stored: ir.BlockEncoding,
        shape: tuple[int, ...],
        sizes: Sequence[tuple[int, int]],
        unpack: Callable[..., ir.Blocks],
        *,
        lookup: bool,
    ) -> Matrix:
        """A matrix whose tensors have so many bytes for so many rows each."""
        rows = [
            self._tensors.rows(part, size)
            if together == 1
            else HalfByteRows(self._tensors.rows(part, 1), size)
            for part, (size, together) in zip(parts, sizes, strict=True)
        ]
        count = math.prod(shape[:-1])
        found = [part.length for part in parts]
        expected = [-(-count * size // together) for size, together in sizes]
        if min(shape) < 1 or found != expected:
            shown = ", ".join(str(list(part.shape)) for part in parts)
            message = f"tensors of shapes {shown} are no matrix of shape {list(shape)} in {stored.name}"
            raise self._tensors.error(parts[0], message)
        source: ir.Source = AssembledRows(stored, tuple(rows), unpack)
        narrow = next((t for t in (ir.F16, ir.BF16) if parts[1].notes.get(SCALE_TYPE) == t.name), None)
        if narrow is not None:
            encoding = ir.onnx_affine(stored.bits, stored.block_size, narrow, symmetric=len(parts) < 3)
            source = NarrowScales(source, encoding)
        return self._matrix(ir.Tensor.of(source, shape), parts, lookup=lookup)

    # ------------------------------------------------------------------------------------- DequantizeLinear

    def _scaled(self, node: Node, *, by_row: bool, lookup: bool) -> Iterator[Matrix]:
        """A matrix that ``DequantizeLinear`` gives: blocks along its rows, or along its columns."""
        value = self._value(node.input(0))
        codes = value.tensor
        if codes is None:
            return
        if value.transposed and node.input(2).startswith(ZEROS):
            yield self._channels(codes, self._needed(node, 1, codes), lookup=lookup)
            return
        parts = self._parts(node, codes, (0, 1, 2))
        axis = node.integer("axis", 1) % 2
        if len(codes.shape) != 2 or axis != int(by_row):
            raise self._tensors.unsupported(codes, "its blocks do not lie in its rows")
        if by_row or value.transposed:
            yield self._integers(codes, parts, codes.shape, node, lookup=lookup)
        else:
            yield self._int4_columns(codes, parts, node, lookup=lookup)

    def _looked_up(self, node: Node) -> Iterator[Matrix]:
        """A table whose rows ``Gather`` takes before ``DequantizeLinear``."""
        makers = [self._makers.get(name) for name in node.inputs]
        gathers = [maker for maker in makers if maker is not None and maker.operator == "Gather"]
        if len(gathers) < len(node.inputs) or len(gathers) < 2:
            return
        parts = [tensor for maker in gathers if (tensor := self._tensor(maker, 0)) is not None]
        if len(parts) == len(gathers) and len(parts[0].shape) == 2:
            yield self._integers(parts[0], parts, parts[0].shape, node, lookup=True)

    def _channels(self, codes: StoredTensor, scales: StoredTensor, *, lookup: bool) -> Matrix:
        """A matrix with one scale to a row, and zero points that are 0."""
        bits = {INT4: 4, INT8: 8}.get(codes.data_type, 0)
        columns = codes.shape[-1] if len(codes.shape) == 2 else 0
        if not bits or columns < 4 or columns % 4 or self._tensors.float_type(scales) != ir.F32:
            raise self._tensors.unsupported(codes, "its rows have no scale of float32 each")
        encoding = ir.onnx_channel(bits, columns)
        unpack, sizes = partial(unpack_integers, encoding), row_sizes(encoding, columns)
        return self._rows([codes, scales], encoding, codes.shape, sizes, unpack, lookup=lookup)

    def _integers(
        self,
        codes: StoredTensor,
        parts: Sequence[StoredTensor],
        shape: tuple[int, ...],
        node: Node,
        *,
        lookup: bool,
    ) -> Matrix:
        """A matrix in the layout of `integers`."""
        bits = 8 if codes.data_type in {INT8, UINT8} else 4
        encoding = self._encoding(parts, bits, node.integer("block_size", 0))
        kind = element_type(encoding)
        if {codes.data_type, parts[-1].data_type} - {parts[1].data_type} != {kind}:
            message = f"its codes and zero points are not of one type of {bits} bits"
            raise self._tensors.unsupported(codes, message)
        sizes = self._sizes(codes, row_sizes, encoding, shape[-1])
        return self._rows(parts, encoding, shape, sizes, partial(unpack_integers, encoding), lookup=lookup)

    def _int4_columns(
        self, codes: StoredTensor, parts: Sequence[StoredTensor], node: Node, *, lookup: bool
    ) -> Matrix:
        encoding = self._encoding(parts, 4, node.integer("block_size", 0))
        height, width = codes.shape
        blocks = height // encoding.block_size
        shapes = [(height, width), (blocks, width), (blocks, width)]
        types = [INT4 if len(parts) < 3 else UINT4, parts[1].data_type, UINT4]
        found = [(part.shape, part.data_type) for part in parts]
        expected = list(zip(shapes, types, strict=True))[: len(parts)]
        if found != expected or width % 2 or not blocks or height % encoding.block_size:
            shown = ", ".join(str(list(part.shape)) for part in parts)
            raise self._tensors.unsupported(codes, f"tensors of shapes {shown} are no {encoding.name} blocks")
        sizes = (width // 2, width * encoding.scale_type.dtype.itemsize, width // 2)
        rows = [self._tensors.rows(part, size) for part, size in zip(parts, sizes, strict=False)]
        source = BlockColumns(encoding, (height, blocks, blocks)[: len(parts)], tuple(rows))
        return self._matrix(ir.Tensor.of(source, (width, height)), parts, lookup=lookup)


def _unpack(encoding: ir.BlockEncoding, columns: int, *parts: NDArray[np.uint8]) -> ir.Blocks:
    blocks = unpack(encoding, columns, *parts)
    assert isinstance(blocks, ir.Blocks)  # noqa: S101 - a block encoding is unpacked to them
    return blocks
