"""Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE: LayerNorm, GQA, two experts per token.

The experts are stored apart under Mixtral's names (``w1`` gate, ``w2`` down, ``w3`` up), stacked by matrix
under mlx-lm's names or OpenVINO's, or stacked as transformers 5 holds them in memory, gate rows first. Tools
that quantize a model which transformers 5 has loaded store them apart under names of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.architectures.architecture import Architecture, Gguf, Layout, Mlx
from phiconv.architectures.common import hyperparameters
from phiconv.forward.ops import Attention, MixtureOfExperts
from phiconv.ir.model import Experts, Hyperparameters, Role

if TYPE_CHECKING:
    from phiconv.architectures.config import Config
    from phiconv.forward.ops import Ops, R, V

__all__ = ["PHIMOE"]


def parse(config: Config) -> Hyperparameters:
    """Validates config.json of a ``PhiMoEForCausalLM`` (``PhimoeForCausalLM`` in transformers)."""
    config.choice("hidden_act", ("silu", "swish"), "silu")
    experts = Experts(
        config.integer("num_local_experts"),
        config.integer("num_experts_per_tok"),
        config.number("router_jitter_noise", default=0.01, zero=True),
    )
    if experts.used > experts.count:
        raise config.error("num_experts_per_tok", f"{experts.used} of {experts.count} experts")
    window = config.optional_integer("sliding_window")
    rope = {"theta": 1e6, "whole_heads": "phimoe", "mscales": True}
    return hyperparameters(config, rope=rope, sliding_window=window, experts=experts)


def forward(ops: Ops[V, R], hp: Hyperparameters) -> R:
    """The decoder."""
    x = ops.embed(Role("token_embedding"))
    for n in range(hp.num_hidden_layers):
        y = ops.attention(ops.layer_norm(x, Role("attn_norm", n), hp.norm_epsilon), n, Attention.of(hp))
        x = ops.add(x, ops.linear(y, Role("attn_output", n)))
        y = ops.layer_norm(x, Role("ffn_norm", n), hp.norm_epsilon)
        x = ops.add(x, ops.moe(y, n, MixtureOfExperts.of(hp, "silu")))
    return ops.logits(ops.layer_norm(x, Role("output_norm"), hp.norm_epsilon), Role("output"))


_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_STACKED = {
    "experts_gate": "block_sparse_moe.switch_mlp.gate_proj",
    "experts_up": "block_sparse_moe.switch_mlp.up_proj",
    "experts_down": "block_sparse_moe.switch_mlp.down_proj",
}
_TRANSFORMERS_5 = {
    "experts_gate": "mlp.experts.gate_up_proj",
    "experts_up": "mlp.experts.gate_up_proj",
    "experts_down": "mlp.experts.down_proj",
}
_SINGLE = {"experts_gate": "gate_proj", "experts_up": "up_proj", "experts_down": "down_proj"}
_BLOCKS = ("mlp", "block_sparse_moe")
"""Tools that quantize experts one by one, of those that transformers 5 stacks, call them so."""

_OPENVINO = {
    "experts_gate": "mlp.experts.gate_proj",
    "experts_up": "mlp.experts.up_proj",
    "experts_down": "mlp.experts.down_proj",
    "router": "mlp.router",
}

PHIMOE = Architecture(
    name="phimoe",
    classes=("PhiMoEForCausalLM", "PhimoeForCausalLM"),
    title="Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE",
    parse=parse,
    forward=forward,
    names={
        "token_embedding": "model.embed_tokens",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "router": "block_sparse_moe.gate",
        "experts_gate": "block_sparse_moe.experts.{e}.w1",
        "experts_down": "block_sparse_moe.experts.{e}.w2",
        "experts_up": "block_sparse_moe.experts.{e}.w3",
        "output_norm": "model.norm",
        "output": "lm_head",
    },
    biases=("attn_norm", "ffn_norm", "output_norm"),
    bias_keys={"attention_bias": _ATTENTION, "lm_head_bias": ("output",)},
    layouts=(
        Layout(_STACKED),
        Layout(_OPENVINO),
        Layout(_TRANSFORMERS_5, suffix=""),
        Layout({"router": "mlp.router"}),
        *(
            Layout({role: f"{block}.experts.{{e}}.{name}" for role, name in _SINGLE.items()})
            for block in _BLOCKS
        ),
    ),
    openvino=_OPENVINO,
    windowed=True,
    byte_level="GPT2Tokenizer",
    mscales=True,
    gguf=Gguf(
        "phimoe",
        keys=(
            "context_length rope.scaling.original_context_length embedding_length feed_forward_length "
            "block_count attention.head_count attention.head_count_kv attention.layer_norm_rms_epsilon "
            "rope.dimension_count rope.freq_base attention.sliding_window expert_used_count expert_count "
            "attention.key_length? attention.value_length?"
        ).split(),
        tied=False,
        note="llama.cpp computes phimoe with other norms and another router than the model was trained with",
    ),
    mlx=Mlx(
        order=(*_ATTENTION, "router", "experts_gate", "experts_up", "experts_down", "attn_norm", "ffn_norm"),
        keys=("rms_norm_eps", "original_max_position_embeddings", "rope_scaling"),
        names=_STACKED,
        biases=(*_ATTENTION, "output"),
        tied=False,
    ),
)
