"""A tokenizer as GGUF metadata: the keys and values of llama.cpp's converter, in its order.

Three things are worth knowing about the runtime (llama.cpp's llama-vocab.cpp):

- The end of a generation is found by text: ``<|end|>``, ``<|im_end|>``, ``<|endoftext|>``, ``</s>`` and their
  like always end it, beside ``eos_token_id``. So the tokenizer's eos is written, as the converter does, and
  the list of generation_config.json is not: the ids in it that end a turn are among those tokens.
- A file cannot say that a token swallows the white space after it (``rstrip``). The runtime knows it of
  Phi-3, by the model's name; see `name_for_runtime`.
- The runtime's regular expression for "gpt-4o" knows no combining marks, so Phi-4-mini's ids differ from the
  Hugging Face library's for Hindi, Bengali, Tamil, Thai, Khmer and other scripts that need them.
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, TypeAlias

from gguf.constants import Keys

from phiconv.architectures import ARCHITECTURES
from phiconv.errors import ConfigError, printable
from phiconv.tokenization.tokenizer import TokenType
from phiconv_formats.gguf.names import ARCHITECTURE_OF_NAME
from phiconv_formats.gguf.values import GgufValue, ValueType
from phiconv_formats.tokenizers.limits import added_token_notes, odd_added_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from phiconv.architectures.architecture import Gguf
    from phiconv.tokenization.tokenizer import SplitName, Tokenizer

__all__ = [
    "ADD_KEYS",
    "ID_KEYS",
    "PRES_OF_WHOLE_WORDS",
    "PRE_OF_NFC",
    "SPLIT_OF_PRE",
    "name_for_runtime",
    "strips_after",
    "tokenizer_metadata",
    "tokenizer_notes",
]

KeyValue: TypeAlias = "tuple[str, GgufValue]"

_UNUSED_SCORE = -10000.0
_ADDED_SCORE = -1000.0

ID_KEYS = {
    "bos": Keys.Tokenizer.BOS_ID,
    "eos": Keys.Tokenizer.EOS_ID,
    "unk": Keys.Tokenizer.UNK_ID,
    "sep": Keys.Tokenizer.SEP_ID,
    "pad": Keys.Tokenizer.PAD_ID,
    "mask": Keys.Tokenizer.MASK_ID,
    "eot": Keys.Tokenizer.EOT_ID,
}
ADD_KEYS = {"bos": Keys.Tokenizer.ADD_BOS, "eos": Keys.Tokenizer.ADD_EOS, "sep": Keys.Tokenizer.ADD_SEP}

_PRE: Mapping[SplitName, str] = {
    "gpt2": "gpt-2",
    "cl100k": "dbrx",
    "o200k": "gpt-4o",
    "qwen2": "qwen2",
    "smollm": "smollm",
}
"""The runtime's name of a split; it applies the same regular expression."""

_WHOLE_WORDS: Mapping[SplitName, str] = {"cl100k": "llama-bpe"}
"""The runtime's name of a split whose words may be tokens that no merges make (``ignore_merges``)."""

_QWEN2_WITHOUT_NFC = "deepseek-r1-qwen"  # the same to the runtime, which never composes characters

PRES_OF_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")
"""The names, one of them in use and two older ones, with which words may be tokens that no merges make.

The runtime puts bos before the text, too, unless a file says otherwise.
"""

SPLIT_OF_PRE: Mapping[str, SplitName] = {
    **{pre: split for split, pre in _PRE.items()},
    **dict.fromkeys(PRES_OF_WHOLE_WORDS, "cl100k"),
    **{pre: split for a in ARCHITECTURES.values() for split, pre in a.gguf.pre.items()},
    _QWEN2_WITHOUT_NFC: "qwen2",
}
"""The split by the runtime's name of it."""

PRE_OF_NFC = "qwen2"
"""The name whose tokenizers compose characters. The runtime does not, so other names say nothing of it."""

