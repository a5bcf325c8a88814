"""An OpenVINO IR that somebody else may have made: its layers and edges, with nothing in it trusted.

Only what leads from the stored constants to the operations that use them is kept: of a layer its kind, its
name, its attributes and its ports. A DOCTYPE is refused, and with it every entity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING
from xml.parsers import expat

from phiconv.errors import MalformedFileError, printable
from phiconv_formats.shared.files import InputFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["IrGraph", "Layer", "integer", "read_graph"]

_MAX_BYTES = 16 << 20
"""Of an .xml; those of 40 layers have about 4 MB."""

_MAX_ELEMENTS = 300_000
_MAX_LAYERS = 30_000
_MAX_DEPTH = 32
_CHUNK = 1 << 16

_MAX_DIGITS = 18  # more than the size of any file has


@dataclass(slots=True)
class Layer:
    """A layer.

    Attributes:
        number: Its id.
        kind: The operation.
        name: What people call it.
        attributes: Of the operation, as text.
        inputs: The ids of its input ports, in order.
        outputs: The ids of its output ports, in order.
        results: The names of its outputs.
    """

    number: int
    kind: str
    name: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    results: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class IrGraph:
    """The layers of an IR; every input of one is connected to an output of another, without cycles.

    Attributes:
        path: The .xml.
        layers: By their ids.
        edges: From (layer, input port) to (layer, output port).
    """

    path: Path
    layers: Mapping[int, Layer]
    edges: Mapping[tuple[int, int], tuple[int, int]]

    def inputs(self, layer: Layer) -> list[Layer]:
        """The layers that the inputs of a layer come from, in their order."""
        return [self.layers[self.edges[layer.number, port][0]] for port in layer.inputs]

    @cached_property
    def users(self) -> Mapping[int, list[Layer]]:
        """The layers that take an output of a layer, by its id."""
        result: dict[int, list[Layer]] = {}
        for (user, _), (source, _) in self.edges.items():
            result.setdefault(source, []).append(self.layers[user])
        return result


def integer(text: str | None, path: Path, at: str) -> int:
    """A number of an attribute, 0 or more.

    Raises:
        MalformedFileError: It is none, or is larger than any file.
    """
    if text is None or not _is_number(text):
        raise MalformedFileError(f"not a whole number: {printable(text, 40)}", path=path, at=at)
    return int(text)


def _is_number(text: str) -> bool:
    """Whether a text is a number that is 0 or more, and not too large."""
    return len(text) <= _MAX_DIGITS and text.isascii() and text.isdecimal()


def read_graph(path: Path) -> IrGraph:
    """Reads the .xml of an IR.

    Raises:
        MissingFileError: There is no such file.
        MalformedFileError: It is no XML, or no IR; it is too large, or too deep; its edges lead nowhere.
    """
    builder = _Builder(path)
    # expat loads nothing from outside, and the builder stops it at the first sign of a DOCTYPE.
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = builder.doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    try:
        with InputFile(path) as file:
            if file.size > _MAX_BYTES:
                raise builder.error(f"the file has {file.size} bytes, and an IR at most {_MAX_BYTES}")
            for at in range(0, file.size, _CHUNK):
                parser.Parse(file.read_bytes(at, min(_CHUNK, file.size - at)), False)
            parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise builder.error(f"no XML: {error}") from None
    return builder.graph()


class _Builder:
    """What expat calls: it keeps the elements that say something about the graph."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: list[str] = []
        self._elements = 0
        self._layers: dict[int, Layer] = {}
        self._edges: dict[tuple[int, int], tuple[int, int]] = {}
        self._layer = Layer(-1, "", "")

    def error(self, message: str, at: str = "") -> MalformedFileError:
        return MalformedFileError(message, path=self._path, at=at)

    def doctype(self, *_: object) -> None:
        raise self.error("an IR has no DOCTYPE: it may define entities that grow without bounds")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._open.append(tag)
        self._elements += 1
        if self._elements > _MAX_ELEMENTS or len(self._open) > _MAX_DEPTH:
            raise self.error(f"more than {_MAX_ELEMENTS} elements, or {_MAX_DEPTH} one inside the other")
        match self._open:
            case ["net"]:
                if attributes.get("version") not in ("10", "11"):
                    version = printable(attributes.get("version", ""), 20)
                    raise self.error(f"an IR of version {version!r}, and phiconv reads 10 and 11")
            case [_]:
                raise self.error(f"no IR: its first element is <{printable(tag, 40)}>, not <net>")
            case ["net", "layers", "layer"]:
                self._add_layer(attributes)
            case ["net", "layers", "layer", "data"]:
                self._layer.attributes = attributes
            case ["net", "layers", "layer", "input", "port"]:
                self._layer.inputs.append(self._id(attributes, "id"))
            case ["net", "layers", "layer", "output", "port"]:
                self._layer.outputs.append(self._id(attributes, "id"))
                self._layer.results += attributes.get("names", "").split(",")
            case ["net", "edges", "edge"]:
                self._add_edge(attributes)

    def end(self, _: str) -> None:
        self._open.pop()

    def _id(self, attributes: Mapping[str, str], key: str) -> int:
        text = attributes.get(key, "")
        if _is_number(text):
            return int(text)
        return integer(text, self._path, f"{key} of an element <{self._open[-1]}>")

    def _add_layer(self, attributes: Mapping[str, str]) -> None:
        number = self._id(attributes, "id")
        if number in self._layers or len(self._layers) >= _MAX_LAYERS:
            raise self.error(f"two layers have the id {number}, or there are more than {_MAX_LAYERS}")
        self._layer = Layer(number, attributes.get("type", ""), attributes.get("name", ""))
        self._layers[number] = self._layer

    def _add_edge(self, attributes: Mapping[str, str]) -> None:
        from_layer, from_port, to_layer, to_port = (
            self._id(attributes, key) for key in ("from-layer", "from-port", "to-layer", "to-port")
        )
        if (to_layer, to_port) in self._edges:
            raise self.error("an input with two edges", f"layer {to_layer}")
        self._edges[to_layer, to_port] = (from_layer, from_port)

    def graph(self) -> IrGraph:
        """The graph, when the document has ended.

        Raises:
            MalformedFileError: An edge from or to nothing, an input without an edge, a cycle.
        """
        layers, edges = self._layers, self._edges
        outputs = {(layer.number, port) for layer in layers.values() for port in layer.outputs}
        inputs = {(layer.number, port) for layer in layers.values() for port in layer.inputs}
        for target, source in edges.items():
            if source not in outputs or target not in inputs:
                ends = f"from port {source[1]} of layer {source[0]} to port {target[1]} of layer {target[0]}"
                raise self.error(f"an edge {ends}, and one of them is not there")
        if unconnected := inputs - edges.keys():
            number, port = min(unconnected)
            raise self.error(f"no edge leads to its input port {port}", f"layer {number}")
        order: TopologicalSorter[int] = TopologicalSorter()
        for (target_layer, _), (source_layer, _) in edges.items():
            order.add(target_layer, source_layer)
        try:
            order.prepare()
        except CycleError:
            raise self.error("its layers form a cycle") from None
        return IrGraph(self._path, layers, edges)
