"""The vocabulary in which the decoder is written as an IR: operations with their element types.

OpenVINO infers shapes when it reads an IR. The type that comes out of a layer must stand there, though; it is
that of its first input unless it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from phiconv_formats.openvino.ir_document import Document, Port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ELEMENT_BITS", "Graph", "Place", "Value"]

_ALIGNMENT = 64

ELEMENT_BITS = {
    "boolean": 8, "i32": 32, "i64": 64, "f32": 32, "f16": 16, "bf16": 16,
    "u8": 8, "i8": 8, "u4": 4, "i4": 4, "nf4": 4, "f4e2m1": 4, "f8e4m3": 8,
    "f8e8m0": 8,
}  # fmt: skip
"""The element types that occur, as attributes spell them, and their bits."""

_OPSETS = {
    "Assign": 6, "BitwiseAnd": 13, "Broadcast": 3, "Gather": 8, "GatherElements": 6, "Gelu": 7, "MVN": 6,
    "Range": 4, "ReadValue": 6, "ScaledDotProductAttention": 13, "ScatterElementsUpdate": 12, "ShapeOf": 3,
    "Slice": 8, "SoftMax": 8, "Swish": 4, "TopK": 11,
}  # fmt: skip
"""The operation set that has an operation in the form that is used; 1 for all others."""

_ELEMENTWISE = {
    "Add", "BitwiseAnd", "Divide", "Equal", "Greater", "LessEqual", "LogicalAnd", "LogicalOr", "Maximum",
    "Multiply", "Power", "Select", "Subtract",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """An output of a layer.

    Attributes:
        port: Where it comes from.
        type: The element type.
    """

    port: Port
    type: str


@dataclass(frozen=True, slots=True)
class Place:
    """A constant in the .bin: its element type, its shape, where it begins."""

    type: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes that it takes; two numbers of 4 bits share one."""
        return -(-prod(self.shape) * ELEMENT_BITS[self.type] // 8)


class Graph:
    """A decoder that is being written."""

    def __init__(self) -> None:
        self._document = Document("Model0")

    @property
    def size(self) -> int:
        """Bytes of the .bin so far."""
        return self._document.size

    @property
    def chunks(self) -> tuple[tuple[int, bytes], ...]:
        """Offsets and bytes of the constants that come from no weight."""
        return tuple(self._document.chunks())

    def reserve(self, element_type: str, shape: Sequence[int]) -> Place:
        """Keeps a place in the .bin for a constant whose bytes come later."""
        size = Place(element_type, tuple(shape), 0).nbytes
        return Place(element_type, tuple(shape), self._document.reserve(size, alignment=_ALIGNMENT))

    def stored(self, name: str, place: Place) -> Value:
        """A constant at a place of the .bin."""
        port = self._document.reserved(place.offset, place.nbytes, place.type, place.shape, name)
        return Value(port, place.type)

    def constant(self, values: object, element_type: str) -> Value:
        """A small constant.

        Args:
            values: Numbers of any shape.
            element_type: "f32", "i32", "i64" or "u8".
        """
        dtype = np.dtype(f"<{element_type[0]}{ELEMENT_BITS[element_type] // 8}")
        array = np.asarray(values, dtype)
        return Value(self._document.constant(array.tobytes(), element_type, array.shape), element_type)

    def add(
        self,
        operation: str,
        *inputs: Value,
        type: str | None = None,  # noqa: A002 - what OpenVINO calls it
        name: str = "",
        names: str = "",
        decompression: bool = False,
        **attributes: object,
    ) -> Value:
        """Adds a layer with one output.

        Args:
            operation: Its type in the IR.
            inputs: What it reads.
            type: The element type of the output; that of the first input unless given.
            name: Of the layer; made up if empty.
            names: Of the output tensor, as a runtime asks for it.
            decompression: Mark it as the end of what turns stored weights into floats.
            attributes: Of the operation.
        """
        made = type or inputs[0].type
        return self._add(operation, inputs, (made,), name, names, attributes, decompression=decompression)[0]

    def split(self, value: Value, sizes: Sequence[int]) -> list[Value]:
        """Cuts the last axis into parts."""
        inputs = (value, self.constant(-1, "i64"), self.constant(sizes, "i64"))
        return self._add("VariadicSplit", inputs, (value.type,) * len(sizes))

    def top_k(self, value: Value, k: int) -> list[Value]:
        """The ``k`` largest along the last axis and their i64 indices, of equals the first one first."""
        attributes = {"axis": -1, "mode": "max", "sort": "value", "index_element_type": "i64", "stable": True}
        inputs = (value, self.constant(k, "i64"))
        return self._add("TopK", inputs, (value.type, "i64"), attributes=attributes)

    def sink(self, operation: str, value: Value, name: str, **attributes: object) -> None:
        """Adds a layer that only takes: a result, or the new value of a variable."""
        types = () if operation == "Result" else (value.type,)
        self._add(operation, (value,), types, name, attributes=attributes)

    def _add(
        self,
        operation: str,
        inputs: Sequence[Value],
        types: Sequence[str],
        name: str = "",
        names: str = "",
        attributes: Mapping[str, object] | None = None,
        *,
        decompression: bool = False,
    ) -> list[Value]:
        spelled = {key: _text(value) for key, value in (attributes or {}).items()}
        if operation in _ELEMENTWISE:
            spelled["auto_broadcast"] = "numpy"
        ports = self._document.layer(
            operation,
            [value.port for value in inputs],
            types,
            version=f"opset{_OPSETS.get(operation, 1)}",
            name=name,
            tensor_names=[names] if names else [],
            decompression=decompression,
            **spelled,
        )
        return [Value(port, made) for port, made in zip(ports, types, strict=True)]

    def xml(self, info: Mapping[str, str | Mapping[str, str]]) -> bytes:
        """The .xml, with what else a runtime may want to know."""
        return self._document.xml(info)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