_FIRST: Mapping[str, Callable[[Tokenizer], bool | None]] = {
    Keys.Tokenizer.ADD_BOS: lambda tokenizer: tokenizer.add_bos or False,
    Keys.Tokenizer.ADD_PREFIX: lambda tokenizer: (
        False if _no_prefix(tokenizer) else tokenizer.add_prefix_space
    ),
}
"""Values of `Gguf.tokenizer_keys`; a None is left out."""

_WITHOUT_BOS = ("llama", 49152)
"""The architecture and the vocabulary of which llama.cpp's converter says last that there is no bos."""


def tokenizer_metadata(tokenizer: Tokenizer, *, architecture: str, vocab_size: int) -> list[KeyValue]:
    """Every ``tokenizer.*`` key of a GGUF file, in order.

    Args:
        tokenizer: What to write.
        architecture: GGUF's name of the architecture: "phi2", "phi3", ...
        vocab_size: Rows of the embedding; ids without a token become ``[PAD<id>]``.

    Raises:
        ConfigError: The runtime cannot tokenize like this tokenizer.
    """
    gguf = ARCHITECTURE_OF_NAME[architecture].gguf
    first = {key: _FIRST[key](tokenizer) for key in (f"tokenizer.ggml.{k}" for k in gguf.tokenizer_keys)}
    result = [(key, GgufValue(ValueType.BOOL, flag)) for key, flag in first.items() if flag is not None]
    write = _sentencepiece if tokenizer.kind == "sentencepiece" else _byte_bpe
    result += write(tokenizer, gguf, vocab_size)
    for role, token_id in tokenizer.special_ids.items():
        if role in ID_KEYS:
            result.append((ID_KEYS[role], GgufValue(ValueType.UINT32, token_id)))
    # With whole words as tokens the runtime would put a bos there.
    silent = {"bos": False} if tokenizer.ignore_merges and tokenizer.add_bos is None else {}
    for role, add in (silent | dict(tokenizer.add_special)).items():
        if role in ADD_KEYS and ADD_KEYS[role] not in first:
            result.append((ADD_KEYS[role], GgufValue(ValueType.BOOL, add)))
    result += _chat_templates(tokenizer.chat_templates)
    if (gguf.name, vocab_size) == _WITHOUT_BOS and Keys.Tokenizer.ADD_BOS not in dict(result):
        result.append((Keys.Tokenizer.ADD_BOS, GgufValue(ValueType.BOOL, value=False)))
    return result


def _no_prefix(tokenizer: Tokenizer) -> bool:
    """Whether a SentencePiece tokenizer puts no space in front of a text."""
    return tokenizer.sentencepiece is not None and not tokenizer.sentencepiece.add_dummy_prefix


def tokenizer_notes(tokenizer: Tokenizer | None, name: str) -> list[str]:
    """What the runtime does otherwise than the tokenizer in a model of this name, one line each."""
    options = tokenizer.sentencepiece if tokenizer is not None else None
    notes = []
    if options is not None and options.metaspace is not None:
        notes.append(
            "llama.cpp puts a space before all text that follows a special token; this tokenizer does not"
        )
    odd = odd_added_tokens(
        tokenizer, strips_before=False, strips_after=lambda token: strips_after(name, token.content)
    )
    return [*notes, *added_token_notes("llama.cpp", odd)]


