"""A TFLite model that is read: its signatures, its operators, and the constants of one subgraph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from phiconv_formats.litert.flatbuffer_reader import FlatBuffer
from phiconv_formats.litert.schema import (
    BLOCKWISE,
    COMPOSITE_OPTIONS,
    IDENTIFIER,
    OPERATORS,
    OTHER_OPERATORS,
    ElementType,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv_formats.litert.flatbuffer_reader import TableView, VectorView
    from phiconv_formats.shared.files import InputFile

__all__ = ["Call", "Constant", "Signature", "TfLite", "read_tflite"]

_MAX_RANK = 8
_MOST_SIGNATURES = 64
_MOST_ENDS = 4096
_MOST_CALLS = 100_000
_MOST_READ = 4
_MOST_ATTRIBUTES = 256
_DECODE = "decode"
_NAMES = {operator.code: name for name, operator in OPERATORS.items()} | OTHER_OPERATORS


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor with bytes.

    Attributes:
        name: Its name.
        type: The number of its element type.
        shape: Its dimensions.
        place: Offset in the file, and number of bytes.
        scales: Where float32 scales are, one for each row; None for none.
        zero_points: Where their zero points are, int64; None for none.
        dimension: Which one the scales count along.
        blocks: Of blocks the number of the tensor with the scales, that of one with zero points (-1 for none)
            and the weights of a block; () for no blocks.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    place: tuple[int, int]
    scales: VectorView | None
    zero_points: VectorView | None
    dimension: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """An operation of a subgraph.

    Attributes:
        operator: Its name.
        inputs: The numbers of the first few tensors that it reads; -1 for one that is left out.
        output: What the first tensor that it gives is called, as far as names are read.
        result: The number of that tensor.
        attributes: What a composite says of itself: a short FlexBuffer.
    """

    operator: str
    inputs: tuple[int, ...]
    output: str
    result: int
    attributes: bytes = b""


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature.

    Attributes:
        name: Its key.
        subgraph: The number of its subgraph.
    """

    name: str
    subgraph: int


@dataclass(frozen=True, slots=True)
class TfLite:
    """A model.

    Attributes:
        buffer: Its FlatBuffer.
        description: What it says of itself.
        signatures: In order.
        shapes: Of the inputs of the subgraph that was read, by name; -1 for what is open until it runs.
        calls: What that subgraph computes, in order.
        prefix: What the names of its tensors begin with, if it is one of phiconv's.
        constants: Its tensors with bytes, by number.
        notes: Where the files are that are kept in it, by name: offset and number of bytes.
    """

    buffer: FlatBuffer
    description: str
    signatures: tuple[Signature, ...]
    shapes: dict[str, tuple[int, ...]]
    calls: tuple[Call, ...]
    prefix: str
    constants: dict[int, Constant]
    notes: dict[str, tuple[int, int]]

    @property
    def operators(self) -> Counter[str]:
        """How often there is each operator."""
        return Counter(call.operator for call in self.calls)


def read_tflite(file: InputFile, start: int, stop: int) -> TfLite:
    """Reads a model's structure; of several subgraphs that of a "decode", or else the first.

    Args:
        file: The file.
        start: Where in it the model begins.
        stop: Where it ends.

    Raises:
        MalformedFileError: It is none.
    """
    buffer = FlatBuffer(file, start, stop, "TFLite model")
    root = buffer.root(IDENTIFIER)
    buffers = _Buffers(buffer, root)
    signatures = _signatures(buffer, root)
    chosen = next((s for s in signatures if s.name.startswith(_DECODE)), Signature("", 0))
    graph = next((table for i, table in enumerate(root.tables(2)) if i == chosen.subgraph), None)
    if graph is None:
        raise buffer.error(f"it has no subgraph {chosen.subgraph}", root.at)
    constants, shapes, names = {}, {}, []
    inputs = {*graph.integers(1, _MOST_ENDS)}
    for number, table in enumerate(graph.tables(0)):
        names.append(table.text(3, cut=True))
        place = buffers.place(table.number(2, "I"))
        if place is not None:
            constants[number] = _constant(table, names[-1], place)
        if number in inputs:
            shapes[names[-1]] = table.integers(7, _MAX_RANK) or table.integers(0, _MAX_RANK)
    calls = _calls(root, graph, names)
    notes = {}
    for table in root.tables(6):
        place = buffers.place(table.number(1, "I"))
        if place is not None:
            notes[table.text(0)] = place
    prefix = f"{chosen.name}/" if chosen.name else ""
    return TfLite(buffer, root.text(3), signatures, shapes, calls, prefix, constants, notes)


