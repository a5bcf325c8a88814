"""Rotary embeddings from either style of config.json.

Hub style: ``rope_theta``, ``partial_rotary_factor`` and ``rope_scaling: {type | rope_type, ...} | null`` at
the top level. transformers 5 style: everything inside ``rope_parameters``. "su" is the first name of
"longrope".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from phiconv.ir.rope import Rope, RopeScaling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.architectures.config import Config
    from phiconv.ir.rope import Scaling

__all__ = ["parse_rope"]

_TYPES = ("default", "longrope", "su")
"""The types that the Phi models have."""


def parse_rope(
    config: Config,
    head_dim: int,
    *,
    partial_rotary_factor: float = 1.0,
    original_context: int | None = None,
    types: Sequence[str] = _TYPES,
) -> Rope:
    """Reads the rotary embedding of a model.

    Args:
        config: config.json as a whole.
        head_dim: Dimensions of a head.
        partial_rotary_factor: The architecture's default for the part of a head that is rotated.
        original_context: The architecture's default for ``original_max_position_embeddings``.
        types: The values of ``rope_type`` that the architecture may have.

    Raises:
        ConfigError: An unknown rope type, a missing key, or factor lists of the wrong length.
    """
    context = config.integer("max_position_embeddings")
    rope = config.section("rope_parameters") or config.section("rope_scaling")
    inner = rope or type(config)({}, config.path)
    kind = inner.choice(inner.get("rope_type", "type")[0], tuple(types), "default")
    factor = inner.number(
        "partial_rotary_factor", default=config.number("partial_rotary_factor", default=partial_rotary_factor)
    )
    dimensions = int(head_dim * factor)
    if dimensions % 2 or not 0 < dimensions <= head_dim:
        raise config.error(
            "partial_rotary_factor",
            f"rotates {dimensions} of {head_dim} dimensions of a head; it must be an even number of them",
        )
    theta = inner.number("rope_theta", default=config.number("rope_theta", default=10000.0))
    key = "original_max_position_embeddings"
    # At least 2: LongRoPE divides by its logarithm.
    outer = config.integer(key, default=original_context or context, least=2)
    original = inner.integer(key, default=outer, least=2)
    if kind == "default":
        if inner.get("long_factor", "short_factor")[1] is not None:
            raise inner.error("rope_type", 'no "longrope", although there are long and short factors')
        return Rope(dimensions, theta, original)
    if kind not in _TYPES:
        return Rope(dimensions, theta, original, scaling=_scaling(inner, cast("Scaling", kind)))
    # A factor of its own replaces the ratio of the contexts, as in transformers.
    scale = inner.number("factor", default=context / original)
    mscale = inner.number("attention_factor", default=Rope.longrope_mscale(scale, original))
    return Rope(
        dimensions,
        theta,
        original,
        short_factor=inner.numbers("short_factor", dimensions // 2),
        long_factor=inner.numbers("long_factor", dimensions // 2),
        short_mscale=inner.number("short_mscale", default=mscale),
        long_mscale=inner.number("long_mscale", default=mscale),
    )


def _scaling(rope: Config, kind: Scaling) -> RopeScaling:
    """Frequencies that are scaled otherwise than by LongRoPE; all keys must be there."""
    factor = rope.number("factor")
    if kind == "linear":
        return RopeScaling(kind, factor)
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", f"must be more than low_freq_factor ({low}), not {high}")
    return RopeScaling(kind, factor, low, high, rope.integer("original_max_position_embeddings"))
