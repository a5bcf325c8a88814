"""The vocabulary in which a decoder is written as a TFLite model: values, operators, signatures, buffers.

A model has a subgraph for each of its signatures, and all of them read the same weights. Those lie behind
the FlatBuffer, at offsets that it has; so they can be written in any order, and be larger than 4 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from phiconv_formats.litert.flatbuffer import Blank, Number, Table, Tables, Text, Vector, finish, int32s
from phiconv_formats.litert.schema import BITS, BLOCKWISE, IDENTIFIER, OPERATORS, VERSION, ElementType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from phiconv_formats.litert.flatbuffer import Child, Field

__all__ = ["DYNAMIC", "Blocks", "Graph", "Laid", "Subgraph", "Value", "nbytes"]

DYNAMIC = -1
"""A dimension whose size is known when the model runs."""

_ALIGNMENT = 64
_MOST_OLD_CODES = 127


@dataclass(frozen=True, slots=True)
class Blocks:
    """Quantization in blocks along the last axis.

    Attributes:
        scales: A float16 constant, (rows, blocks of a row).
        size: Weights of a block.
    """

    scales: Value
    size: int


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of a subgraph.

    Attributes:
        name: Its name.
        type: What it is made of.
        shape: Its dimensions; `DYNAMIC` for one that is known when the model runs.
        buffer: The number of the buffer with its bytes; 0 for what is computed.
        quantization: Of stored integers: the table with a scale for each row, or blocks.
    """

    name: str
    type: ElementType
    shape: tuple[int, ...]
    buffer: int = 0
    quantization: Table | Blocks | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    operator: tuple[str, int]
    inputs: tuple[Value | None, ...]
    output: Value
    options: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Laid:
    """A model in its final form.

    Attributes:
        flatbuffer: What everything begins with.
        offsets: Where each buffer behind it begins, by its number.
        chunks: Offsets and bytes of the constants behind it.
        size: Bytes of the whole.
        scales: Where the scales of each vector of them are, inside of the FlatBuffer.
    """

    flatbuffer: bytes
    offsets: Mapping[int, int]
    chunks: tuple[tuple[int, bytes], ...]
    size: int
    scales: Mapping[Vector, int]


class Graph:
    """A model that is being written: its subgraphs, and its buffers."""

    def __init__(self) -> None:
        self.subgraphs: list[Subgraph] = []
        self._inline: dict[bytes, int] = {}
        self._sizes: dict[int, int] = {}
        self._behind: dict[int, bytes] = {}
        self._count = 1  # buffer 0 is that of no bytes
        self._zeros: dict[int, Vector] = {}

    def subgraph(self, name: str) -> Subgraph:
        """Adds a subgraph and the signature that leads to it."""
        made = Subgraph(self, name)
        self.subgraphs.append(made)
        return made

    def inline(self, data: bytes) -> int:
        """The number of a buffer inside of the FlatBuffer; equal bytes are stored once."""
        if data not in self._inline:
            self._inline[data] = self._count
            self._count += 1
        return self._inline[data]

    def reserve(self, size: int) -> int:
        """The number of a buffer behind the FlatBuffer, whose bytes come later."""
        self._sizes[self._count] = size
        self._count += 1
        return self._count - 1

    def behind(self, data: bytes) -> int:
        """The number of a buffer behind the FlatBuffer with these bytes."""
        number = self.reserve(len(data))
        self._behind[number] = data
        return number

    def channels(self, rows: int) -> tuple[Table, Vector]:
        """Quantization of each row by a scale of its own: the table, and the room for the scales.

        All subgraphs share it: the scales of a large model take megabytes.
        """
        scales = Vector(np.zeros(rows, np.float32))
        zeros = self._zeros.setdefault(rows, Vector(np.zeros(rows, np.int64), shared=True))
        return Table({2: scales, 3: zeros, 6: Number("i", 0)}, shared=True), scales

    def finish(self, description: str, notes: Mapping[str, bytes]) -> Laid:
        """Lays the model out.

        Args:
            description: What a person may want to know about it.
            notes: What is kept along with it, by name (TFLite's metadata).
        """
        kept = [(name, self.inline(data)) for name, data in notes.items()]
        operators: dict[tuple[str, int], int] = {}
        subgraphs = [subgraph.table(operators) for subgraph in self.subgraphs]
        blanks = {number: Blank() for number in self._sizes}
        root = Table(
            {
                0: Number("I", VERSION),
                1: Tables([_operator(*operator) for operator in operators]),
                2: Tables([table for table, _, _ in subgraphs]),
                3: Text(description),
                4: Tables(self._buffers(blanks)),
                6: Tables([Table({0: Text(name), 1: Number("I", n)}) for name, n in kept]),
                7: Tables([_signature(i, s, subgraphs[i]) for i, s in enumerate(self.subgraphs)]),
            }
        )
        finished = finish(root, IDENTIFIER)
        at, offsets = len(finished.data), {}
        for number, size in self._sizes.items():
            offsets[number] = at = at + -at % _ALIGNMENT
            finished.fill(blanks[number], at)
            at += size
        chunks = tuple((offsets[number], data) for number, data in self._behind.items())
        places = {vector: at for vector, at in finished.places.items() if isinstance(vector, Vector)}
        return Laid(bytes(finished.data), offsets, chunks, at, places)

    def _buffers(self, blanks: Mapping[int, Blank]) -> list[Child]:
        inline = {number: data for data, number in self._inline.items()}
        tables: list[Child] = [Table({})]
        for number in range(1, self._count):
            if number in inline:
                tables.append(Table({0: Vector(np.frombuffer(inline[number], np.uint8))}))
            else:
                tables.append(Table({1: blanks[number], 2: Number("Q", self._sizes[number])}))
        return tables


