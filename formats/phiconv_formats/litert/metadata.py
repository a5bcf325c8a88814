"""What LiteRT-LM has to know of a model beside its graph: where a text ends, and how a chat is written.

Facts from LiteRT-LM 0.18 (runtime/proto/llm_metadata.proto, token.proto). The numbers of fields are its.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from phiconv_formats.litert.protobuf import message, number, packed, text
from phiconv_formats.tokenizers.chat_templates import with_line_feeds
from phiconv_formats.tokenizers.ends import stop_ids

if TYPE_CHECKING:
    from phiconv.ir.model import Model
    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["PRELUDE", "START", "STOP", "TEMPLATE", "chat_template", "llm_metadata"]

START, STOP, _MOST_TOKENS, _KIND, TEMPLATE, _PAD = 1, 2, 5, 6, 7, 13
_GENERIC = 1
"""Of the kinds of models: one without habits of its own."""

PRELUDE = (
    "{%- set ns = namespace(list=[]) -%}"
    "{%- for m in messages -%}"
    "{%- if m['content'] is string or m['content'] is none or m['content'] is not defined -%}"
    "{%- set ns.list = ns.list + [m] -%}"
    "{%- else -%}"
    "{%- set t = namespace(s='') -%}"
    "{%- for c in m['content'] -%}"
    "{%- set t.s = t.s + (c['text'] if c['text'] is defined else '') -%}"
    "{%- endfor -%}"
    "{%- set ns.list = ns.list + [dict(m, content=t.s)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = ns.list -%}"
)
"""What stands before a template: LiteRT-LM gives every message as a list of parts, templates want text."""


def chat_template(tokenizer: Tokenizer) -> str | None:
    """The template as LiteRT-LM can render it; None where the model has none.

    To the runtime special tokens are no words of a template: where one begins with the token that begins a
    text, the template says itself which one that is, unless the runtime puts it there anyway.
    """
    template = tokenizer.chat_templates.get("default")
    if template is None:
        return None
    texts = {f"{role}_token": tokenizer.tokens[i] for role, i in tokenizer.special_ids.items()}
    if _starts(tokenizer):
        del texts["bos_token"]
    used = {name: text for name, text in texts.items() if name in template and text is not None}
    words = "".join(f"{{%- set {name} = {json.dumps(text)} -%}}" for name, text in used.items())
    return words + PRELUDE + with_line_feeds(template)


def _starts(tokenizer: Tokenizer) -> bool:
    """Whether a text has a token in front."""
    return bool(tokenizer.add_bos) and "bos" in tokenizer.special_ids


def llm_metadata(model: Model, context: int) -> bytes:
    """The message LlmMetadata.

    Phi's texts have no token in front; where a tokenizer says that there is one, the runtime puts it there.

    Args:
        model: The model, with its tokenizer.
        context: How many tokens a text may have.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None  # noqa: S101 - requirements.check_source has looked
    parts = []
    if _starts(tokenizer):
        parts.append(message(START, _token(tokenizer.special_ids["bos"])))
    parts += [message(STOP, _token(number_)) for number_ in stop_ids(tokenizer)]
    parts += [number(_MOST_TOKENS, context), message(_KIND, message(_GENERIC, b""))]
    template = chat_template(tokenizer)
    if template is not None:
        parts.append(text(TEMPLATE, template))
    if "pad" in tokenizer.special_ids:
        parts.append(message(_PAD, _token(tokenizer.special_ids["pad"])))
    return b"".join(parts)


def _token(number_: int) -> bytes:
    """TokenUnion: one token by its id; several ids would be a sequence of tokens."""
    return message(1, packed(1, [number_]))
