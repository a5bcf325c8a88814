"""How the names of recipes are built: one grammar for all targets, and its words are data.

A name is a stem, words that say which variant, and the size of groups: ``int4-rtn-asym-g64``. A target lists
its `Family` objects, gets names taken apart by them, and makes a scheme of the parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.ir import BF16, F16, F32
from phiconv.spelling import folded, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.ir import FloatEncoding

__all__ = ["FLOATS", "FLOAT_ALIASES", "Family", "Grammar", "Name"]

FLOATS: dict[str, FloatEncoding] = {"f16": F16, "bf16": BF16, "f32": F32}
"""The float types, by the names that recipes have for them."""

FLOAT_ALIASES = {"fp16": "f16", "fp32": "f32", "float16": "f16", "bfloat16": "bf16", "float32": "f32"}
"""What other tools call them."""


@dataclass(frozen=True, slots=True)
class Name:
    """A recipe's name, taken apart.

    Attributes:
        spelling: The name as plans and model cards have it.
        stem: What it begins with.
        variants: The word from each row of the family's variants; "" for none.
        group: Weights with one scale; 0 for a whole row, or where the family has no sizes.
    """

    spelling: str
    stem: str
    variants: tuple[str, ...]
    group: int


@dataclass(frozen=True, slots=True)
class Family:
    """Recipes whose names are built alike.

    Attributes:
        stems: What they begin with: one of these.
        variants: Rows of words; a name has one from each, or none where "" is in the row.
        groups: How many weights may share a scale, 0 for a whole row; the usual one first, which is left out.
    """

    stems: tuple[str, ...]
    variants: tuple[tuple[str, ...], ...] = ()
    groups: tuple[int, ...] = ()

    def __str__(self) -> str:
        sizes = "[-gN|-channel]" if 0 in self.groups else "[-gN]" if len(self.groups) > 1 else ""
        tail = "".join(map(_notation, self.variants)) + sizes
        if not tail:
            return ", ".join(self.stems)
        return (self.stems[0] if len(self.stems) == 1 else f"({'|'.join(self.stems)})") + tail

    def names(self) -> list[str]:
        """Every name, as it is spelled in plans."""
        endings = ["", *list(self._sizes())[2:]]  # the usual size is the first two
        return ["-".join(filter(None, words)) for words in product(self.stems, *self.variants, endings)]

    def read(self, name: str) -> Name | None:
        """Takes a name apart, with its words in any order; None if it is none of this family's."""
        text = f"{folded(name)}-"
        found = (self._read(stem, text) for stem in self.stems if text.startswith(f"{folded(stem)}-"))
        return next(filter(None, found), None)

    def _read(self, stem: str, text: str) -> Name | None:
        rest, sizes = text.removeprefix(folded(stem)), self._sizes()
        words = []
        for row in (*self.variants, tuple(sizes)):
            word = max((w for w in row if f"-{folded(w)}-" in rest), key=len, default="")
            if word not in row:
                return None
            rest = rest.replace(f"-{folded(word)}-", "-", 1) if word else rest
            words.append(word)
        *variants, ending = words
        spelled = ending if sizes[ending] != sizes[""] else ""
        name = "-".join(filter(None, (stem, *variants, spelled)))
        return Name(name, stem, tuple(variants), sizes[ending]) if rest == "-" else None

    def _sizes(self) -> dict[str, int]:
        """The endings of names and what they mean; the usual size has two, "" first."""
        usual = self.groups[0] if self.groups else 0
        return {"": usual} | {f"g{size}" if size else "channel": size for size in self.groups}


@dataclass(frozen=True, slots=True)
class Grammar:
    """The names of one target.

    Attributes:
        families: What they are built of; a name belongs to the first that it fits.
        aliases: Other names for some of them.
    """

    families: tuple[Family, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Every name, as it is spelled in plans."""
        return [name for family in self.families for name in family.names()]

    def read(self, name: str, refusal: str = "no tensor can be turned into") -> Name:
        """Takes a name apart. Case does not matter, and "_" is "-".

        Args:
            name: The name, or an alias.
            refusal: What an error says before the name.

        Raises:
            UsageError: There is no such name.
        """
        found = self.find(name)
        if found is None:
            near = self.near(name)
            hint = f"did you mean {near}? " if near else ""
            raise UsageError(f"{refusal} {name!r}", hint=f"{hint}phiconv formats lists them all")
        return found

    def find(self, name: str) -> Name | None:
        """As `read`, and None where there is no such name."""
        aliases = {folded(alias): meant for alias, meant in self.aliases.items()}
        meant = aliases.get(folded(name), name)
        found = next(filter(None, (family.read(meant) for family in self.families)), None)
        if found is not None:
            return found
        # Without any hyphen, as some write it: Q4KM.
        squeezed = [known for known in self.names() if _squeezed(known) == folded(name) != folded(known)]
        return self.find(squeezed[0]) if len(squeezed) == 1 else None

    def near(self, name: str) -> str:
        """The name that is most like one that there is not; "" if none is."""
        return nearest(name, (*self.names(), *self.aliases))


def _squeezed(text: str) -> str:
    return folded(text).replace("-", "")


def _notation(row: tuple[str, ...]) -> str:
    """A row of words as people write it: brackets where none of them is needed."""
    words = "|".join(f"-{word}" for word in row if word)
    if "" in row:
        return f"[{words}]"
    return f"({words})" if len(row) > 1 else words
