"""config.json of a graph that litert-torch exported, which has none: what is certain of it, or nothing.

Sizes are those of weights and of the cache. The class of the model names its family, which says the rest of
the structure. The base of the rotary embedding is found from the frequencies, where nothing scales these; the
epsilon of the norms stands beside them. As many positions as the cache has are all that the file has.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.architectures import ARCHITECTURES
from phiconv.errors import MissingFileError
from phiconv.ir.rope import Rope
from phiconv_formats.litert.schema import ElementType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.architectures import Architecture
    from phiconv.ir import FloatArray, Tensor
    from phiconv_formats.litert.modules import ExportedWeights
    from phiconv_formats.litert.tflite_reader import Call, Constant, TfLite

__all__ = ["exported_config"]

_LAYER = re.compile(r"model\.layers\.([0-9]+)\.")
_CACHE = re.compile(r"(?:.*_)?kv_cache_k_([0-9]+)")
_ROTARY = "RotaryEmbedding_"
_NORM = "Norm_"

_EPSILON = b"epsilon\0\x01\x09\0\0\x03\0\0\0\x01\0\0\0\x01\0\0\0", b"\x0e\x05\x26\x01"
"""What stands before and behind a float32 in the attributes of a norm: the FlexBuffer {"epsilon": ...}."""

_ACTIVATIONS = {"silu": "LOGISTIC", "gelu_new": "GELU"}
_DIGITS = 9
_MOST_FREQUENCIES = 1 << 16
"""Bytes of them."""


def exported_config(
    model: TfLite, exported: ExportedWeights, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The object of config.json; of a family that phiconv does not know only its name.

    Args:
        model: The graph.
        exported: Which weights are what.
        tensors: The weights by their names.

    Raises:
        MissingFileError: Something is not certain; the file itself is needed.
    """
    family = next((a for a in ARCHITECTURES.values() if exported.family in a.classes), None)
    if family is None:
        return {"architectures": [exported.family]}
    return _Deriver(model, tensors, family).config(exported.family)


