"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: RMSNorm, fused qkv and gate/up matrices, SwiGLU, no biases.

Queries, keys and values may also be stored apart, which llama.cpp reads, too; so may gate and up rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.architectures.architecture import Architecture, Gguf, Layout, Mlx
from phiconv.architectures.common import hyperparameters, swiglu_decoder

if TYPE_CHECKING:
    from phiconv.architectures.config import Config
    from phiconv.ir.model import Hyperparameters

__all__ = ["PHI3"]


def parse(config: Config) -> Hyperparameters:
    """Validates config.json of a ``Phi3ForCausalLM``."""
    config.choice("hidden_act", ("silu", "swish"), "silu")
    return hyperparameters(
        config, rope={"original_context": 4096}, sliding_window=config.optional_integer("sliding_window")
    )


PHI3 = Architecture(
    name="phi3",
    classes=("Phi3ForCausalLM",),
    title="Phi-3 and Phi-3.5 mini and medium, Phi-4, Phi-4-reasoning, Phi-4-mini",
    parse=parse,
    forward=swiglu_decoder,
    names={
        "token_embedding": "model.embed_tokens",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.qkv_proj",
        "attn_k": "self_attn.qkv_proj",
        "attn_v": "self_attn.qkv_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_up_proj",
        "ffn_up": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
        "output_norm": "model.norm",
        "output": "lm_head",
    },
    windowed=True,
    byte_level="GPT2Tokenizer",
    layouts=(
        Layout({"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}),
        Layout({"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}),
    ),
    gguf=Gguf(
        "phi3",
        keys=(
            "context_length rope.scaling.original_context_length embedding_length feed_forward_length "
            "block_count attention.head_count attention.head_count_kv attention.layer_norm_rms_epsilon "
            "rope.dimension_count rope.freq_base attention.sliding_window attention.key_length? "
            "attention.value_length?"
        ).split(),
    ),
    mlx=Mlx(
        order="attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down attn_norm ffn_norm".split(),
        keys=("partial_rotary_factor", "rms_norm_eps", "original_max_position_embeddings", "rope_scaling"),
    ),
)
