"""What older files leave out, because whoever ran them supplied it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf.constants import Keys

from phiconv_formats.gguf.names import ARCHITECTURE_OF_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv_formats.gguf.entries import Entries

__all__ = ["supplied_notes", "supplied_pre", "supplied_window"]

_WINDOWS = {("phi3", 32, 4096): 2047, ("phi3", 40, 4096): 2047}
"""The sliding window by architecture, number of layers and context, where no key says one.

llama.cpp supplied these two for files of before August 2024 (ggml-org/llama.cpp#8931); they are what
Phi-3-mini-4k and Phi-3-medium-4k have in config.json. Its windows for the models of 131072 positions limit
nothing.
"""


def supplied_window(entries: Entries, config: Mapping[str, Any]) -> int | None:
    """The sliding window of a file that says nothing of one, not even 0; None for none."""
    if entries.integer(Keys.Attention.SLIDING_WINDOW) is not None:
        return None
    sizes = (config["num_hidden_layers"], config["max_position_embeddings"])
    return _WINDOWS.get((entries.architecture, *sizes))


def supplied_pre(entries: Entries) -> str | None:
    """llama.cpp's name of the way in which text is split, where a file says none; None if nobody can know.

    The key is there since April 2024 (ggml-org/llama.cpp#6920). Only a family with one way of its own is
    known without it.
    """
    if entries.text(Keys.Tokenizer.PRE) is not None or entries.text(Keys.Tokenizer.MODEL) != "gpt2":
        return None
    architecture = ARCHITECTURE_OF_NAME.get(entries.architecture)
    names = [] if architecture is None else list(architecture.gguf.pre.values())
    return names[0] if len(names) == 1 else None


def supplied_notes(entries: Entries, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What was taken for granted, one sentence each."""
    notes = []
    if (window := supplied_window(entries, config)) is not None:
        key = entries.key(Keys.Attention.SLIDING_WINDOW)
        model = "Phi-3 models of 4096 positions"
        notes.append(f"the source has no {key}; the window is {window}, as {model} have it")
    if (pre := supplied_pre(entries)) is not None:
        notes.append(f"the source has no {Keys.Tokenizer.PRE}; text is split as {pre} splits it")
    return tuple(notes)
