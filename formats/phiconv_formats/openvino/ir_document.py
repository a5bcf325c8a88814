"""An OpenVINO IR (version 11): a graph of layers as XML, and its constants as one flat file.

    <net>
      <layers>  <layer id name type version> <data attributes/> <input/> <output/> </layer> ...  </layers>
      <edges>   <edge from-layer from-port to-layer to-port/> ...                                </edges>
      <rt_info> <name value/> ...                                                                </rt_info>
    </net>

A layer's input ports are numbered 0, 1, ... and its output ports go on from there. OpenVINO infers the shapes
and types of a layer from its inputs when it reads the file. So no dimensions are written, and only constants,
parameters and states say what shape they have.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, NamedTuple

from phiconv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PRECISIONS", "Document", "Port"]

PRECISIONS = {
    "bf16": "BF16",
    "boolean": "BOOL",
    "f4e2m1": "F4E2M1",
    "f8e4m3": "F8E4M3",
    "f8e8m0": "F8E8M0",
    "f16": "FP16",
    "f32": "FP32",
    "i32": "I32",
    "i4": "I4",
    "i64": "I64",
    "i8": "I8",
    "nf4": "NF4",
    "string": "STRING",
    "u4": "U4",
    "u8": "U8",
}
"""What a port calls an element type, by its name in attributes."""

# What XML 1.0 cannot hold, not even escaped.
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Port(NamedTuple):
    """An output of a layer, which other layers take as their input."""

    layer: int
    port: int


class Document:
    """A graph that is being written.

    Args:
        name: Of the graph.
    """

    def __init__(self, name: str) -> None:
        self._net = ET.Element("net", {"name": name, "version": "11"})
        self._layers = ET.SubElement(self._net, "layers")
        self._edges = ET.SubElement(self._net, "edges")
        self._chunks: dict[bytes, int] = {}
        self.size = 0

    def layer(
        self,
        kind: str,
        inputs: Sequence[Port],
        outputs: Sequence[str],
        *,
        version: str = "opset1",
        name: str = "",
        tensor_names: Sequence[str] = (),
        decompression: bool = False,
        **attributes: str,
    ) -> list[Port]:
        """Adds a layer.

        Args:
            kind: The operation, as OpenVINO calls it.
            inputs: In the order of the operation's inputs.
            outputs: The element type of each output, such as "i32".
            version: The operation set that the operation belongs to.
            name: Of the layer; made from its kind and number if there is none.
            tensor_names: Names of the outputs, by which a program asks for them.
            decompression: Marks it as the last one of those that turn stored weights into floats.
            attributes: Of the operation.

        Returns:
            Its outputs.
        """
        number = len(self._layers)
        fields = {"id": str(number), "name": name or f"{kind}_{number}", "type": kind, "version": version}
        layer = ET.SubElement(self._layers, "layer", fields)
        if attributes:
            ET.SubElement(layer, "data", attributes)
        if decompression:
            mark = {"name": "decompression", "version": "0"}
            ET.SubElement(ET.SubElement(layer, "rt_info"), "attribute", mark)
        if inputs:
            ports = ET.SubElement(layer, "input")
            for index, (from_layer, from_port) in enumerate(inputs):
                ET.SubElement(ports, "port", {"id": str(index)})
                edge = (from_layer, from_port, number, index)
                keys = ("from-layer", "from-port", "to-layer", "to-port")
                ET.SubElement(self._edges, "edge", dict(zip(keys, map(str, edge), strict=True)))
        if outputs:
            ports = ET.SubElement(layer, "output")
            for index, element_type in enumerate(outputs):
                port = {"id": str(len(inputs) + index), "precision": PRECISIONS[element_type]}
                if index < len(tensor_names):
                    port["names"] = tensor_names[index]
                ET.SubElement(ports, "port", port)
        return [Port(number, len(inputs) + index) for index in range(len(outputs))]

    def one(
        self,
        kind: str,
        inputs: Sequence[Port],
        output: str,
        *,
        version: str = "opset1",
        name: str = "",
        tensor_name: str = "",
        **attributes: str,
    ) -> Port:
        """Adds a layer with one output, of this element type; see `layer`."""
        names = [tensor_name] if tensor_name else []
        (port,) = self.layer(
            kind,
            inputs,
            [output],
            version=version,
            name=name,
            tensor_names=names,
            decompression=False,
            **attributes,
        )
        return port

    def constant(self, data: bytes, element_type: str, shape: Sequence[int] = ()) -> Port:
        """Adds a constant.

        Args:
            data: Its bytes: little-endian, the last dimension innermost. Equal bytes are stored once.
            element_type: Such as "i32".
            shape: Empty for a single number.
        """
        if data not in self._chunks:
            self._chunks[data] = self.reserve(len(data))
        return self.reserved(self._chunks[data], len(data), element_type, shape)

    def reserve(self, size: int, *, alignment: int = 1) -> int:
        """Makes room for bytes that are written later; returns their offset in the .bin file."""
        offset = -(-self.size // alignment) * alignment
        self.size = offset + size
        return offset

    def reserved(
        self, offset: int, size: int, element_type: str, shape: Sequence[int], name: str = ""
    ) -> Port:
        """Adds a constant whose bytes stand, or will stand, at an offset."""
        attributes = {"element_type": element_type, "shape": ", ".join(map(str, shape))}
        attributes |= {"offset": str(offset), "size": str(size)}
        return self.one("Const", (), element_type, name=name, **attributes)

    def chunks(self) -> list[tuple[int, bytes]]:
        """The bytes of the constants that are known, each with its offset."""
        return [(offset, data) for data, offset in self._chunks.items()]

    def binary(self) -> bytes:
        """The content of the .bin file; zeros where room was made for what comes later."""
        content = bytearray(self.size)
        for offset, data in self.chunks():
            content[offset : offset + len(data)] = data
        return bytes(content)

    def xml(self, rt_info: Mapping[str, str | Mapping[str, str]]) -> bytes:
        """The content of the .xml file.

        Args:
            rt_info: What the runtime is told beside the graph, by name; a section of names and values, too.

        Raises:
            ConfigError: A text has a character that XML cannot hold.
        """
        net = ET.Element(self._net.tag, self._net.attrib)
        net.extend(self._net)
        _add_info(ET.SubElement(net, "rt_info"), rt_info)
        ET.indent(net, "\t")
        # ElementTree escapes line ends and tabs inside attributes; a reader would take them for spaces.
        text: str = ET.tostring(net, encoding="unicode")
        return f'<?xml version="1.0"?>\n{text}\n'.encode()


def _add_info(parent: ET.Element, entries: Mapping[str, str | Mapping[str, str]]) -> None:
    for key, value in entries.items():
        if not isinstance(value, str):
            _add_info(ET.SubElement(parent, key), value)
            continue
        if found := _NO_XML.search(value):
            message = f"a character that an XML file cannot hold: {found[0]!r}"
            raise ConfigError(message, at=key)
        ET.SubElement(parent, key, {"value": value})
