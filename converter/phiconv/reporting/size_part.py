"""The part of a page about bytes: sizes, memory by context, and what the bytes are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.reporting import charts
from phiconv.reporting.cards import aside, card, drawn, folded, key, note, section, table
from phiconv.reporting.figures import context_text, figure, percent
from phiconv.units import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.reporting.markup import Markup
    from phiconv.reporting.numbers import Report, Stored

__all__ = ["size_section"]

_MEMORY = "Memory by context"


def size_section(report: Report) -> Markup:
    """Sizes of all models, then the bytes of each."""
    types = list(dict.fromkeys(name for model in report.models for name in model.types))
    return section(
        "Size and memory",
        _sizes(report.models),
        _memory(report),
        *(_roles(model, types) for model in report.models),
    )


def _sizes(models: Sequence[Stored]) -> Markup:
    head = ("model", "weights", "of A", "bits per weight", "all files")
    rows = [
        (
            model.letter,
            size_text(model.nbytes),
            f"{percent(model.nbytes / models[0].nbytes)} %",
            f"{model.bits_per_weight:.2f}",
            size_text(model.file_bytes),
        )
        for model in models
    ]
    return card("Sizes", drawn(charts.sizes("sizes", models)), table("Bytes before and after", head, rows))


def _memory(report: Report) -> Markup:
    models, cache = report.models, report.cache
    if not cache:
        return note(_MEMORY, "These are plain tensors: without a configuration nobody knows the cache.")
    unit, name = (1e9, "GB") if models[0].nbytes >= 1e9 else (1e6, "MB")
    head = ("context", "cache", *(model.letter for model in models))
    parts = (0, *(model.nbytes for model in models))  # of the cache alone, and with the weights of each
    rows = [
        (context_text(tokens), *(figure((weights + nbytes) / unit) for weights in parts))
        for tokens, nbytes in cache
    ]
    remark = (
        "Weights, and keys and values in 16 bits of every token of the context. A runtime needs some more, "
        "and less where it keeps a window only. 1 GB is 1,000,000,000 bytes."
    )
    return card(
        _MEMORY,
        drawn(charts.memory("memory", models, cache), key(models)),
        aside(remark),
        folded("Numbers", table(f"{name} of memory by tokens of context", head, rows)),
    )


def _roles(model: Stored, types: Sequence[str]) -> Markup:
    title = f"Bytes of {model.letter} by role and type"
    rows = [
        (role, " + ".join(kind for kind, _ in some), size_text(sum(nbytes for _, nbytes in some)))
        for role, some in model.roles
    ]
    numbers = folded("Numbers", table(title, ("role", "types", "bytes"), rows))
    return card(title, drawn(charts.roles(f"roles-{model.letter}", model, types)), numbers)
