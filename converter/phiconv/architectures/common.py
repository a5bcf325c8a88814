"""What the decoders of all families share when their config.json is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiconv.architectures.rope import parse_rope
from phiconv.ir.model import Hyperparameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.architectures.config import Config

__all__ = ["hyperparameters"]


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