def _sentencepiece(tokenizer: Tokenizer, gguf: Gguf, vocab_size: int) -> Iterator[KeyValue]:
    tokens = _texts(tokenizer, vocab_size)
    missing = vocab_size - len(tokenizer)
    types = list(map(int, tokenizer.types)) + [int(TokenType.UNUSED)] * missing
    scores = list(tokenizer.scores) + [_UNUSED_SCORE] * missing
    for i, token in enumerate(tokenizer.tokens):
        if token is None:
            scores[i] = _UNUSED_SCORE
        elif types[i] == TokenType.USER_DEFINED:
            # The runtime cuts user-defined tokens out of the text and puts a space before what follows. That
            # is right for added tokens only: SentencePiece's own user-defined pieces stay inside a word.
            types[i] = int(TokenType.NORMAL)
    for added in tokenizer.added:
        scores[added.id] = _ADDED_SCORE
        types[added.id] = int(TokenType.CONTROL if added.special else TokenType.USER_DEFINED)
    yield Keys.Tokenizer.MODEL, GgufValue(ValueType.STRING, "llama")
    yield Keys.Tokenizer.PRE, GgufValue(ValueType.STRING, "default")
    yield Keys.Tokenizer.LIST, GgufValue(ValueType.ARRAY, tokens, ValueType.STRING)
    yield Keys.Tokenizer.SCORES, GgufValue(ValueType.ARRAY, scores, ValueType.FLOAT32)
    yield Keys.Tokenizer.TOKEN_TYPE, GgufValue(ValueType.ARRAY, types, ValueType.INT32)
    if _no_prefix(tokenizer) and "add_space_prefix" not in gguf.tokenizer_keys:
        # The runtime's default is the usual true, which is therefore not written.
        yield Keys.Tokenizer.ADD_PREFIX, GgufValue(ValueType.BOOL, value=False)


def _byte_bpe(tokenizer: Tokenizer, gguf: Gguf, vocab_size: int) -> Iterator[KeyValue]:
    tokens = _texts(tokenizer, vocab_size)
    types = list(map(int, tokenizer.types)) + [int(TokenType.UNUSED)] * (vocab_size - len(tokenizer))
    for added in tokenizer.added:
        if added.special or _looks_special(added.content):
            types[added.id] = int(TokenType.CONTROL)
        else:
            types[added.id] = int(TokenType.USER_DEFINED)
            tokens[added.id] = added.content.replace("\u2581", " ")
    if any("\u2581" in added.content for added in tokenizer.added):
        _check_unique(tokens)
    # Parts are joined with a space, so one inside a part is written as byte-level tokenizers write it.
    merges = [*map(" ".join, tokenizer.merges)]
    for i, (a, b) in enumerate(tokenizer.merges if "".join(merges).count(" ") > len(merges) else ()):
        merges[i] = f"{a.replace(' ', 'Ġ')} {b.replace(' ', 'Ġ')}"
    if not merges:
        raise ConfigError("the tokenizer has no merges, and the runtime needs them")
    yield Keys.Tokenizer.MODEL, GgufValue(ValueType.STRING, "gpt2")
    yield Keys.Tokenizer.PRE, GgufValue(ValueType.STRING, _pre(tokenizer, gguf))
    yield Keys.Tokenizer.LIST, GgufValue(ValueType.ARRAY, tokens, ValueType.STRING)
    yield Keys.Tokenizer.TOKEN_TYPE, GgufValue(ValueType.ARRAY, types, ValueType.INT32)
    yield Keys.Tokenizer.MERGES, GgufValue(ValueType.ARRAY, merges, ValueType.STRING)


def _texts(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    """The text of every row of the embedding."""
    if len(tokenizer) > vocab_size:
        message = f"the tokenizer has {len(tokenizer)} tokens, and the embedding has {vocab_size} rows"
        raise ConfigError(message)
    tokens = [f"[PAD{i}]" if token is None else token for i, token in enumerate(tokenizer.tokens)]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), vocab_size)]
    _check_unique(tokens)
    return tokens


def _check_unique(tokens: Sequence[str]) -> None:
    # The runtime stops the whole process where two ids have one text.
    if len(set(tokens)) == len(tokens):
        return
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if token in seen:
            message = f"the tokens {seen[token]} and {i} are both {printable(token, 60)!r}"
            raise ConfigError(message, hint="correct the tokenizer files: no runtime loads such a vocabulary")
        seen[token] = i