class Subgraph:
    """The operators of one signature."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph = graph
        self.name = name
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        self._calls: list[_Call] = []
        self._constants: dict[tuple[ElementType, tuple[int, ...], bytes], Value] = {}
        self._made = 0

    def input(self, name: str, shape: Sequence[int], kind: ElementType = ElementType.FLOAT32) -> Value:
        """Declares an input of the signature."""
        self.inputs[name] = Value(f"{self.name}_{name}", kind, tuple(shape))
        return self.inputs[name]

    def output(self, name: str, value: Value) -> None:
        """Makes a value an output of the signature."""
        self.outputs[name] = value

    def constant(self, values: object, kind: ElementType = ElementType.FLOAT32) -> Value:
        """A small constant, once however often it is asked for.

        Args:
            values: Numbers of any shape.
            kind: FLOAT32 or INT32.
        """
        array: NDArray[np.generic] = np.asarray(values, {0: "<f4", 2: "<i4"}[kind])
        key = (kind, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.name}/constant_{len(self._constants)}"
            self._constants[key] = self.stored(name, kind, array.shape, self.graph.inline(array.tobytes()))
        return self._constants[key]

    def stored(
        self,
        name: str,
        kind: ElementType,
        shape: Sequence[int],
        buffer: int,
        quantization: Table | Blocks | None = None,
    ) -> Value:
        """What a buffer has."""
        return Value(name, kind, tuple(shape), buffer, quantization)

    def add(
        self,
        operator: str,
        *inputs: Value | None,
        shape: Sequence[int] | None = None,
        type: ElementType = ElementType.FLOAT32,  # noqa: A002 - what TFLite calls it
        version: int = 0,
        **options: float,
    ) -> Value:
        """Adds an operator with one output.

        Args:
            operator: A key of `OPERATORS`.
            inputs: What it reads; None for one that is left out.
            shape: Of the output; that of the inputs, broadcast against each other, unless given.
            type: What the output is made of.
            version: Of the operator; 0 for the usual one.
            options: Of the operator.
        """
        if shape is None:
            shape = _broadcast([value.shape for value in inputs if value is not None])
        self._made += 1
        output = Value(f"{self.name}/{operator.lower()}_{self._made}", type, tuple(shape))
        key = (operator, version or OPERATORS[operator].version)
        self._calls.append(_Call(key, inputs, output, options))
        return output

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """The same numbers in another shape, at most one of whose dimensions is dynamic."""
        return self.add("RESHAPE", x, self.constant(shape, ElementType.INT32), shape=shape, type=x.type)

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        """The axes in another order."""
        shape = [x.shape[axis] for axis in order]
        return self.add("TRANSPOSE", x, self.constant(order, ElementType.INT32), shape=shape)

    def concatenate(self, values: Sequence[Value], axis: int) -> Value:
        """Values one behind the other along an axis."""
        first = values[0]
        sizes = [value.shape[axis] for value in values]
        shape = [*first.shape]
        shape[axis] = DYNAMIC if DYNAMIC in sizes else sum(sizes)
        return self.add("CONCATENATION", *values, shape=shape, type=first.type, axis=axis)

    def table(
        self, operators: dict[tuple[str, int], int]
    ) -> tuple[Table, Mapping[str, int], Mapping[str, int]]:
        """The subgraph without what no output needs, and the numbers of its inputs and outputs by name.

        Args:
            operators: The numbers of the operators in the model; new ones are added.
        """
        calls = self._needed()
        numbers: dict[Value, int] = {}
        for value in (*self.inputs.values(), *(v for call in calls for v in (*call.inputs, call.output))):
            if value is not None and value not in numbers:
                if isinstance(value.quantization, Blocks):
                    numbers.setdefault(value.quantization.scales, len(numbers))
                numbers[value] = len(numbers)
        ends = [{name: numbers[v] for name, v in side.items()} for side in (self.inputs, self.outputs)]
        fields: dict[int, Field] = {
            0: Tables([_tensor(value, numbers) for value in numbers]),
            1: int32s([*ends[0].values()]),
            2: int32s([*ends[1].values()]),
            3: Tables([_call(call, operators, numbers) for call in calls]),
            4: Text(self.name),
        }
        return Table(fields), ends[0], ends[1]

    def _needed(self) -> list[_Call]:
        """The operators that an output depends on: a prefill has no logits, and so no head."""
        needed = {*self.outputs.values()}
        calls = []
        for call in reversed(self._calls):
            if call.output in needed:
                calls.append(call)
                needed.update(value for value in call.inputs if value is not None)
        return calls[::-1]


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(DYNAMIC if DYNAMIC in sizes else max(sizes) for sizes in zip(*padded, strict=True))


def _operator(name: str, version: int) -> Table:
    code = OPERATORS[name].code
    return Table({0: Number("b", min(code, _MOST_OLD_CODES)), 2: Number("i", version), 3: Number("i", code)})


def _tensor(value: Value, numbers: Mapping[Value, int]) -> Table:
    fields: dict[int, Field] = {
        0: int32s([1 if size == DYNAMIC else size for size in value.shape]),
        1: Number("b", value.type),
        2: Number("I", value.buffer),
        3: Text(value.name),
        8: Number("?", True),
    }
    if DYNAMIC in value.shape:
        fields[7] = int32s(value.shape)
    if isinstance(value.quantization, Blocks):
        details = {
            0: Number("i", numbers[value.quantization.scales]),
            1: Number("i", -1),  # the GPU's delegate takes nothing else for "no zero points"
            2: Number("i", value.quantization.size),
        }
        fields[4] = Table({4: Number("B", BLOCKWISE), 5: Table(details), 6: Number("i", 0)})
    elif value.quantization is not None:
        fields[4] = value.quantization
    return Table(fields)


def _call(call: _Call, operators: dict[tuple[str, int], int], numbers: Mapping[Value, int]) -> Table:
    number = operators.setdefault(call.operator, len(operators))
    fields: dict[int, Field] = {
        0: Number("I", number),
        1: int32s([-1 if value is None else numbers[value] for value in call.inputs]),
        2: int32s([numbers[call.output]]),
    }
    kind = OPERATORS[call.operator[0]]
    if kind.options:
        options = {kind.slots[name][0]: Number(kind.slots[name][1], v) for name, v in call.options.items()}
        fields |= {3: Number("B", kind.options), 4: Table(options)}
    return Table(fields)


def _signature(
    number: int, subgraph: Subgraph, laid: tuple[Table, Mapping[str, int], Mapping[str, int]]
) -> Table:
    ends = [
        Tables([Table({0: Text(name), 1: Number("I", index)}) for name, index in side.items()])
        for side in laid[1:]
    ]
    return Table({0: ends[0], 1: ends[1], 2: Text(subgraph.name), 4: Number("I", number)})


def nbytes(kind: ElementType, shape: Sequence[int]) -> int:
    """Bytes of a stored tensor; two numbers of 4 bits share one."""
    return -(-prod(shape) * BITS[kind] // 8)
