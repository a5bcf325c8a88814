"""What families share: most of their config.json, and the decoder of Phi-3, Llama and their kin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiconv.architectures.rope import parse_rope
from phiconv.forward.ops import Attention
from phiconv.ir.model import Hyperparameters, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.architectures.config import Config
    from phiconv.forward.ops import Ops, R, V

__all__ = ["hyperparameters", "swiglu_decoder"]


def hyperparameters(config: Config, *, rope: Mapping[str, Any] | None = None, **own: Any) -> Hyperparameters:
    """The numbers that most families have under the same keys.

    Args:
        config: config.json as a whole.
        rope: The family's own arguments of `parse_rope`.
        own: Hyperparameters that the family finds otherwise; ``head_dim`` counts where there is no key.
    """
    heads, kv_heads, head_dim = _attention_sizes(config, own.pop("head_dim", None))
    if "intermediate_size" not in own:
        own["intermediate_size"] = config.integer("intermediate_size")
    if "norm_epsilon" not in own:
        own["norm_epsilon"] = config.number("rms_norm_eps", default=1e-5)
    return Hyperparameters(
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        num_hidden_layers=config.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=config.integer("max_position_embeddings"),
        rope=parse_rope(config, head_dim, **(rope or {})),
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=False),
        **own,
    )


def _attention_sizes(config: Config, usual: int | None) -> tuple[int, int, int]:
    """Heads, key/value heads and dimensions of a head, checked against each other.

    ``num_key_value_heads`` null means as many as heads (phi-1); ``head_dim`` is a key of its own in
    Phi-tiny-MoE. Where it is missing, ``usual`` counts, or else the heads share ``hidden_size``.
    """
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"{kv_heads} does not divide num_attention_heads ({heads})")
    head_dim = config.optional_integer("head_dim") or usual
    if head_dim is None:
        if hidden % heads:
            raise config.error("num_attention_heads", f"{heads} does not divide hidden_size ({hidden})")
        head_dim = hidden // heads
    return heads, kv_heads, head_dim


def swiglu_decoder(ops: Ops[V, R], hp: Hyperparameters, *, head_norms: bool = False) -> R:
    """RMSNorm, attention, RMSNorm, SwiGLU, layer by layer, each pair added to what comes in.

    Args:
        ops: Who computes it.
        hp: The numbers.
        head_norms: Queries and keys go through a norm of each head.
    """
    attention = Attention.of(hp, normed=head_norms)
    x = ops.embed(Role("token_embedding"))
    for n in range(hp.num_hidden_layers):
        y = ops.attention(ops.rms_norm(x, Role("attn_norm", n), hp.norm_epsilon), n, attention)
        x = ops.add(x, ops.linear(y, Role("attn_output", n)))
        y = ops.rms_norm(x, Role("ffn_norm", n), hp.norm_epsilon)
        y = ops.gated(y, Role("ffn_gate", n), Role("ffn_up", n), "silu")
        x = ops.add(x, ops.linear(y, Role("ffn_down", n)))
    return ops.logits(ops.rms_norm(x, Role("output_norm"), hp.norm_epsilon), Role("output"))
