"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: RMSNorm, fused qkv and gate/up matrices, SwiGLU, no biases.

Queries, keys and values may also be stored apart, which llama.cpp reads, too; so may gate and up rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.architectures.common import attention_sizes
from phiconv.architectures.rope import parse_rope
from phiconv.architectures.weights import Piece, Weight, plain
from phiconv.forward.ops import Attention
from phiconv.ir.model import Hyperparameters, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from phiconv.architectures.config import Config
    from phiconv.forward.ops import Ops, R, V

__all__ = ["forward", "parse", "weights"]


def parse(config: Config) -> Hyperparameters:
    """Validates config.json of a ``Phi3ForCausalLM``."""
    config.choice("hidden_act", ("silu", "swish"), "silu")
    heads, kv_heads, head_dim = attention_sizes(config)
    return Hyperparameters(
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        intermediate_size=config.integer("intermediate_size"),
        num_hidden_layers=config.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=config.integer("max_position_embeddings"),
        norm_epsilon=config.number("rms_norm_eps", default=1e-5),
        rope=parse_rope(config, head_dim, original_context=4096),
        sliding_window=config.optional_integer("sliding_window"),
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=False),
    )


def weights(hp: Hyperparameters, stored: Collection[str]) -> Iterator[Weight]:
    """The table of the checkpoint; fused matrices hold q, k, v rows and gate, up rows in this order."""
    hidden, inter = hp.hidden_size, hp.intermediate_size
    q, kv = hp.num_attention_heads * hp.head_dim, hp.num_key_value_heads * hp.head_dim
    yield plain(Role("token_embedding"), "model.embed_tokens.weight", hp.vocab_size, hidden)
    for n in range(hp.num_hidden_layers):
        layer = f"model.layers.{n}"
        yield plain(Role("attn_norm", n), f"{layer}.input_layernorm.weight", hidden)
        qkv = {"attn_q": q, "attn_k": kv, "attn_v": kv}
        if f"{layer}.self_attn.q_proj.weight" in stored:
            for role, rows in qkv.items():
                name = f"{layer}.self_attn.{role.removeprefix('attn_')}_proj.weight"
                yield plain(Role(role, n), name, rows, hidden)
        else:
            yield from _fused(qkv, n, f"{layer}.self_attn.qkv_proj.weight", hidden)
        yield plain(Role("attn_output", n), f"{layer}.self_attn.o_proj.weight", hidden, q)
        yield plain(Role("ffn_norm", n), f"{layer}.post_attention_layernorm.weight", hidden)
        if f"{layer}.mlp.gate_proj.weight" in stored:
            yield plain(Role("ffn_gate", n), f"{layer}.mlp.gate_proj.weight", inter, hidden)
            yield plain(Role("ffn_up", n), f"{layer}.mlp.up_proj.weight", inter, hidden)
        else:
            gate_up = {"ffn_gate": inter, "ffn_up": inter}
            yield from _fused(gate_up, n, f"{layer}.mlp.gate_up_proj.weight", hidden)
        yield plain(Role("ffn_down", n), f"{layer}.mlp.down_proj.weight", hidden, inter)
    yield plain(Role("output_norm"), "model.norm.weight", hidden)
    if not hp.tie_word_embeddings:
        yield plain(Role("output"), "lm_head.weight", hp.vocab_size, hidden)


def _fused(rows: dict[str, int], layer: int, name: str, columns: int) -> Iterator[Weight]:
    """Weights that follow each other in one stored matrix."""
    shape, start = (sum(rows.values()), columns), 0
    for role, count in rows.items():
        yield Weight(Role(role, layer), (count, columns), (Piece(name, shape, start, start + count),))
        start += count


def forward(ops: Ops[V, R], hp: Hyperparameters) -> R:
    """The decoder."""
    x = ops.embed(Role("token_embedding"))
    for n in range(hp.num_hidden_layers):
        y = ops.attention(ops.rms_norm(x, Role("attn_norm", n), hp.norm_epsilon), n, Attention.of(hp))
        x = ops.add(x, ops.linear(y, Role("attn_output", n)))
        y = ops.rms_norm(x, Role("ffn_norm", n), hp.norm_epsilon)
        y = ops.gated(y, Role("ffn_gate", n), Role("ffn_up", n), "silu")
        x = ops.add(x, ops.linear(y, Role("ffn_down", n)))
    return ops.logits(ops.rms_norm(x, Role("output_norm"), hp.norm_epsilon), Role("output"))