class _Buffers:
    """The buffers of a model; each is looked at when a tensor asks for it."""

    def __init__(self, buffer: FlatBuffer, root: TableView) -> None:
        self._buffer = buffer
        found = root.vector(4, 4)
        self._start, self._count = found or (root.at, 0)
        self._found: dict[int, tuple[int, int] | None] = {}

    def place(self, number: int) -> tuple[int, int] | None:
        """Offset in the file and number of bytes; None where there are none."""
        if number not in self._found:
            self._found[number] = self._place(number)
        return self._found[number]

    def _place(self, number: int) -> tuple[int, int] | None:
        buffer = self._buffer
        if number >= self._count:
            raise buffer.error(f"buffer {number}, and there are {self._count}", self._start)
        table = buffer.table(self._start + 4 * number)
        inside = table.vector(0, 1)
        if inside is not None:
            return (inside.start, inside.length) if inside.length else None
        offset, size = table.number(1, "Q"), table.number(2, "Q")
        if offset <= 1 or not size:
            return None
        if offset + size > buffer.stop - buffer.start:
            raise buffer.error(f"buffer {number} ends beyond the end of the file", table.at)
        return buffer.start + offset, size


def _signatures(buffer: FlatBuffer, root: TableView) -> tuple[Signature, ...]:
    found: list[Signature] = []
    for table in root.tables(7):
        if len(found) == _MOST_SIGNATURES:
            raise buffer.error(f"more than {_MOST_SIGNATURES} signatures", table.at)
        found.append(Signature(table.text(2), table.number(4, "I")))
    return tuple(found)


def _calls(root: TableView, graph: TableView, names: Sequence[str]) -> tuple[Call, ...]:
    """The operations of a subgraph, whose tensors have these names."""
    codes = [max(t.number(0, "b"), t.number(3, "i")) for t in root.tables(1)]
    found: list[Call] = []
    for table in graph.tables(3):
        index = table.number(0, "I")
        if index >= len(codes):
            raise root.buffer.error(f"an operator of kind {index}, and there are {len(codes)}", table.at)
        if len(found) == _MOST_CALLS:
            raise root.buffer.error(f"more than {_MOST_CALLS} operators", table.at)
        name = _NAMES.get(codes[index], f"operator {codes[index]}")
        result = next(iter(table.integers(2, 1, cut=True)), -1)
        output = names[result] if 0 <= result < len(names) else ""
        inputs = table.integers(1, _MOST_READ, cut=True)
        found.append(Call(name, inputs, output, result, _attributes(table)))
    return tuple(found)


def _attributes(call: TableView) -> bytes:
    """What a composite says of itself, if it is short."""
    options = call.table(12) if call.number(11, "B") == COMPOSITE_OPTIONS else None
    found = options.vector(2, 1) if options is not None else None
    if found is None or found.length > _MOST_ATTRIBUTES:
        return b""
    return call.buffer.read(*found)


def _constant(table: TableView, name: str, place: tuple[int, int]) -> Constant:
    buffer = table.buffer
    shape = table.integers(0, _MAX_RANK)
    if any(size < 0 for size in shape) or prod(shape) > 8 * (buffer.stop - buffer.start):
        raise buffer.error(f"a constant of shape {list(shape)}", table.at)
    scales = zero_points = None
    dimension = 0
    blocks: tuple[int, ...] = ()
    quantization = table.table(4)
    if quantization is not None:
        scales, zero_points = quantization.vector(2, 4), quantization.vector(3, 8)
        dimension = quantization.number(6, "i")
        details = quantization.table(5) if quantization.number(4, "B") == BLOCKWISE else None
        if details is not None:
            blocks = (details.number(0, "i"), details.number(1, "i", -1), details.number(2, "i"))
    kind = table.number(1, "b", ElementType.FLOAT32)
    return Constant(name, kind, shape, place, scales, zero_points, dimension, blocks)
