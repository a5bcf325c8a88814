"""Phi-3.5-MoE, Phi-mini-MoE and Phi-tiny-MoE.

LayerNorm (under the key ``rms_norm_eps``), biases in attention and head, experts chosen by a sparse mixer.
Experts are stored apart under Mixtral's names (``w1`` gate, ``w2`` down, ``w3`` up), stacked as
transformers 5 holds them in memory (``mlp.experts.gate_up_proj``, gate rows first), or stacked by matrix
under mlx-lm's names (``switch_mlp``); a GGUF has them so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.architectures.common import attention_sizes
from phiconv.architectures.rope import parse_rope
from phiconv.architectures.weights import Piece, Weight, plain
from phiconv.forward.ops import Attention, MixtureOfExperts
from phiconv.ir.model import Experts, Hyperparameters, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from phiconv.architectures.config import Config
    from phiconv.forward.ops import Ops, R, V

__all__ = ["forward", "parse", "weights"]


def parse(config: Config) -> Hyperparameters:
    """Validates config.json of a ``PhiMoEForCausalLM`` (``PhimoeForCausalLM`` in transformers)."""
    config.choice("hidden_act", ("silu", "swish"), "silu")
    heads, kv_heads, head_dim = attention_sizes(config)
    experts = Experts(
        config.integer("num_local_experts"),
        config.integer("num_experts_per_tok"),
        config.number("router_jitter_noise", default=0.01, zero=True),
    )
    if experts.used > experts.count:
        raise config.error("num_experts_per_tok", f"{experts.used} of {experts.count} experts")
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
        rope=parse_rope(config, head_dim),
        sliding_window=config.optional_integer("sliding_window"),
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=False),
        experts=experts,
    )


def weights(hp: Hyperparameters, stored: Collection[str]) -> Iterator[Weight]:
    """The table of the checkpoint, for the layout that ``stored`` names show."""
    hidden, q, kv = hp.hidden_size, hp.num_attention_heads * hp.head_dim, hp.num_key_value_heads * hp.head_dim
    yield plain(Role("token_embedding"), "model.embed_tokens.weight", hp.vocab_size, hidden)
    for n in range(hp.num_hidden_layers):
        layer = f"model.layers.{n}"
        yield from _norm(Role("attn_norm", n), f"{layer}.input_layernorm", hidden)
        for role, name, rows, columns in (
            ("attn_q", "q_proj", q, hidden),
            ("attn_k", "k_proj", kv, hidden),
            ("attn_v", "v_proj", kv, hidden),
            ("attn_output", "o_proj", hidden, q),
        ):
            yield plain(Role(role, n), f"{layer}.self_attn.{name}.weight", rows, columns)
            yield plain(Role(role, n, "bias"), f"{layer}.self_attn.{name}.bias", rows, optional=True)
        yield from _norm(Role("ffn_norm", n), f"{layer}.post_attention_layernorm", hidden)
        if f"{layer}.mlp.router.weight" in stored:
            yield from _stacked_experts(hp, n, layer)
        elif f"{layer}.block_sparse_moe.switch_mlp.gate_proj.weight" in stored:
            yield from _switch_experts(hp, n, layer)
        else:
            yield from _separate_experts(hp, n, layer)
    yield from _norm(Role("output_norm"), "model.norm", hidden)
    if not hp.tie_word_embeddings:
        yield plain(Role("output"), "lm_head.weight", hp.vocab_size, hidden)
    yield plain(Role("output", part="bias"), "lm_head.bias", hp.vocab_size, optional=True)


def _norm(role: Role, name: str, hidden: int) -> Iterator[Weight]:
    yield plain(role, f"{name}.weight", hidden)
    yield plain(role._replace(part="bias"), f"{name}.bias", hidden)


def _separate_experts(hp: Hyperparameters, n: int, layer: str) -> Iterator[Weight]:
    """Mixtral's names: one tensor for each matrix of each expert."""
    count, hidden, inter = _sizes(hp)
    block = f"{layer}.block_sparse_moe"
    yield plain(Role("router", n), f"{block}.gate.weight", count, hidden)
    for role, name, rows, columns in (
        ("experts_gate", "w1", inter, hidden),
        ("experts_down", "w2", hidden, inter),
        ("experts_up", "w3", inter, hidden),
    ):
        pieces = [Piece(f"{block}.experts.{e}.{name}.weight", (rows, columns), 0, rows) for e in range(count)]
        yield Weight(Role(role, n), (count, rows, columns), tuple(pieces))


def _stacked_experts(hp: Hyperparameters, n: int, layer: str) -> Iterator[Weight]:
    """The names of transformers 5: one tensor for all experts, gate and up rows joined."""
    count, hidden, inter = _sizes(hp)
    yield plain(Role("router", n), f"{layer}.mlp.router.weight", count, hidden)
    name, shape = f"{layer}.mlp.experts.gate_up_proj", (count, 2 * inter, hidden)
    for role, offset in (("experts_gate", 0), ("experts_up", inter)):
        starts = [e * 2 * inter + offset for e in range(count)]
        pieces = tuple(Piece(name, shape, start, start + inter) for start in starts)
        yield Weight(Role(role, n), (count, inter, hidden), pieces)
    yield plain(Role("experts_down", n), f"{layer}.mlp.experts.down_proj", count, hidden, inter)


def _switch_experts(hp: Hyperparameters, n: int, layer: str) -> Iterator[Weight]:
    """mlx-lm's names: one tensor for each matrix of all experts."""
    count, hidden, inter = _sizes(hp)
    block = f"{layer}.block_sparse_moe"
    yield plain(Role("router", n), f"{block}.gate.weight", count, hidden)
    for role, name, rows, columns in (
        ("experts_gate", "gate_proj", inter, hidden),
        ("experts_down", "down_proj", hidden, inter),
        ("experts_up", "up_proj", inter, hidden),
    ):
        yield plain(Role(role, n), f"{block}.switch_mlp.{name}.weight", count, rows, columns)


def _sizes(hp: Hyperparameters) -> tuple[int, int, int]:
    assert hp.experts is not None  # noqa: S101 - parse() always sets it
    return hp.experts.count, hp.hidden_size, hp.intermediate_size


def forward(ops: Ops[V, R], hp: Hyperparameters) -> R:
    """The decoder."""
    x = ops.embed(Role("token_embedding"))
    for n in range(hp.num_hidden_layers):
        y = ops.attention(ops.layer_norm(x, Role("attn_norm", n), hp.norm_epsilon), n, Attention.of(hp))
        x = ops.add(x, ops.linear(y, Role("attn_output", n)))
        y = ops.layer_norm(x, Role("ffn_norm", n), hp.norm_epsilon)
        x = ops.add(x, ops.moe(y, n, MixtureOfExperts.of(hp, "silu")))
    return ops.logits(ops.layer_norm(x, Role("output_norm"), hp.norm_epsilon), Role("output"))