def _pre(tokenizer: Tokenizer, gguf: Gguf) -> str:
    split = tokenizer.split
    if split is None or split.name is None:
        message = f"llama.cpp has no name for the way in which text is split: {split.text if split else '?'}"
        raise ConfigError(message, at="pre_tokenizer", hint="use the tokenizer files of the original model")
    if tokenizer.ignore_merges:
        if split.name not in _WHOLE_WORDS:
            message = f"llama.cpp has no name for {split.name}'s way to split text with whole words as tokens"
            raise ConfigError(
                message, at="ignore_merges", hint="use the tokenizer files of the original model"
            )
        return _WHOLE_WORDS[split.name]
    if split.name == "qwen2" and not tokenizer.nfc:
        return _QWEN2_WITHOUT_NFC
    return gguf.pre.get(split.name) or _PRE[split.name]


def _looks_special(text: str) -> bool:
    """Whether a token is meant as a control token although its file does not say so."""
    return (
        text in {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _chat_templates(templates: Mapping[str, str]) -> Iterator[KeyValue]:
    names: dict[str, None] = {}
    for name, template in templates.items():
        safe = "".join(c if c in string.ascii_letters + string.digits else "_" for c in name)
        if safe and name != "default" and safe not in names:
            names[safe] = None
            key = Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=safe)
            yield key, GgufValue(ValueType.STRING, template)
    if names:
        yield Keys.Tokenizer.CHAT_TEMPLATES, GgufValue(ValueType.ARRAY, list(names), ValueType.STRING)
    if "default" in templates:
        yield Keys.Tokenizer.CHAT_TEMPLATE, GgufValue(ValueType.STRING, templates["default"])


# ------------------------------------------------------------------------------------------------- the name

_PHI3 = re.compile(r"(phi)(-?)(3)", re.IGNORECASE | re.ASCII)
_PHI3_LOOSE = re.compile(r"(phi)[ _.]{0,2}(3)", re.IGNORECASE | re.ASCII)
_NEVER_STRIP = ("<unk>", "<s>", "<|endoftext|>")
_NAMED_BY_RUNTIME = ("</s>", *_NEVER_STRIP)


def name_for_runtime(name: str, tokenizer: Tokenizer) -> str:
    """``general.name``, changed as little as possible so that llama.cpp's ids are those of the tokenizer.

    Where the name holds "phi-3" or "phi3" (in any case), the runtime lets every control, user-defined and
    unknown token swallow the white space after it, but for ``<unk>``, ``<s>`` and ``<|endoftext|>``. That is
    right for the Phi-3 tokenizers since July 2024, and wrong for earlier ones. A vocabulary without one of
    those three or ``</s>`` cannot be loaded under such a name at all. No name makes the runtime strip for
    Phi-4 or Phi-4-mini, and none makes it strip on the left.

    Args:
        name: The name as the model's files give it.
        tokenizer: Its added tokens say whether they strip.

    Returns:
        The name, with "Phi 3" and "Phi-3" exchanged (or " (Phi-3)" appended) where that gives more of the
        added tokens the flag that they should have.
    """
    strips = _wants_phi3_rule(tokenizer)
    if strips is None or strips == bool(_PHI3.search(name)):
        return name
    if not strips:
        return _PHI3.sub(r"\1 \3", name)
    changed = _PHI3_LOOSE.sub(r"\1-\2", name, count=1)
    return changed if changed != name else f"{name} (Phi-3)".lstrip()


def strips_after(name: str, token: str) -> bool:
    """Whether the runtime lets a special token swallow the white space after it, in a model of this name."""
    return bool(_PHI3.search(name)) and token not in _NEVER_STRIP


def _wants_phi3_rule(tokenizer: Tokenizer) -> bool | None:
    """Whether the runtime's rule for Phi-3 suits more added tokens than stripping nothing; None for a tie."""
    if set(_NAMED_BY_RUNTIME).difference(tokenizer.tokens):
        return False
    flags = [token.rstrip for token in tokenizer.added if token.content not in _NEVER_STRIP]
    right, wrong = flags.count(True), flags.count(False)
    return None if right == wrong else right > wrong
