"""The graphs of an output, each a .xml with a .bin: the decoder alone, or what OpenVINO GenAI sees with.

For a model that sees these are four: the decoder, which is given embeddings; the look-up of embeddings; the
tower; the projection of what it says to embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from phiconv.forward.encoder_ops import EncoderRecorder
from phiconv_formats.openvino.emitter import emit_decoder, emit_embedding
from phiconv_formats.openvino.encoder import emit_projection, emit_tower
from phiconv_formats.openvino.graph import Graph
from phiconv_formats.openvino.names import DECODER, EMBEDDING, PROJECTION, TOWER, with_own_head
from phiconv_formats.openvino.weights import Weights
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.model import Model, Role
    from phiconv.ir.senses import Encoder
    from phiconv_formats.shared.output import Stream

__all__ = ["Part", "parts_of_model", "streams"]


class Part(NamedTuple):
    """A graph.

    Attributes:
        stem: The name of its two files, without suffix.
        graph: It.
        weights: Those that it uses.
        is_decoder: Whether it is the one that keeps keys and values.
    """

    stem: str
    graph: Graph
    weights: Weights
    is_decoder: bool = False


_Tensors = list[tuple[OutputTensor, "Encoding"]]


def parts_of_model(
    model: Model, tensors: Sequence[OutputTensor], encodings: Sequence[Encoding], stem: str
) -> list[Part]:
    """Emits the graphs.

    Args:
        model: The model.
        tensors: What they use.
        encodings: Of each.
        stem: The name of the graph where there is only one.
    """
    pairs = list(zip(tensors, encodings, strict=True))
    if model.senses is None or model.senses.vision is None:
        part = _part(stem, pairs, is_decoder=True)
        emit_decoder(part.graph, part.weights, model)
        return [part]
    encoder = model.senses.vision
    place = {DECODER: _Tensors(), EMBEDDING: _Tensors(), TOWER: _Tensors(), PROJECTION: _Tensors()}
    in_tower = _roles_of_tower(encoder)
    for tensor, encoding in pairs:
        assert tensor.role is not None  # noqa: S101 - an IR has no plain tensors
        place[_place(tensor.role, in_tower)].append((tensor, encoding))
    parts = {name: _part(name, own, is_decoder=name == DECODER) for name, own in place.items()}
    decoder, embedding, tower, projection = parts.values()
    emit_decoder(decoder.graph, decoder.weights, with_own_head(model), embedded=True)
    (table, _), *_ = place[EMBEDDING]
    assert table.role is not None  # noqa: S101 - see above
    emit_embedding(embedding.graph, embedding.weights, table.role)
    emit_tower(tower.graph, tower.weights, encoder)
    emit_projection(projection.graph, projection.weights, encoder)
    return [*parts.values()]


def _part(stem: str, pairs: _Tensors, *, is_decoder: bool) -> Part:
    graph = Graph()
    weights = Weights(graph, [tensor for tensor, _ in pairs], [encoding for _, encoding in pairs])
    return Part(stem, graph, weights, is_decoder)


def _roles_of_tower(encoder: Encoder) -> set[Role]:
    recorder = EncoderRecorder()
    encoder.tower(recorder, encoder.parameters)
    return {role for call in recorder.calls for role in call.roles}


def _place(role: Role, in_tower: set[Role]) -> str:
    """The graph that uses a weight."""
    if role.name == "token_embedding":
        return EMBEDDING
    if "." not in role.name:
        return DECODER
    return TOWER if role._replace(part="weight") in in_tower else PROJECTION


def streams(parts: Sequence[Part], tensors: Sequence[OutputTensor]) -> tuple[Stream, ...]:
    """How the weights come to their places in all files, in the order of the tensors."""
    found = {stream.name: stream for part in parts for stream in part.weights.streams(f"{part.stem}.bin")}
    return tuple(found[tensor.name] for tensor in tensors)
