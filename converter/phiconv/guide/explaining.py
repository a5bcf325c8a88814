"""What a name means: a recipe, a type of GGUF, or a word, in three sentences each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.guide.format_terms import FORMAT_TERMS
from phiconv.guide.qualities import quality_of
from phiconv.guide.recipe_texts import FLOATS, GGUF_RECIPES, GGUF_TYPES, NEED_IMATRIX, ORIGINS, STEMS, WORDS
from phiconv.guide.terms import TERMS
from phiconv.recipes import TARGETS, gguf
from phiconv.recipes.grammar import FLOAT_ALIASES
from phiconv.runtimes import RUNTIMES
from phiconv.spelling import did_you_mean, folded
from phiconv_formats.gguf.types import GGML_TYPES

if TYPE_CHECKING:
    from phiconv.recipes.grammar import Name

__all__ = ["Explanation", "explain"]

_WORDS = {**TERMS, **FORMAT_TERMS}
_ENCODINGS = {t.name.upper(): t.encoding for t in GGML_TYPES.values()}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a name means.

    Attributes:
        name: As phiconv spells it.
        kind: "recipe of mlx", "type of gguf", "float type" or "word".
        sentences: Three.
        origin: Where it comes from.
        where: What has to do with it.
    """

    name: str
    kind: str
    sentences: tuple[str, str, str]
    origin: str
    where: str


def explain(name: str) -> list[Explanation]:
    """All that a name means; case does not matter, and "_" and " " are "-".

    Raises:
        UsageError: It means nothing here.
    """
    found = [*_words(name), *_floats(name)]
    if not found:
        found = [e for target in TARGETS for e in _recipes(target, name)] + _types(name)
    if not found:
        known = [*_WORDS, *(n for t in TARGETS.values() for n in t.RECIPES.names()), *gguf.TYPES.names()]
        aliases = [alias for term in _WORDS.values() for alias in term.aliases]
        hint = did_you_mean(
            name, [*known, *aliases], "phiconv formats lists the recipes, docs/choose.md the words"
        )
        raise UsageError(f"nothing is called {name!r} here", hint=hint)
    return found


def _key(name: str) -> str:
    return folded(name).replace(" ", "-")


def _words(name: str) -> list[Explanation]:
    for word, term in _WORDS.items():
        if _key(name) in {_key(word), *map(_key, term.aliases)}:
            return [Explanation(word, "word", term.sentences, term.origin, term.where)]
    return []


def _floats(name: str) -> list[Explanation]:
    spelled = FLOAT_ALIASES.get(name.lower(), name.lower())
    if spelled not in FLOATS:
        return []
    whole = "As a recipe it quantizes nothing: every matrix is stored so."
    lossless = "A model that is stored so loses nothing; another one is rounded once."
    targets = [t for t, recipes in TARGETS.items() if recipes.TYPES.find(spelled)]
    return [
        Explanation(
            spelled,
            "float type",
            (FLOATS[spelled], whole, lossless),
            "IEEE 754; bf16: Google",
            ", ".join(targets),
        )
    ]


def _recipes(target: str, name: str) -> list[Explanation]:
    """The recipe of this name of a format, if there is one."""
    known = TARGETS[target]
    found = known.RECIPES.find(known.PRESETS.get(name.lower(), name))
    if found is None:
        return []
    first = GGUF_RECIPES[found.stem] if target == "gguf" else STEMS[target][found.stem]
    second = _main_type(found.stem) if target == "gguf" else _parts(found)
    origin, page = ORIGINS[target]
    sentences = (first, second, _cost(target, found.spelling))
    return [
        Explanation(found.spelling, f"recipe of {target}", sentences, f"{origin}, {page}", _where(target))
    ]


def _main_type(recipe: str) -> str:
    main = gguf.DEFAULTS[recipe]
    bits = _ENCODINGS[main].bits_per_weight
    return f"Its main type is {main}, with {bits:g} bits per weight, scales included."


def _parts(name: Name) -> str:
    """What follows the first part of a name."""
    parts = [WORDS[word] for word in name.variants if word]
    if name.group:
        parts.append(f"{name.group} neighbouring weights share a scale")
    elif "channel" in name.spelling:
        parts.append("a whole row shares a scale")
    if not parts:
        return "There are no variants of it."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _cost(target: str, recipe: str) -> str:
    """What was measured of a recipe, or how to find out."""
    quality = quality_of(target, recipe)
    if quality is not None:
        return (
            f"On small trained models predictions moved by {quality.divergence:.4f} (0 is not at all), and "
            f"the first choice stayed in {100 * quality.same_first:.0f} %."
        )
    if target == "gguf" and recipe.startswith("TQ"):
        return "Other models lose all sense with it."
    if target == "gguf" and recipe in NEED_IMATRIX:
        return "It needs an importance matrix, or --effort best; phiconv explain imatrix says what that is."
    return "phiconv plan shows its size, and phiconv evaluate what it costs."


def _types(name: str) -> list[Explanation]:
    """The type of GGUF of this name, if there is one."""
    found = gguf.TYPES.find(name)
    if found is None or found.stem not in GGUF_TYPES:
        return []
    encoding = _ENCODINGS[found.stem]
    size = f"A block has {encoding.block_size} weights, and a weight takes {encoding.bits_per_weight:g} bits."
    use = f"For single tensors write --tensor-type REGEX={found.stem}."
    origin, page = ORIGINS["gguf"]
    return [
        Explanation(
            found.stem,
            "type of gguf",
            (GGUF_TYPES[found.stem], size, use),
            f"{origin}, {page}",
            _where("gguf"),
        )
    ]


def _where(target: str) -> str:
    """The runtimes of a format."""
    reads = {"gptq": "compressed-tensors", "awq": "compressed-tensors"}.get(target, target)
    return ", ".join(r.title for r in RUNTIMES.values() if r.format == reads) or "transformers"
