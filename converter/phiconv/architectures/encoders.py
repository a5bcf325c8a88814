"""Encoders of pictures: what a family of them states, and how its weights are found in a checkpoint.

Towers here are those of CLIP (https://arxiv.org/abs/2103.00020) and SigLIP (https://arxiv.org/abs/2303.15343),
taken before their last layer. Phi joins their patches two by two, adds separators, and has two matrices with
a GELU between them that lead to the language model's hidden size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phiconv.errors import MalformedFileError, printable
from phiconv.forward.encoder_ops import EncoderAttention, check_calls, record, vision
from phiconv.ir import AnyBlockEncoding, FloatEncoding
from phiconv.ir.senses import Encoder, Vision, flat_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from phiconv.architectures.config import Config
    from phiconv.forward.encoder_ops import EncoderOps, V
    from phiconv.ir import Tensor
    from phiconv.ir.model import Role

__all__ = ["LAYER", "Tower", "checked", "count_layers", "find_encoder", "layers", "project", "sizes"]

LAYER = {
    "attn_norm": "layer_norm1",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj",
    "ffn_norm": "layer_norm2",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
"""The roles of a layer, and what the hub calls them."""

_PLAIN = ("class_embedding", "row_end", "separator")
"""Roles whose tensors have names without ``.weight``."""

_NO_BIAS = (*_PLAIN, "position_embedding")

_UNUSED = (r"post_layernorm\.(weight|bias)", r"head\..+")
"""Tensors behind the last layer that no Phi uses."""


@dataclass(frozen=True, slots=True)
class Tower:
    """A family of encoders of pictures.

    Attributes:
        root: What the names of its layers begin with, ``.N.`` after it.
        trunk: What the names of unused tensors begin with.
        names: The other names by role.
        parse: Its numbers, from config.json and its own tensors by name.
        tower, arrange, project: See `phiconv.ir.senses.Encoder`.
        biases: Its patches have a bias.
    """

    root: str
    trunk: str
    names: Mapping[str, str]
    parse: Callable[[Tower, Config, Mapping[str, Tensor], int], Vision]
    tower: Callable[[Any, Any], Any]
    arrange: Callable[[Any, Any, Any], Any]
    project: Callable[[Any, Any, Any], Any]
    biases: bool = True


def layers(ops: EncoderOps[V], x: V, v: Vision) -> V:
    """LayerNorm, attention, LayerNorm, two matrices, layer by layer, each pair added to what comes in."""
    attention = EncoderAttention(v.num_attention_heads, v.head_dim)
    for n in range(v.num_hidden_layers):
        y = ops.attention(ops.layer_norm(x, vision("attn_norm", n), v.norm_epsilon), n, attention)
        x = ops.add(x, ops.linear(y, vision("attn_output", n)))
        y = ops.linear(ops.layer_norm(x, vision("ffn_norm", n), v.norm_epsilon), vision("ffn_up", n))
        x = ops.add(x, ops.linear(ops.activate(y, v.activation), vision("ffn_down", n)))
    return x


def project(ops: EncoderOps[V], x: V, v: Vision) -> V:  # noqa: ARG001 - a stage's arguments
    """Two matrices with a GELU between them."""
    return ops.linear(ops.activate(ops.linear(x, vision("projection_in")), "gelu"), vision("projection_out"))


def count_layers(tower: Tower, stored: Mapping[str, Tensor]) -> int:
    """How many layers a checkpoint has a tensor of."""
    pattern = re.compile(re.escape(tower.root) + r"\.(\d{1,4})\.")
    return 1 + max((int(m[1]) for n in stored if (m := pattern.match(n))), default=-1)


def sizes(tower: Tower, stored: Mapping[str, Tensor]) -> tuple[int, int]:
    """Hidden size and intermediate size, as the tensors have them; (0, 0) where they are not there."""
    first = stored.get(f"{tower.root}.0.{LAYER['ffn_up']}.weight")
    return (0, 0) if first is None or len(first.shape) != 2 else (first.shape[1], first.shape[0])


def find_encoder(
    tower: Tower, stored: Mapping[str, Tensor], config: Config, features: int, path: Path
) -> Encoder:
    """An encoder among the tensors of a checkpoint.

    Args:
        tower: Its family.
        stored: Its tensors, and no others, under the checkpoint's names.
        config: config.json as a whole.
        features: Hidden size of the language model.
        path: The checkpoint, for messages.

    Raises:
        MalformedFileError: A tensor is missing, has another shape than it must have, is no tensor of floats,
            or is none of this family.
        ConfigError: Numbers that do not fit each other.
    """
    parameters = tower.parse(tower, config, stored, features)
    tensors, names, used = {}, {}, set()
    for role, name, shape in _expected(tower, parameters, count_layers(tower, stored)):
        tensor = checked(stored, name, shape, path)
        used.add(name)
        computed = role.layer is None or role.layer < parameters.num_hidden_layers
        if computed:
            tensors[role] = flat_rows(tensor) if len(shape) > 1 else tensor
            names[role] = name
    unused = re.compile(re.escape(tower.trunk) + "(" + "|".join(_UNUSED) + ")")
    other = next((n for n in stored if n not in used and not unused.fullmatch(n)), None)
    if other is not None:
        raise MalformedFileError(
            "is no tensor that this model has for pictures", path=path, at=f"tensor {printable(other)}"
        )
    encoder = Encoder(parameters, tensors, stored, names, tower.tower, tower.arrange, tower.project)
    check_calls(record(encoder), tensors, path)
    return encoder


def _expected(tower: Tower, v: Vision, stored_layers: int) -> Iterator[tuple[Role, str, tuple[int, ...]]]:
    """Role, name and shape of every tensor; those of layers that are not computed, too."""
    for name, path in tower.names.items():
        yield vision(name), path if name in _PLAIN else f"{path}.weight", _shape(name, v)
        if name not in _NO_BIAS and (name != "patch_embedding" or tower.biases):
            yield vision(name, part="bias"), f"{path}.bias", _shape(name, v)[:1]
    for layer in range(stored_layers):
        for name, path in LAYER.items():
            for part, shape in (("weight", _shape(name, v)), ("bias", _shape(name, v)[:1])):
                yield vision(name, layer, part), f"{tower.root}.{layer}.{path}.{part}", shape


def _shape(name: str, v: Vision) -> tuple[int, ...]:
    """The shape that a checkpoint stores a role in."""
    hidden, inner, side = v.hidden_size, v.intermediate_size, v.patch_size
    merged = hidden * v.merged**2
    patch = (hidden, side * side * 3) if v.channels_last else (hidden, 3, side, side)
    return {
        "class_embedding": (hidden,),
        "patch_embedding": patch,
        "position_embedding": (v.positions, hidden),
        "pre_norm": (hidden,),
        "attn_norm": (hidden,),
        "attn_q": (hidden, hidden),
        "attn_k": (hidden, hidden),
        "attn_v": (hidden, hidden),
        "attn_output": (hidden, hidden),
        "ffn_norm": (hidden,),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
        "row_end": (1, 1, 1, merged),
        "separator": (1, 1, merged),
        "projection_in": (v.features, merged),
        "projection_out": (v.features, v.features),
    }[name]


def checked(stored: Mapping[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """A tensor that a checkpoint must have in this shape, in floats.

    Raises:
        MalformedFileError: It has not.
    """
    tensor = stored.get(name)
    where, cure = f"tensor {printable(name)}", "download the checkpoint again"
    if tensor is None:
        raise MalformedFileError("this tensor is missing", path=path, at=where, hint=cure)
    if tensor.shape != shape:
        message = f"has shape {list(tensor.shape)}, where this model has {list(shape)}"
        raise MalformedFileError(message, path=path, at=where, hint=cure)
    blocks = len(shape) == 2 and isinstance(tensor.encoding, AnyBlockEncoding)
    if not blocks and not isinstance(tensor.encoding, FloatEncoding):
        message = f"is stored as {tensor.encoding.name}, and not in floats"
        raise MalformedFileError(message, path=path, at=where, hint=cure)
    return tensor