@dataclass(frozen=True, slots=True)
class _Deriver:
    model: TfLite
    tensors: Mapping[str, Tensor]
    family: Architecture

    def config(self, name: str) -> dict[str, Any]:
        names = self.family.names
        embedding = self._shape(names["token_embedding"])
        heads, kv_heads, head_dim, context = self._attention()
        operators = {call.operator for call in self.model.calls}
        if operators.isdisjoint({_ACTIVATIONS[self.family.hidden_act]}):
            raise self._unknown("the activation")
        if sum("mask" in name for name in self.model.shapes) > 1:
            raise self._unknown("the sliding window")
        theta, rotated = self._rotary()
        part = rotated / head_dim
        config: dict[str, Any] = {
            "architectures": [name],
            "model_type": self.family.name,
            "hidden_act": self.family.hidden_act,
            "vocab_size": embedding[0],
            "hidden_size": embedding[1],
            "num_hidden_layers": self._layers(),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "intermediate_size": self._shape(f"model.layers.0.{names['ffn_down']}")[1],
            "max_position_embeddings": context,
            "tie_word_embeddings": f"{names['output']}.weight" not in self.tensors,
            "rope_theta": theta,
            "rope_scaling": None,
            "partial_rotary_factor": part if int(head_dim * part) == rotated else np.nextafter(part, 2),
            self.family.epsilon: self._epsilon(),
        }
        if self.family.windowed:
            config["sliding_window"] = None
        return config

    def _attention(self) -> tuple[int, int, int, int]:
        """Heads, key/value heads, dimensions of a head, and positions of the cache."""
        caches = {tuple(s) for name, s in self.model.shapes.items() if _CACHE.fullmatch(name)}
        shape = caches.pop() if len(caches) == 1 else ()
        if len(shape) != 4 or min(shape) < 1:
            raise self._unknown("the shape of the cache")
        _, kv_heads, context, head_dim = shape
        output = self._shape(f"model.layers.0.{self.family.names['attn_output']}")[1]
        rows = sum(self._shape(f"model.layers.0.{name}")[0] for name in self._query_names())
        if rows != output + 2 * kv_heads * head_dim or output % head_dim:
            raise self._unknown("the heads of the attention")
        return output // head_dim, kv_heads, head_dim, context

    def _query_names(self) -> list[str]:
        """The matrices that queries, keys and values come from: one, or three."""
        return [*dict.fromkeys(self.family.names[role] for role in ("attn_q", "attn_k", "attn_v"))]

    def _layers(self) -> int:
        found = {int(match[1]) for name in self.tensors if (match := _LAYER.match(name))}
        return len(found)

    def _rotary(self) -> tuple[float, int]:
        """The base of the frequencies, and how many dimensions are rotated."""
        products = [call for call in self.model.calls if call.operator == "MUL" and _ROTARY in _last(call)]
        tables = [self._constant(call) for call in products]
        table = tables[0] if len(tables) == 1 else None  # more of them: something scales cos and sin
        if table is None or not 0 < table.shape[-1] * 4 == table.place[1] <= _MOST_FREQUENCIES:
            raise self._unknown("the rotary embedding")
        theta = _theta(self._floats(table))
        if theta is None:
            raise self._unknown("the rotary embedding")
        return theta, 2 * table.shape[-1]

    def _epsilon(self) -> float:
        """The epsilon of all norms."""
        found = set()
        for call in self.model.calls:
            if call.operator == "STABLEHLO_COMPOSITE" and _NORM in _last(call):
                first, last = _EPSILON
                data = call.attributes
                exact = data.startswith(first) and data.endswith(last) and len(data) == len(first + last) + 4
                found.add(struct.unpack_from("<f", data, len(first))[0] if exact else None)
            elif call.operator == "ADD" and _NORM in _last(call):
                constant = self._constant(call)
                if constant is not None and constant.place[1] == 4:
                    found.add(float(self._floats(constant)[0]))
        value = found.pop() if len(found) == 1 else None
        if value is None:
            raise self._unknown("the epsilon of the normalisations")
        return float(str(np.float32(value)))  # 1e-05, which is stored as 9.99999974737e-06

    def _constant(self, call: Call) -> Constant | None:
        """The one constant of floats that an operation reads."""
        found = [self.model.constants.get(number) for number in call.inputs]
        floats = [constant for constant in found if constant and constant.type == ElementType.FLOAT32]
        return floats[0] if len(floats) == 1 else None

    def _floats(self, constant: Constant) -> FloatArray:
        offset, size = constant.place
        return np.frombuffer(self.model.buffer.read(offset, size), "<f4")

    def _shape(self, name: str) -> tuple[int, ...]:
        tensor = self.tensors.get(f"{name}.weight")
        if tensor is None or len(tensor.shape) != 2:
            raise self._unknown(f"the shape of {name}")
        return tensor.shape

    def _unknown(self, what: str) -> MissingFileError:
        return MissingFileError(
            f"no config.json, and the graph does not say {what} with certainty",
            path=self.model.buffer.file.path,
            hint="name the folder of the original model with --config",
        )


def _last(call: Call) -> str:
    """The class and name of the module that an operation is of."""
    return call.output.partition(";")[0].rpartition("/")[2]


def _theta(frequencies: FloatArray) -> float | None:
    """The base of the fewest digits that gives these frequencies, but for their last bits; None for none."""
    pairs = len(frequencies)
    if pairs < 2 or frequencies[0] != 1 or not 0 < frequencies[-1] < 1:
        return None
    estimate = float(frequencies[-1]) ** (-pairs / (pairs - 1))
    for digits in range(_DIGITS):
        theta = float(f"{estimate:.{digits}e}")
        own = np.array(Rope(2 * pairs, theta, 1).inverse_frequencies(long=False), np.float32)
        if np.allclose(own, frequencies, rtol=2.0**-22, atol=0):
            return theta
    return None
