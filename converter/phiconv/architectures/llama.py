"""Llama, and Phi-4 as it is shared in this shape: matrices apart, RMSNorm, SwiGLU, biases or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.architectures.architecture import Architecture, Gguf, Mlx
from phiconv.architectures.common import hyperparameters, swiglu_decoder

if TYPE_CHECKING:
    from phiconv.architectures.config import Config
    from phiconv.ir.model import Hyperparameters

__all__ = ["LLAMA", "MLX_ORDER", "NAMES"]


def parse(config: Config) -> Hyperparameters:
    """Validates config.json of a ``LlamaForCausalLM``."""
    config.choice("hidden_act", ("silu", "swish"), "silu")
    return hyperparameters(
        config,
        rope={"types": ("default", "linear", "llama3"), "whole_heads": "llama"},
        norm_epsilon=config.number("rms_norm_eps", default=1e-6),
    )


NAMES = {
    "token_embedding": "model.embed_tokens",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}

MLX_ORDER = "attn_q attn_k attn_v attn_output ffn_gate ffn_down ffn_up attn_norm ffn_norm".split()

LLAMA = Architecture(
    name="llama",
    classes=("LlamaForCausalLM",),
    title="Phi-4 in Llama's shape, and Llama",
    parse=parse,
    forward=swiglu_decoder,
    names=NAMES,
    bias_keys={
        "attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"),
        "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
    },
    gguf=Gguf(
        "llama",
        keys=(
            "block_count context_length embedding_length feed_forward_length attention.head_count "
            "attention.head_count_kv rope.scaling.type rope.scaling.factor rope.freq_base "
            "attention.layer_norm_rms_epsilon attention.key_length attention.value_length vocab_size "
            "rope.dimension_count"
        ).split(),
        neighbours=True,
        tokenizer_keys=("add_space_prefix",),
    ),
    mlx=Mlx(
        order=MLX_ORDER,
        keys=("rms_norm_eps", "head_dim", "rope_scaling", "attention_bias", "mlp_bias"),
    ),
)
