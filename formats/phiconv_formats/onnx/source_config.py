"""config.json of an ONNX model: the file beside it, or what genai_config.json and the graph say.

Folders of the model builder of ONNX Runtime GenAI have no config.json. What it would say stands in
genai_config.json and in the attributes of the graph's nodes, but for the rotary embedding, of which there are
tables. Where nothing scales that, its base can be told from them; else the file is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.architectures import ARCHITECTURES
from phiconv.errors import MalformedFileError, MissingFileError, printable
from phiconv_formats.onnx.checkpoint_names import Heads
from phiconv_formats.onnx.rotary import find_theta

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from phiconv_formats.onnx.checkpoint_names import Weights
    from phiconv_formats.onnx.graph_reader import GraphFile, Node
    from phiconv_formats.onnx.initializers import Initializers

__all__ = ["derived_config", "find_heads", "generation_config", "pipeline_files"]

_ATTENTION = "GroupQueryAttention"
_NORMS = {
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
}

_INNER = ("mlp.up_proj", "mlp.fc1")
"""Matrices with a row for each unit of the feed-forward network, by any of the names that it has."""

# config.json -> genai_config.json, in its "model" and in the "decoder" of that.
_MODEL = {"vocab_size": "vocab_size", "max_position_embeddings": "context_length"}
_DECODER = {
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_hidden_layers": "num_hidden_layers",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_size",
}
_HEADS = ("num_attention_heads", "num_key_value_heads")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def find_heads(graph: GraphFile, path: Path, genai: Mapping[str, Any]) -> Heads:
    """The heads of the attention, the same in every layer; ONNX's own operator does not say how many.

    Args:
        graph: The graph.
        path: Its file, for messages.
        genai: genai_config.json, or {}.

    Raises:
        MalformedFileError: Layers differ.
    """
    nodes = [node for node in graph.nodes if node.operator == _ATTENTION]
    found = {Heads(node.integer("num_heads", 0), node.integer("kv_num_heads", 0)) for node in nodes}
    if len(found) > 1:
        raise MalformedFileError("its layers have different numbers of heads", path=path)
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    said = [decoder.get(key) for key in _HEADS] if isinstance(decoder, dict) else []
    other = Heads(*(n if isinstance(n, int) else 0 for n in said)) if said else Heads(0, 0)
    return next(iter(found), other)


def generation_config(genai: Mapping[str, Any]) -> dict[str, Any]:
    """What generation_config.json would say of special tokens."""
    model = genai.get("model")
    return {key: model[key] for key in _TOKENS if isinstance(model, dict) and key in model}


def pipeline_files(decoder: Mapping[str, Any]) -> list[object]:
    """What the graphs of a pipeline are called, each weight in one of them: not those for single tokens."""
    pipeline = decoder.get("pipeline")
    stages = pipeline[0] if isinstance(pipeline, list) and pipeline and isinstance(pipeline[0], dict) else {}
    kept = (s for s in stages.values() if isinstance(s, dict) and s.get("run_on_prompt") is not False)
    return [stage.get("filename") for stage in kept]


def derived_config(
    genai: Mapping[str, Any], graph: GraphFile, tensors: Initializers, weights: Weights
) -> dict[str, Any]:
    """The object of config.json, where it can be told with certainty.

    Args:
        genai: genai_config.json.
        graph: The graph.
        tensors: Its tensors.
        weights: Its weights.

    Raises:
        MissingFileError: It cannot; the file itself is needed.
    """
    return _Deriver(genai, graph, tensors, weights).config()


@dataclass(frozen=True, slots=True)
class _Deriver:
    genai: Mapping[str, Any]
    graph: GraphFile
    tensors: Initializers
    weights: Weights

    def config(self) -> dict[str, Any]:
        model = self.genai.get("model")
        decoder = model.get("decoder") if isinstance(model, dict) else None
        kind = str(model.get("type")) if isinstance(model, dict) else ""
        dense = {name: a for name, a in ARCHITECTURES.items() if "router" not in a.names}
        family = dense.get(kind)
        if not isinstance(model, dict) or not isinstance(decoder, dict) or family is None:
            raise self._unknown(f"a model of type {printable(kind, 40)!r}")
        config: dict[str, Any] = {
            "architectures": [family.classes[0]],
            "model_type": family.name,
            "hidden_act": family.hidden_act,
        }
        config |= {key: model.get(name) for key, name in _MODEL.items()}
        config |= {key: decoder.get(name) for key, name in _DECODER.items()}
        names = (f"model.layers.0.{name}.weight" for name in _INNER)
        first = next((name for name in names if name in self.weights.tensors), None)
        if first is None:
            raise self._unknown("the size of the feed-forward network")
        config["intermediate_size"] = self.weights.tensors[first].shape[0]
        value = self._only(_NORMS, "epsilon", "the epsilon of the normalisations")
        config[family.epsilon] = float(str(np.float32(value)))  # 1e-05, which is stored as 9.99999974737e-06
        window = self._only({_ATTENTION}, "local_window_size", "the sliding window")
        if window < 1 and "sliding_window" in decoder:  # GenAI 0.18 writes such graphs: they do not agree
            raise self._unknown("the sliding window")
        if family.windowed:
            config["sliding_window"] = int(window) if window >= 1 else None
        config["tie_word_embeddings"] = self.weights.tied
        config |= {key: model[key] for key in _TOKENS if key in model}
        return config | self._rope(decoder)

    def _rope(self, decoder: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of the rotary embedding."""
        size = decoder.get("head_size")
        names = {self._tables(node) for node in self.graph.nodes if node.operator == _ATTENTION}
        found = [self.tensors.tensors.get(name) for name in next(iter(names), ())]
        if len(names) != 1 or None in found or type(size) is not int or size < 1:
            raise self._unknown("the rotary embedding")
        cos, sin = (self.tensors.floats(table) for table in found if table is not None)
        theta = find_theta(cos, sin)
        scale = self._only({_ATTENTION}, "scale", "the attention")
        if theta is None or not math.isclose(scale or size**-0.5, size**-0.5, rel_tol=1e-5):
            raise self._unknown("the rotary embedding")
        rotated = 2 * cos.shape[1]
        part = rotated / size
        part = part if int(size * part) == rotated else math.nextafter(part, 2)
        return {"rope_theta": theta, "rope_scaling": None, "partial_rotary_factor": part}

    def _tables(self, attention: Node) -> tuple[str, str]:
        """Names of cos and sin: of the operator itself, or of those that rotate before it."""
        if attention.integer("do_rotary", 0):
            return attention.input(7), attention.input(8)
        makers = (node for node in self.graph.nodes if attention.input(0) in node.outputs)
        rotary = next((node for node in makers if node.operator == "RotaryEmbedding"), None)
        return (rotary.input(2), rotary.input(3)) if rotary is not None else ("", "")

    def _only(self, operators: set[str], attribute: str, what: str) -> float:
        """The value that an attribute has in all nodes of these operators."""
        values = {n.attributes.get(attribute) for n in self.graph.nodes if n.operator in operators}
        value = values.pop() if len(values) == 1 else None
        if not isinstance(value, (int, float)):
            raise self._unknown(what)
        return value

    def _unknown(self, what: str) -> MissingFileError:
        return MissingFileError(
            f"no config.json beside the model, and {what} cannot be told from the other files",
            path=self.tensors.path.parent,
            hint="put the model's config.json there",
        )
