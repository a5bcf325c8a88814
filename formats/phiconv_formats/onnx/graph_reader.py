"""The parts of an ONNX file that say what its weights are: nodes, and where every tensor's bytes lie.

The messages and the numbers of their fields are those of onnx.proto (ONNX 1.19). Bytes of tensors are not
read: neither those in files beside it nor those inside.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from phiconv_formats.shared.wire import Field, WireReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv_formats.shared.files import InputFile

__all__ = ["GraphFile", "Node", "StoredTensor", "read_graph"]

_MOST_DIMENSIONS = 8
_EXTERNAL = 1
_MOST_NODES = 30_000
_MOST_TENSORS = 10_000
"""Twice those of Phi-3.5-MoE with every expert by itself, the largest graph that there is, and more."""


@dataclass(slots=True)
class StoredTensor:
    """A tensor and where its bytes are.

    Attributes:
        name: Its name.
        data_type: One of ONNX's numbers for types.
        shape: Outermost dimension first.
        file: The name of the file that has them; "" for the model's own.
        offset: Of the first byte there.
        length: Bytes; None where the file of weights does not say.
        notes: Its ``metadata_props``.
    """

    name: str = ""
    data_type: int = 0
    shape: tuple[int, ...] = ()
    file: str = ""
    offset: int = 0
    length: int | None = 0
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Node:
    """A node: what it computes, from which values to which.

    Attributes:
        operator: Its type.
        inputs, outputs: Names of values; "" where an optional one is missing.
        attributes: Numbers and texts among its attributes.
        lists: Lists of integers among them.
    """

    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, int | float | str] = field(default_factory=dict)
    lists: dict[str, list[int]] = field(default_factory=dict)

    def input(self, index: int) -> str:
        """The name of an input; "" where it is not given."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def integer(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default


@dataclass(slots=True)
class GraphFile:
    """The graph of a model.

    Attributes:
        nodes: In the file's order.
        tensors: Its initializers by name.
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)


def read_graph(file: InputFile) -> GraphFile:
    """Reads the graph of an ONNX file.

    Raises:
        MalformedFileError: It is no ONNX file, or is damaged.
    """
    wire = WireReader(file, "an ONNX model")
    found = [part for part in wire.fields(0, file.size) if part.number == 7]  # ModelProto.graph
    if len(found) != 1:
        raise wire.error(f"{len(found)} graphs, where one is expected", 0)
    result = GraphFile()
    for part in wire.fields(found[0].start, found[0].stop):
        if part.number == 1:
            result.nodes.append(_node(wire, part))
        elif part.number == 5:
            tensor = _tensor(wire, part)
            if tensor.name in result.tensors:
                raise wire.error(f"two tensors are called {tensor.name}", part.start)
            result.tensors[tensor.name] = tensor
        if len(result.nodes) > _MOST_NODES or len(result.tensors) > _MOST_TENSORS:
            message = f"more than {_MOST_NODES} nodes or {_MOST_TENSORS} tensors, which no Phi model has"
            raise wire.error(message, part.start)
        if part.number == 15:
            raise wire.error("it has sparse tensors, which phiconv does not read", part.start)
    return result


def _node(wire: WireReader, message: Field) -> Node:
    node = Node()
    for part in wire.fields(message.start, message.stop):
        if part.number == 1:
            node.inputs.append(wire.text(part))
        elif part.number == 2:
            node.outputs.append(wire.text(part))
        elif part.number == 4:
            node.operator = wire.text(part)
        elif part.number == 5:
            _attribute(wire, part, node)
    return node


def _attribute(wire: WireReader, message: Field, node: Node) -> None:
    """Tensors and graphs among attributes hold no weights, and are passed over."""
    name, value, numbers = "", None, []
    for part in wire.fields(message.start, message.stop):
        if part.number == 1:
            name = wire.text(part)
        elif part.number == 2:
            value = struct.unpack("<f", (part.value & 0xFFFFFFFF).to_bytes(4, "little"))[0]
        elif part.number == 3:
            value = _signed(part.value)
        elif part.number == 4:
            value = wire.text(part)
        elif part.number == 8:
            numbers += [_signed(n) for n in wire.numbers(part, _MOST_DIMENSIONS)] or [0]
    if value is not None:
        node.attributes[name] = value
    node.lists[name] = numbers


def _tensor(wire: WireReader, message: Field) -> StoredTensor:
    """A TensorProto."""
    parts: dict[int, list[Field]] = {}
    for part in wire.fields(message.start, message.stop):
        parts.setdefault(part.number, []).append(part)
    names = [wire.text(part) for part in parts.get(8, [])]
    types = [part.value for part in parts.get(2, [])]
    tensor = StoredTensor("".join(names[-1:]), (types or [0])[-1])
    for part in parts.get(1, []):  # one by one, or packed
        tensor.shape += tuple(wire.numbers(part, _MOST_DIMENSIONS) or [0])
    if len(tensor.shape) > _MOST_DIMENSIONS or any(n >= 1 << 63 for n in tensor.shape):
        raise wire.error(f"tensor {tensor.name} has no possible shape", message.start)
    tensor.notes = dict(_entry(wire, part) for part in parts.get(16, []))
    inside = [*parts.get(9, []), *parts.get(4, [])]  # packed floats are the same bytes as raw ones
    if any(part.value == _EXTERNAL for part in parts.get(14, [])):
        if inside:
            raise wire.error(f"tensor {tensor.name} is in two places", message.start)
        _place(wire, tensor, dict(_entry(wire, part) for part in parts.get(13, [])), message.start)
    elif len(inside) == 1:
        tensor.offset, tensor.length = inside[0].start, inside[0].stop - inside[0].start
    return tensor


def _place(wire: WireReader, tensor: StoredTensor, external: Mapping[str, str], at: int) -> None:
    """Where a tensor's bytes are in another file."""
    tensor.file = external.get("location", "")
    offset, length = external.get("offset", "0"), external.get("length")
    for text in (offset, "0" if length is None else length):
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise wire.error(f"tensor {tensor.name} is at no possible place ({text})", at)
    if not tensor.file:
        raise wire.error(f"tensor {tensor.name} is in a file without a name", at)
    tensor.offset, tensor.length = int(offset), None if length is None else int(length)


def _entry(wire: WireReader, message: Field) -> tuple[str, str]:
    """A StringStringEntryProto."""
    parts = {part.number: wire.text(part) for part in wire.fields(message.start, message.stop)}
    return parts.get(1, ""), parts.get(2, "")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
