"""Qwen3: Llama's decoder, with a norm of each head's queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.architectures.architecture import Architecture, Gguf, Mlx
from phiconv.architectures.common import hyperparameters, swiglu_decoder
from phiconv.architectures.llama import NAMES
from phiconv.architectures.qwen2 import check_layers

if TYPE_CHECKING:
    from phiconv.architectures.config import Config
    from phiconv.forward.ops import Ops, R, V
    from phiconv.ir.model import Hyperparameters

__all__ = ["QWEN3"]


def parse(config: Config) -> Hyperparameters:
    """Validates config.json of a ``Qwen3ForCausalLM``."""
    config.choice("hidden_act", ("silu",), "silu")
    check_layers(config)
    return hyperparameters(
        config,
        rope={"types": ("default",), "whole_heads": "qwen3"},
        norm_epsilon=config.number("rms_norm_eps", default=1e-6),
        head_dim=128,
    )


def forward(ops: Ops[V, R], hp: Hyperparameters) -> R:
    """The decoder."""
    return swiglu_decoder(ops, hp, head_norms=True)


QWEN3 = Architecture(
    name="qwen3",
    classes=("Qwen3ForCausalLM",),
    title="Qwen3",
    parse=parse,
    forward=forward,
    names=NAMES | {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    bias_keys={"attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output")},
    gguf=Gguf(
        "qwen3",
        keys=(
            "block_count context_length embedding_length feed_forward_length attention.head_count "
            "attention.head_count_kv rope.freq_base attention.layer_norm_rms_epsilon attention.key_length "
            "attention.value_length"
        ).split(),
        bias_keys=False,
    ),
    mlx=Mlx(
        order=(
            "attn_q attn_k attn_v attn_output attn_q_norm attn_k_norm "
            "ffn_gate ffn_down ffn_up attn_norm ffn_norm"
        ).split(),
        keys=("rms_norm_eps", "head_dim", "rope_scaling"),
    ),
)
