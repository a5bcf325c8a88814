"""The encoder of Phi-4-multimodal's sounds: a Conformer (https://arxiv.org/abs/2005.08100).

From ``modeling_phi4_multimodal.py`` of transformers 5.24; the hub's code computes the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.architectures.encoders import checked
from phiconv.errors import MalformedFileError, printable
from phiconv.forward.encoder_ops import EncoderAttention, check_calls
from phiconv.forward.sound_ops import hearing, record_sound
from phiconv.ir.senses import Hearing, SoundEncoder, flat_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from phiconv.architectures.config import Config
    from phiconv.forward.sound_ops import SoundOps, V
    from phiconv.ir import Tensor
    from phiconv.ir.model import Role
    from phiconv.ir.senses import Beside

__all__ = ["CONFORMER", "CONFORMER_OF_TRANSFORMERS", "Conformer", "find_sound_encoder"]

_ROOT = "model.embed_tokens_extend.audio_embed."

_NAMES = {
    "mean": "encoder.encoder_embedding.global_mean",
    "inverse_std": "encoder.encoder_embedding.global_invstd",
    "conv_0": "encoder.embed.conv.0",
    "conv_1": "encoder.embed.conv.2",
    "mix_1": "encoder.embed.conv.3",
    "conv_2": "encoder.embed.conv.5",
    "mix_2": "encoder.embed.conv.6",
    "subsampled": "encoder.embed.out",
    "distance_bias": "encoder.relative_attention_bias_layer.bias_values",
}
_LAYER = {
    "ffn_in_norm": "feed_forward_in.layer_norm",
    "ffn_in_up": "feed_forward_in.net.0.linear",
    "ffn_in_down": "feed_forward_in.net.2",
    "attn_norm": "layer_norm_att",
    "attn_q": "self_attn.linear_q",
    "attn_k": "self_attn.linear_k",
    "attn_v": "self_attn.linear_v",
    "attn_output": "self_attn.linear_out",
    "conv_norm": "conv.layer_norm",
    "conv_in": "conv.glu.ext_pw_conv_1d",
    "conv_first": "conv.glu.b1",
    "conv_second": "conv.glu.b2",
    "conv_causal": "conv.dw_sep_conv_1d.dw_conv",
    "conv_mix": "conv.dw_sep_conv_1d.pw_conv",
    "conv_out": "conv.ext_pw_conv_1d",
    "ffn_out_norm": "feed_forward_out.layer_norm",
    "ffn_out_up": "feed_forward_out.net.0.linear",
    "ffn_out_down": "feed_forward_out.net.2",
    "norm": "layer_norm",
}
_PROJECTIONS = {
    "speech_in": "audio_projection.speech.0",
    "speech_out": "audio_projection.speech.2",
    "vision_in": "audio_projection.vision.0",
    "vision_out": "audio_projection.vision.2",
}

_PLAIN = ("mean", "inverse_std", "conv_first", "conv_second")
"""Roles whose tensors have names without ``.weight``."""

_NO_BIAS = (*_PLAIN, "distance_bias")


@dataclass(frozen=True, slots=True)
class Conformer:
    """Where a checkpoint has the encoder.

    Attributes:
        names, layer: Names by role, of the model as a whole and of a block.
        section: The keys of config.json under which its numbers are.
        keys: What these are called: hidden size, intermediate size, blocks, heads, farthest distance.
    """

    names: Mapping[str, str]
    layer: Mapping[str, str]
    section: tuple[str, ...]
    keys: tuple[str, str, str, str]


CONFORMER = Conformer(
    _NAMES | _PROJECTIONS,
    _LAYER,
    ("audio_processor", "config"),
    ("attention_dim", "linear_units", "num_blocks", "attention_heads"),
)
"""As on the hub."""

CONFORMER_OF_TRANSFORMERS = Conformer(
    _NAMES
    | {
        "speech_in": "up_proj_for_speech",
        "speech_out": "down_proj_for_speech",
        "vision_in": "up_proj_for_vision_speech",
        "vision_out": "down_proj_for_vision_speech",
    },
    _LAYER
    | {
        "ffn_in_up": "feed_forward_in.gate_up_proj",
        "ffn_in_down": "feed_forward_in.down_proj",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_out_up": "feed_forward_out.gate_up_proj",
        "ffn_out_down": "feed_forward_out.down_proj",
    },
    ("audio_config",),
    ("hidden_size", "intermediate_size", "num_blocks", "num_attention_heads"),
)
"""As transformers stores it."""


def _tower(ops: SoundOps[V], p: Hearing) -> V:
    x = ops.frames(hearing("mean"), hearing("inverse_std"))
    x = ops.activate(ops.convolve(x, hearing("conv_0")), "relu")
    for n in (1, 2):
        x = ops.mix(ops.convolve_each(x, hearing(f"conv_{n}")), hearing(f"mix_{n}"))
        x = ops.activate(x, "relu")
    x = ops.cut(ops.linear(ops.flatten(x), hearing("subsampled")), p.longest)
    for n in range(p.num_hidden_layers):
        x = _block(ops, x, n, p)
    return ops.uncut(x)


def _block(ops: SoundOps[V], x: V, n: int, p: Hearing) -> V:
    """Half a feed-forward, attention, convolution, the other half; each added to what comes in."""
    attention = EncoderAttention(p.num_attention_heads, p.head_dim, "audio")
    x = ops.add(x, ops.half(_feed_forward(ops, x, "ffn_in", n, p)))
    y = ops.layer_norm(x, hearing("attn_norm", n), p.norm_epsilon)
    y = ops.attention(y, n, attention, hearing("distance_bias"), p.distance)
    x = ops.add(x, ops.linear(y, hearing("attn_output", n)))
    y = ops.linear(ops.layer_norm(x, hearing("conv_norm", n), p.norm_epsilon), hearing("conv_in", n))
    y = ops.gate_shifted(y, "silu", hearing("conv_first", n), hearing("conv_second", n))
    y = ops.activate(ops.linear(ops.causal(y, hearing("conv_causal", n)), hearing("conv_mix", n)), "silu")
    x = ops.add(x, ops.linear(y, hearing("conv_out", n)))
    x = ops.add(x, ops.half(_feed_forward(ops, x, "ffn_out", n, p)))
    return ops.layer_norm(x, hearing("norm", n), p.norm_epsilon)


def _feed_forward(ops: SoundOps[V], x: V, name: str, n: int, p: Hearing) -> V:
    y = ops.linear(ops.layer_norm(x, hearing(f"{name}_norm", n), p.norm_epsilon), hearing(f"{name}_up", n))
    return ops.linear(ops.gate(y, "silu"), hearing(f"{name}_down", n))


def _project(ops: SoundOps[V], x: V, p: Hearing, beside: Beside) -> V:  # noqa: ARG001 - a stage's arguments
    y = ops.activate(ops.linear(x, hearing(f"{beside}_in")), "gelu")
    return ops.linear(y, hearing(f"{beside}_out"))


def find_sound_encoder(
    kind: Conformer, stored: Mapping[str, Tensor], config: Config, features: int, path: Path
) -> SoundEncoder:
    """An encoder among the tensors of a checkpoint; see `architectures.encoders.find_encoder`."""
    parameters = _parse(kind, config, stored, features)
    tensors: dict[Role, Tensor] = {}
    used = set()
    for role, name, shape in _expected(kind, parameters):
        tensor = checked(stored, name, shape, path)
        used.add(name)
        tensors[role] = flat_rows(tensor) if len(shape) > 1 else tensor
    other = next((n for n in stored if n not in used), None)
    if other is not None:
        raise MalformedFileError(
            "is no tensor that this model has for sounds", path=path, at=f"tensor {printable(other)}"
        )
    encoder = SoundEncoder(parameters, tensors, stored, _tower, _project)
    check_calls(record_sound(encoder), tensors, path)
    return encoder


def _parse(kind: Conformer, config: Config, stored: Mapping[str, Tensor], features: int) -> Hearing:
    """The numbers that config.json states, or else those that the shapes of the tensors have."""

    def size(name: str, axis: int) -> int:
        tensor = stored.get(_ROOT + name)
        return tensor.shape[axis] if tensor is not None and len(tensor.shape) > axis else 1

    section: Config | None = config
    for key in kind.section:
        section = section and section.section(key)
    found = (
        size(f"encoder.encoders.0.{kind.layer['attn_q']}.weight", 0),
        size(f"encoder.encoders.0.{kind.layer['ffn_in_down']}.weight", 1),
        _blocks(stored),
        size(f"{kind.names['distance_bias']}.weight", 1),
    )
    hidden, inner, blocks, heads = (
        value if section is None else section.integer(key, default=value)
        for key, value in zip(kind.keys, found, strict=True)
    )
    if hidden % heads:
        raise (section or config).error(kind.keys[3], f"{heads} does not divide {kind.keys[0]} ({hidden})")
    return Hearing(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        channels=size(f"{kind.names['conv_0']}.weight", 0),
        mels=size(kind.names["mean"], 0),
        distance=size(f"{kind.names['distance_bias']}.weight", 0) // 2,
        features=features,
    )


def _blocks(stored: Mapping[str, Tensor]) -> int:
    pattern = re.compile(re.escape(f"{_ROOT}encoder.encoders.") + r"(\d{1,4})\.")
    return 1 + max((int(m[1]) for n in stored if (m := pattern.match(n))), default=0)


def _expected(kind: Conformer, p: Hearing) -> Iterator[tuple[Role, str, tuple[int, ...]]]:
    """Role, name and shape of every tensor."""
    names: list[tuple[str, int | None, str]] = [(name, None, path) for name, path in kind.names.items()]
    names += [
        (name, layer, f"encoder.encoders.{layer}.{path}")
        for layer in range(p.num_hidden_layers)
        for name, path in kind.layer.items()
    ]
    shapes = _shapes(p)
    for name, layer, path in names:
        end = "" if name in _PLAIN else ".weight"
        yield hearing(name, layer), f"{_ROOT}{path}{end}", shapes[name]
        if name not in _NO_BIAS:
            yield hearing(name, layer, "bias"), f"{_ROOT}{path}.bias", shapes[name][:1]


def _shapes(p: Hearing) -> dict[str, tuple[int, ...]]:
    """The shape that a checkpoint stores each role in."""
    hidden, inner, channels = p.hidden_size, p.intermediate_size, p.channels
    bands = -(-p.mels // p.subsampling)
    norms = ("ffn_in_norm", "attn_norm", "conv_norm", "ffn_out_norm", "norm")
    return {
        "mean": (p.mels,),
        "inverse_std": (p.mels,),
        "conv_0": (channels, 1, 3, 3),
        "conv_1": (channels, 1, 3, 3),
        "mix_1": (channels, channels, 1, 1),
        "conv_2": (channels, 1, 3, 3),
        "mix_2": (channels, channels, 1, 1),
        "subsampled": (hidden, channels * bands),
        "distance_bias": (2 * p.distance, p.num_attention_heads),
        **dict.fromkeys(norms, (hidden,)),
        **dict.fromkeys(("ffn_in_up", "ffn_out_up"), (2 * inner, hidden)),
        **dict.fromkeys(("ffn_in_down", "ffn_out_down"), (hidden, inner)),
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (hidden, hidden)),
        "conv_in": (2 * hidden, hidden, 1),
        "conv_first": (1, hidden, 1),
        "conv_second": (1, hidden, 1),
        "conv_causal": (hidden, 1, 3),
        "conv_mix": (hidden, hidden, 1),
        "conv_out": (hidden, hidden, 1),
        **dict.fromkeys(("speech_in", "vision_in"), (p.features, hidden)),
        **dict.fromkeys(("speech_out", "vision_out"), (p.features, p.features)),
    }
