"""An OpenVINO IR under construction: the layers of its .xml, and where its constants lie in the .bin.

OpenVINO infers every shape and type when it reads an IR, so a layer needs no more than its operation, its
attributes and its inputs, and the element type of what comes out. The .bin has no header: it is one constant
after the other, here at offsets that are multiples of 64.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ELEMENT_BITS", "Graph", "Place", "Value"]

_ALIGNMENT = 64

ELEMENT_BITS = {
    "boolean": 8, "i32": 32, "i64": 64, "f32": 32, "f16": 16, "bf16": 16,
    "u8": 8, "i8": 8, "u4": 4, "i4": 4, "nf4": 4, "f4e2m1": 4, "f8e8m0": 8,
}  # fmt: skip
"""The element types that occur, as attributes spell them, and their bits."""

_PRECISIONS = {"boolean": "BOOL", "f32": "FP32", "f16": "FP16"}
"""What a port calls an element type, where that is not its name in capitals."""

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
        layer: The layer's number.
        port: The port's number in it.
        type: The element type.
    """

    layer: int
    port: int
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
    """Layers and edges in the order in which they are added.

    Attributes:
        size: Bytes of the .bin so far.
        chunks: Offsets and bytes of the constants that come from no weight.
    """

    def __init__(self) -> None:
        self.size = 0
        self.chunks: list[tuple[int, bytes]] = []
        self._layers = ET.Element("layers")
        self._edges = ET.Element("edges")
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}

    def reserve(self, element_type: str, shape: Sequence[int]) -> Place:
        """Keeps a place in the .bin for a constant whose bytes come later."""
        place = Place(element_type, tuple(shape), -(-self.size // _ALIGNMENT) * _ALIGNMENT)
        self.size = place.offset + place.nbytes
        return place

    def stored(self, name: str, place: Place) -> Value:
        """A constant at a place of the .bin."""
        shape = ", ".join(map(str, place.shape))
        return self.add(
            "Const",
            type=place.type,
            name=name,
            element_type=place.type,
            shape=shape,
            offset=place.offset,
            size=place.nbytes,
        )

    def constant(self, values: object, element_type: str) -> Value:
        """A small constant; equal ones are one.

        Args:
            values: Numbers of any shape.
            element_type: "f32", "i32", "i64" or "u8".
        """
        dtype = np.dtype(f"<{element_type[0]}{ELEMENT_BITS[element_type] // 8}")
        array = np.asarray(values, dtype)
        key = (element_type, array.shape, array.tobytes())
        if key not in self._constants:
            place = self.reserve(element_type, array.shape)
            self.chunks.append((place.offset, key[2]))
            self._constants[key] = self.stored("", place)
        return self._constants[key]

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
        return self._add("VariadicSplit", inputs, (value.type,) * len(sizes), "", "", {})

    def top_k(self, value: Value, k: int) -> list[Value]:
        """The ``k`` largest along the last axis and their i64 indices, of equals the first one first."""
        attributes = {"axis": -1, "mode": "max", "sort": "value", "index_element_type": "i64", "stable": True}
        inputs = (value, self.constant(k, "i64"))
        return self._add("TopK", inputs, (value.type, "i64"), "", "", attributes)

    def sink(self, operation: str, value: Value, name: str, **attributes: object) -> None:
        """Adds a layer that only takes: a result, or the new value of a variable."""
        types = () if operation == "Result" else (value.type,)
        self._add(operation, (value,), types, name, "", attributes)

    def _add(
        self,
        operation: str,
        inputs: Sequence[Value],
        types: Sequence[str],
        name: str,
        names: str,
        attributes: Mapping[str, object],
        *,
        decompression: bool = False,
    ) -> list[Value]:
        number = len(self._layers)
        layer = ET.SubElement(
            self._layers,
            "layer",
            id=str(number),
            name=name or f"{operation}_{number}",
            type=operation,
            version=f"opset{_OPSETS.get(operation, 1)}",
        )
        if operation in _ELEMENTWISE:
            attributes = {**attributes, "auto_broadcast": "numpy"}
        if attributes:
            ET.SubElement(layer, "data", {k: _text(v) for k, v in attributes.items()})
        if decompression:
            ET.SubElement(ET.SubElement(layer, "rt_info"), "attribute", name="decompression", version="0")
        if inputs:
            ports = ET.SubElement(layer, "input")
            for i, value in enumerate(inputs):
                ET.SubElement(ports, "port", id=str(i), precision=_precision(value.type))
                edge = {"from-layer": value.layer, "from-port": value.port, "to-layer": number, "to-port": i}
                ET.SubElement(self._edges, "edge", {k: str(v) for k, v in edge.items()})
        if types:
            ports = ET.SubElement(layer, "output")
            for i, made in enumerate(types, len(inputs)):
                port = ET.SubElement(ports, "port", id=str(i), precision=_precision(made))
                if names:
                    port.set("names", names)
        return [Value(number, i, made) for i, made in enumerate(types, len(inputs))]

    def document(self, name: str, info: Mapping[str, Mapping[str, str]]) -> bytes:
        """The .xml.

        Args:
            name: Of the model.
            info: Sections of what else a runtime may want to know, and their keys and values.
        """
        net = ET.Element("net", name=name, version="11")
        net.extend([self._layers, self._edges])
        rt_info = ET.SubElement(net, "rt_info")
        for section, entries in info.items():
            parent = ET.SubElement(rt_info, section)
            for key, value in entries.items():
                ET.SubElement(parent, key, value=value)
        ET.indent(net, "\t")
        text: bytes = ET.tostring(net, encoding="utf-8", xml_declaration=True)
        return text + b"\n"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _precision(element_type: str) -> str:
    return _PRECISIONS.get(element_type, element_type.upper())
