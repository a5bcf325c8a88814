"""phi-1, phi-1.5, phi-2: LayerNorm, parallel attention and GELU blocks, partial rotary, biases everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.architectures.common import attention_sizes
from phiconv.architectures.rope import parse_rope
from phiconv.architectures.weights import plain
from phiconv.errors import UnsupportedModelError
from phiconv.forward.ops import Attention
from phiconv.ir.model import Hyperparameters, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from phiconv.architectures.config import Config
    from phiconv.architectures.weights import Weight
    from phiconv.forward.ops import Ops, R, V

__all__ = ["forward", "parse", "weights"]


def parse(config: Config) -> Hyperparameters:
    """Validates config.json of a ``PhiForCausalLM``."""
    config.choice("hidden_act", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
    if config.boolean("qk_layernorm", default=False):
        raise UnsupportedModelError(
            "normalised queries and keys are not supported", path=config.path, at="key qk_layernorm"
        )
    heads, kv_heads, head_dim = attention_sizes(config)
    hidden_size = config.integer("hidden_size")
    return Hyperparameters(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size", default=4 * hidden_size),
        num_hidden_layers=config.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=config.integer("max_position_embeddings"),
        norm_epsilon=config.number("layer_norm_eps", "layer_norm_epsilon", default=1e-5),
        rope=parse_rope(config, head_dim, partial_rotary_factor=0.5),
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=False),
    )


def weights(hp: Hyperparameters, stored: Collection[str]) -> Iterator[Weight]:  # noqa: ARG001
    """The table of the checkpoint; every matrix has a bias."""
    hidden, q, kv = hp.hidden_size, hp.num_attention_heads * hp.head_dim, hp.num_key_value_heads * hp.head_dim
    yield plain(Role("token_embedding"), "model.embed_tokens.weight", hp.vocab_size, hidden)
    for n in range(hp.num_hidden_layers):
        layer = f"model.layers.{n}"
        yield from _with_bias(Role("attn_norm", n), f"{layer}.input_layernorm", hidden)
        yield from _with_bias(Role("attn_q", n), f"{layer}.self_attn.q_proj", q, hidden)
        yield from _with_bias(Role("attn_k", n), f"{layer}.self_attn.k_proj", kv, hidden)
        yield from _with_bias(Role("attn_v", n), f"{layer}.self_attn.v_proj", kv, hidden)
        yield from _with_bias(Role("attn_output", n), f"{layer}.self_attn.dense", hidden, q)
        yield from _with_bias(Role("ffn_up", n), f"{layer}.mlp.fc1", hp.intermediate_size, hidden)
        yield from _with_bias(Role("ffn_down", n), f"{layer}.mlp.fc2", hidden, hp.intermediate_size)
    yield from _with_bias(Role("output_norm"), "model.final_layernorm", hidden)
    if not hp.tie_word_embeddings:
        yield plain(Role("output"), "lm_head.weight", hp.vocab_size, hidden)
    yield plain(Role("output", part="bias"), "lm_head.bias", hp.vocab_size)


def _with_bias(role: Role, name: str, *shape: int) -> Iterator[Weight]:
    yield plain(role, f"{name}.weight", *shape)
    yield plain(role._replace(part="bias"), f"{name}.bias", shape[0])


def forward(ops: Ops[V, R], hp: Hyperparameters) -> R:
    """The decoder: attention and feed-forward read the same normalised input, and both are added."""
    x = ops.embed(Role("token_embedding"))
    for n in range(hp.num_hidden_layers):
        y = ops.layer_norm(x, Role("attn_norm", n), hp.norm_epsilon)
        attended = ops.linear(ops.attention(y, n, Attention.of(hp)), Role("attn_output", n))
        inner = ops.activate(ops.linear(y, Role("ffn_up", n)), "gelu_tanh")
        x = ops.add(x, ops.add(attended, ops.linear(inner, Role("ffn_down", n))))
    return ops.logits(ops.layer_norm(x, Role("output_norm"), hp.norm_epsilon), Role("output"))
