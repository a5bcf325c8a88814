"""The part of a page about a text: curves along it, and a passage coloured by divergence."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from phiconv.errors import printable
from phiconv.reporting.cards import aside, card, drawn, folded, key, section, shades, table
from phiconv.reporting.charts import curves
from phiconv.reporting.figures import figure, percent
from phiconv.reporting.markup import Markup, join, tag

if TYPE_CHECKING:
    from collections.abc import Iterable

    from phiconv.reporting.numbers import Passage, Report, Stored, TextNumbers, Token

__all__ = ["text_section"]

_EDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Where one shade of a token ends and the next begins, in nats."""

_SHOWN = 12
"""Tokens of a passage whose predictions stand in a table."""


def text_section(report: Report, text: TextNumbers) -> Markup:
    """The curves of all candidates, and a passage for each."""
    passages = zip(report.candidates, text.passages, strict=True)
    return section(
        "Along the text",
        _curves(report, text),
        *(_passage(candidate.stored, passage) for candidate, passage in passages),
    )


def _curves(report: Report, text: TextNumbers) -> Markup:
    models = report.models
    picture = curves("curves", models, text.starts, text.curves, text.evaluations[0].tokens)
    head = ("token", *(model.letter for model in models[1:]))
    rows = [(str(start), *(figure(row[i]) for row in text.curves)) for i, start in enumerate(text.starts)]
    caption = "Mean divergence from A in nats, from each token on"
    return card(
        "Divergence along the text",
        drawn(picture, key(models[1:], 1)),
        *([] if all(map(all, text.curves)) else [aside("On the lower edge there is no divergence.")]),
        folded("Numbers", table(caption, head, rows)),
    )


def _passage(model: Stored, passage: Passage) -> Markup:
    letter = model.letter
    last = passage.start + len(passage.tokens) - 1
    remark = (
        f"Tokens {passage.start} to {last}, where candidates differ most from A. In bold italics: A and "
        f"{letter} do not find the same token likeliest."
    )
    worst = sorted(range(len(passage.tokens)), key=lambda i: (-passage.tokens[i].divergence, i))[:_SHOWN]
    head = ("token", "came", "likeliest for A", f"likeliest for {letter}", "nats")
    rows = [_row(passage.start + i, passage.tokens[i]) for i in sorted(worst)]
    return card(
        f"The text as {letter} reads it: {model.name}",
        aside(remark),
        shades("Divergence in nats", ("0", *(f"{edge:g}" for edge in _EDGES))),
        tag("p", *(_token(each, letter) for each in passage.tokens), class_="shades passage"),
        table(f"The {len(rows)} tokens of it with the largest divergence", head, rows, kind="tokens"),
        full=True,
    )


def _token(token: Token, letter: str) -> Markup:
    shade = sum(edge <= token.divergence for edge in _EDGES)
    told = f"{figure(token.divergence)} nats. A: {_told(token.original)}. {letter}: {_told(token.candidate)}."
    classes = f"t{shade}" if token.same else f"t{shade} other"
    return tag("span", _visible(token.text), class_=classes, title=told)


def _visible(text: str) -> str:
    """A token as it stands in a text, with a mark where a line ends."""
    return text.replace("\n", "↵\n")


def _told(tokens: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"“{printable(text, 24)}” {percent(part)} %" for text, part in islice(tokens, 2))


def _row(number: int, token: Token) -> tuple[str, ...]:
    likeliest = (_likeliest(each) for each in (token.original, token.candidate))
    return (str(number), _code(token.text), *likeliest, figure(token.divergence))


def _code(text: str) -> Markup:
    return tag("code", printable(text, 40))


def _likeliest(tokens: Iterable[tuple[str, float]]) -> Markup:
    parts: list[str] = []
    for text, part in tokens:
        parts += [tag("span", _code(text), f" {percent(part)} %"), " "]
    return join(*parts)
