"""What a tokenizer is, whatever files it came from: what a runtime needs to tokenize like it.

There are two kinds: SentencePiece's BPE over characters, with bytes to fall back to (Phi-3, Llama 2), and BPE
over bytes inside words that a regular expression finds (Phi-1, Phi-2, Phi-4, Llama 3, Qwen, SmolLM).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from phiconv.brief import Brief

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "GPT2_SPLIT",
    "ROLES",
    "SMOLLM_SPLIT",
    "SPLITS",
    "AddedToken",
    "Kind",
    "Metaspace",
    "SentencePieceOptions",
    "Split",
    "SplitName",
    "TokenType",
    "Tokenizer",
    "byte_alphabet",
]

Kind: TypeAlias = Literal["sentencepiece", "byte-bpe"]
SplitName: TypeAlias = Literal["gpt2", "cl100k", "o200k", "qwen2", "smollm"]

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""What a special token can be for."""


GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# GPT-2's words between digits, each of which is cut out first: spaces before one are at the end of a text.
SMOLLM_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"

_WORD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"


def _splits() -> dict[str, SplitName]:
    """The known splits, each in the spellings that files have: an inline flag, or both cases of a letter."""
    known: dict[str, SplitName] = {GPT2_SPLIT: "gpt2", SMOLLM_SPLIT: "smollm"}
    for tail in ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"):
        words = rf"{tail}|{_WORD}\p{{L}}+"
        known[words + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES] = "cl100k"
        known[words + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES] = "qwen2"
        words = f"{_WORD}{_UPPER}*{_LOWER}+{tail}?|{_WORD}{_UPPER}+{_LOWER}*{tail}?"
        known[words + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES] = "o200k"
    return known


SPLITS = _splits()
"""The regular expression of each known split, the usual spelling first, and its name."""


def byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary, as GPT-2 has it.

    Printable characters of Latin-1 stand for themselves, the other bytes are numbered from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + n) for n, b in enumerate(others)}


class TokenType(IntEnum):
    """What a token is for, with the numbers of SentencePiece and of GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, repr=False)
class AddedToken(Brief):
    """A token that is found in the text as a whole, before the rest of the text is tokenized.

    Attributes:
        special: Not part of the text that people read; a decoder can leave it out.
        lstrip, rstrip: It swallows the white space before, or after, it.
        normalized: It is looked for in the normalized text.
        single_word: It is found only between characters that are no letters.
    """

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Split(Brief):
    """How a byte-level tokenizer cuts the text into words, inside of which it merges.

    Attributes:
        name: Which known split it is: GPT-2's, SmolLM's, Qwen2's, or that of tiktoken's cl100k (Llama 3's
            too) or its o200k; None for another.
        text: What the file says, for messages: the regular expression, or the pre-tokenizer's settings.
    """

    name: SplitName | None
    text: str


@dataclass(frozen=True, slots=True, repr=False)
class Metaspace(Brief):
    """How the `tokenizers` library's pre-tokenizer of this name treats spaces.

    Attributes:
        scheme: Whether every text between added tokens gets a space in front, or the one with which all
            begins; never where a space is there already.
        split: A space begins a word, so that no token has two of them.
    """

    scheme: Literal["always", "first", "never"]
    split: bool


@dataclass(frozen=True, slots=True, repr=False)
class SentencePieceOptions(Brief):
    """What SentencePiece does with the text before it merges.

    Attributes:
        add_dummy_prefix: The text gets a space in front.
        remove_extra_whitespaces: Runs of spaces become one.
        byte_fallback: A character without a piece becomes its UTF-8 bytes.
        charsmap: SentencePiece's compiled character replacements; empty where characters stay as they are.
        metaspace: Where it is not SentencePiece's rule by which a text gets a space in front.
    """

    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    byte_fallback: bool = True
    charsmap: bytes = b""
    metaspace: Metaspace | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Tokenizer(Brief):
    """The vocabulary and the rules of a tokenizer.

    Attributes:
        kind: Which algorithm.
        tokens: Text by id, None where the ids have a gap. SentencePiece writes a space as U+2581; byte-level
            tokenizers write each byte as one character, GPT-2's way. Added tokens are plain text.
        types: Type by id, UNUSED in a gap; CONTROL or USER_DEFINED for added tokens.
        scores: Score by id, the highest merges first; empty for a byte-level tokenizer.
        merges: Pairs of tokens in the order in which they merge; may be empty for SentencePiece.
        added: Added tokens by id; they stand in ``tokens`` too.
        special_ids: Id by role (see `ROLES`; also "eot", end of a turn), in the order they were found.
        eos_ids: The ids that end a generation, as the generation settings say, or as the runtime finds them
            in a file without such settings; empty if nothing says it.
        add_special: Whether a token is put before ("bos"), between ("sep") or after ("eos") the text, by
            role; a role that no file mentions is not there.
        chat_templates: Jinja text by name, the usual one under "default". They are data, never rendered.
        split: Of a byte-level tokenizer.
        sentencepiece: Of a SentencePiece tokenizer.
        nfc: Whether a byte-level tokenizer composes characters first (Unicode's form NFC).
        ignore_merges: Whether a word that is a token of a byte-level vocabulary is that token, whatever the
            merges would make of it.
        add_prefix_space: What tokenizer_config.json says of a space in front, for runtimes that are told it;
            None if it says nothing. No ids depend on it: the split and SentencePiece's options are known.
    """

    kind: Kind
    tokens: tuple[str | None, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[tuple[str, str], ...] = ()
    added: tuple[AddedToken, ...] = ()
    special_ids: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    eos_ids: tuple[int, ...] = ()
    add_special: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    chat_templates: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    split: Split | None = None
    sentencepiece: SentencePieceOptions | None = None
    nfc: bool = False
    ignore_merges: bool = False
    add_prefix_space: bool | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def add_bos(self) -> bool | None:
        """Whether the text gets a bos token in front; None if no file says."""
        return self.add_special.get("bos")

    @property
    def add_eos(self) -> bool | None:
        """Whether the text gets an eos token at its end; None if no file says."""
        return self.add_special.get("eos")
