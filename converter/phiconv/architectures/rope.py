"""Rotary embeddings from either style of config.json, or from both at once.

Hub style: ``rope_theta``, ``partial_rotary_factor`` and ``rope_scaling: {type | rope_type, ...} | null`` at
the top level. transformers 5 style: everything inside ``rope_parameters``. "su" is the first name of
"longrope".

Where both stand there, they mean what transformers 5 makes of them: a ``rope_scaling`` that says anything
replaces ``rope_parameters``, and a key inside counts before the same key at the top. What it cannot be asked,
since other programs go another way, is refused: two sections that do not agree, two names of one type, two
original contexts, a key that its type does not have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from phiconv.ir.rope import Rope, RopeScaling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.architectures.config import Config
    from phiconv.errors import ConfigError
    from phiconv.ir.rope import Scaling

__all__ = ["parse_rope"]

_TYPES = ("default", "longrope", "su")
"""The types that the Phi models have."""

_SECTIONS = ("rope_scaling", "rope_parameters")
"""The first that says anything counts."""

_ORIGINAL = "original_max_position_embeddings"
_MSCALES = ("short_mscale", "long_mscale")
_LONGROPE = ("short_factor", "long_factor", "factor", "attention_factor", _ORIGINAL)

# The keys of a section, by its type.
_EVERYWHERE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_KEYS = {
    "default": (_ORIGINAL,),
    "linear": ("factor", _ORIGINAL),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "longrope": _LONGROPE,
    "su": _LONGROPE,
}

_WITHOUT_EFFECT = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned")
"""Keys of "yarn", which nothing reads with another type: not transformers 5, and no runtime."""


def parse_rope(
    config: Config,
    head_dim: int,
    *,
    partial_rotary_factor: float = 1.0,
    original_context: int | None = None,
    types: Sequence[str] = _TYPES,
    theta: float = 10000.0,
    whole_heads: str = "",
    mscales: bool = False,
) -> Rope:
    """Reads the rotary embedding of a model.

    Args:
        config: config.json as a whole.
        head_dim: Dimensions of a head.
        partial_rotary_factor: The architecture's default for the part of a head that is rotated.
        original_context: The architecture's default for ``original_max_position_embeddings``, which makes the
            key at the top the only one that counts.
        types: The values of ``rope_type`` that the architecture may have.
        theta: The architecture's default for ``rope_theta``.
        whole_heads: The architecture's name, where it rotates whole heads whatever the factor says.
        mscales: LongRoPE's two factors of cos and sin are keys, and the original context stands beside them.

    Raises:
        ConfigError: An unknown rope type, a missing key, factor lists of the wrong length, or keys that
            contradict each other.
    """
    sections = [s for name in _SECTIONS if (s := config.section(name)) is not None and s.values]
    empty = type(config)({}, config.path)
    family = _Family(partial_rotary_factor, original_context, tuple(types), theta, whole_heads, mscales)
    ropes = [_Section(config, section, head_dim, family).rope() for section in sections or [empty]]
    if ropes[0] != ropes[-1]:
        raise config.error(
            "rope_scaling", "and rope_parameters say different things", "remove the one that is wrong"
        )
    if not all(math.isfinite(f) for long in (False, True) for f in ropes[0].inverse_frequencies(long=long)):
        raise config.error("rope_scaling", "makes frequencies that are no numbers of float32")
    return ropes[0]


@dataclass(frozen=True, slots=True)
class _Family:
    """What `parse_rope` is told of the architecture."""

    partial_rotary_factor: float
    original_context: int | None
    types: tuple[str, ...]
    theta: float
    whole_heads: str
    mscales: bool


@dataclass(frozen=True, slots=True)
class _Section:
    """One object of rotary keys, with the keys at the top behind it."""

    config: Config
    inner: Config
    head_dim: int
    family: _Family

    def rope(self) -> Rope:
        kind = self._kind()
        dimensions, theta = self._dimensions(), self._either("rope_theta", self.family.theta)
        if kind == "default":
            return Rope(dimensions, theta, self._unused_original())
        if kind not in _TYPES:
            return Rope(dimensions, theta, self._unused_original(), scaling=self._scaling(kind))
        original = self._original()
        # A factor of its own replaces the ratio of the contexts, as in transformers.
        scale = self.inner.number("factor", default=self._context() / original)
        mscale = self.inner.number("attention_factor", default=Rope.longrope_mscale(scale, original))
        short, long = (self.inner.number(k) if self.family.mscales else mscale for k in _MSCALES)
        return Rope(
            dimensions,
            theta,
            original,
            short_factor=self.inner.numbers("short_factor", dimensions // 2),
            long_factor=self.inner.numbers("long_factor", dimensions // 2),
            short_mscale=short,
            long_mscale=long,
        )

    def _kind(self) -> str:
        """The type, and nothing in the section that it does not have."""
        inner = self.inner
        names = {k: inner.values[k] for k in ("rope_type", "type") if inner.values.get(k) is not None}
        kinds = ["longrope" if value == "su" else value for value in names.values()]
        if len(kinds) > 1 and kinds[0] != kinds[1]:
            raise inner.error("rope_type", f"is {names['rope_type']!r}, and type is {names['type']!r}")
        kind = inner.choice(next(iter(names), "rope_type"), self.family.types, "default")
        known = (*_EVERYWHERE, *_WITHOUT_EFFECT, *_KEYS[kind], *(_MSCALES if self.family.mscales else ()))
        unknown = next((k for k, v in inner.values.items() if v is not None and k not in known), None)
        if unknown in {"long_factor", "short_factor"} and kind == "default":
            raise inner.error("rope_type", 'no "longrope", although there are long and short factors')
        if unknown is not None:
            raise inner.error(unknown, f"means nothing where rope_type is {kind!r}", "leave it out")
        if null := next((k for k in ("rope_type", "type") if k in inner.values and k not in names), ""):
            raise inner.error(null, "is null", "leave it out")
        return kind

    def _dimensions(self) -> int:
        """How much of a head is rotated."""
        factor = self._either("partial_rotary_factor", self.family.partial_rotary_factor)
        dimensions = int(self.head_dim * factor)
        key, whole = "partial_rotary_factor", self.family.whole_heads
        if dimensions % 2 or not 0 < dimensions <= self.head_dim:
            message = f"rotates {dimensions} of {self.head_dim} dimensions of a head"
            raise self.config.error(key, f"{message}; it must be an even number of them")
        if whole and dimensions != self.head_dim:
            raise self.config.error(key, f"a {whole} rotates whole heads")
        return dimensions

    def _either(self, key: str, default: float) -> float:
        """A number inside, or else at the top; null is none, and no default either."""
        for place in (self.inner, self.config):
            if key in place.values:
                if place.values[key] is None:
                    raise place.error(key, "is null", "leave it out, or give a number")
                return place.number(key)
        return default

    def _context(self) -> int:
        return self.config.integer("max_position_embeddings")

    def _unused_original(self) -> int:
        """The original context where nothing depends on it."""
        default = self.family.original_context or self._context()
        outer = self.config.integer(_ORIGINAL, default=default, least=2)
        return self.inner.integer(_ORIGINAL, default=outer, least=2)

    def _original(self) -> int:
        """The original context, the same inside and at the top; at least 2, since its logarithm divides."""
        inner = self.inner.optional_integer(_ORIGINAL, least=2)
        outer = self.config.optional_integer(_ORIGINAL, least=2)
        default = self.family.original_context or self._context()
        if inner is not None and inner != (outer or self.family.original_context or inner):
            raise self._two_contexts(f"at the top is {outer or f'missing, which means {default}'}")
        if self.family.mscales and inner is None and outer not in {None, default}:
            raise self._two_contexts(f"at the top is {outer}, where nobody looks in a phimoe")
        return outer or inner or default

    def _two_contexts(self, what: str) -> ConfigError:
        value: Any = self.inner.get(_ORIGINAL)[1]
        inside = "missing" if value is None else f"is {value}"
        return self.inner.error(_ORIGINAL, f"{inside}, and {_ORIGINAL} {what}", "give both the same value")

    def _scaling(self, kind: str) -> RopeScaling:
        """Frequencies that are scaled otherwise than by LongRoPE; all keys must be there."""
        rope, scaling = self.inner, cast("Scaling", kind)
        factor = rope.number("factor")
        if kind == "linear":
            return RopeScaling(scaling, factor)
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if high <= low:
            raise rope.error("high_freq_factor", f"must be more than low_freq_factor ({low}), not {high}")
        rope.integer(_ORIGINAL)
        return RopeScaling(scaling, factor, low, high, self._original())
