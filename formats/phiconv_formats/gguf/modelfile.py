"""A Modelfile for Ollama beside a GGUF: where it is, how a chat is written, where an answer ends.

Without it Ollama writes a chat as one of the templates that it knows, or as none. Instructions and their
form: https://docs.ollama.com/modelfile.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from phiconv.errors import OutputError, UnsupportedModelError, UsageError, printable
from phiconv_formats.gguf.go_template import UnknownTemplateError, go_template
from phiconv_formats.shared.output import OutputFile
from phiconv_formats.tokenizers.chat_templates import with_line_feeds
from phiconv_formats.tokenizers.ends import stop_ids

if TYPE_CHECKING:
    from phiconv.ir.model import Model
    from phiconv.tokenization.tokenizer import Tokenizer
    from phiconv_formats.shared.output import Package

__all__ = ["modelfile", "with_modelfile"]

_USUAL_CONTEXT = 4096
"""Tokens: keys and values of all that a model can take may be larger than the model."""


def with_modelfile(
    package: Package, model: Model, file_name: str, *, context: int | None, parts: bool
) -> Package:
    """An output with a Modelfile, which is called as the GGUF is: a folder may hold several.

    Args:
        package: The output.
        model: What it is of.
        file_name: The GGUF.
        context: How many tokens a text may have; None for 4096, or as many as the model can take.
        parts: Whether the GGUF is split.

    Raises:
        UnsupportedModelError: No chat template, or one that is not known.
        OutputError: A name that a Modelfile cannot hold.
        UsageError: A split GGUF, or a context that is longer than the model's.
    """
    if parts:
        raise UsageError("--modelfile: Ollama opens no GGUF in several files", hint="leave one of them out")
    if not file_name.isprintable():
        raise OutputError(
            "a Modelfile cannot hold this name", path=file_name, hint="choose another, or no --modelfile"
        )
    data = modelfile(model, file_name, context).encode()
    name = f"{PurePath(file_name).stem}.Modelfile"
    return replace(package, files=(*package.files, OutputFile(name, len(data), ((0, data),))))


def modelfile(model: Model, file_name: str, context: int | None) -> str:
    """The text of a Modelfile; see `with_modelfile`."""
    tokenizer, hp = model.tokenizer, model.hyperparameters
    if tokenizer is None or hp is None:
        raise UnsupportedModelError(
            "these are plain tensors, and no model for Ollama", path=model.path, hint="leave --modelfile out"
        )
    most = hp.max_position_embeddings
    if context is not None and context > most:
        raise UsageError(f"--context {context}: this model is for {most} positions at most")
    stops = [tokenizer.tokens[i] for i in stop_ids(tokenizer)]
    lines = [
        f"FROM ./{file_name}",
        f'TEMPLATE """{_template(model, tokenizer)}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops if stop and re.fullmatch(r"[^\"\s]+", stop)),
        f"PARAMETER num_ctx {context or min(_USUAL_CONTEXT, most)}",
    ]
    return "\n".join(lines) + "\n"


def _template(model: Model, tokenizer: Tokenizer) -> str:
    """The chat template as Go's; the token that begins a text is in it unless llama.cpp puts it in front."""
    template = tokenizer.chat_templates.get("default")
    hint = "leave --modelfile out, and write its TEMPLATE by hand: https://docs.ollama.com/template"
    if template is None:
        raise UnsupportedModelError(
            "the tokenizer has no chat template for a Modelfile", path=model.path, hint=hint
        )
    first = tokenizer.special_ids.get("bos")
    bos = "" if tokenizer.add_bos or first is None else tokenizer.tokens[first] or ""
    try:
        return go_template(with_line_feeds(template), bos)
    except UnknownTemplateError as error:
        raise UnsupportedModelError(
            f"--modelfile: the chat template has what phiconv does not translate: {printable(error, 80)}",
            path=model.path,
            hint=hint,
        ) from None
