"""What the decoders of the family share when their config.json is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiconv.architectures.config import Config

__all__ = ["attention_sizes"]


def attention_sizes(config: Config) -> tuple[int, int, int]:
    """Heads, key/value heads and dimensions of a head, checked against each other.

    ``num_key_value_heads`` null means as many as heads (phi-1); ``head_dim`` is a key of its own in
    Phi-tiny-MoE.
    """
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"{kv_heads} does not divide num_attention_heads ({heads})")
    head_dim = config.optional_integer("head_dim")
    if head_dim is None:
        if hidden % heads:
            raise config.error("num_attention_heads", f"{heads} does not divide hidden_size ({hidden})")
        head_dim = hidden // heads
    return heads, kv_heads, head_dim
