"""Writes a report as one page of HTML: no script, nothing from elsewhere, and no address."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phiconv._version import __version__
from phiconv.reporting.cards import card, folded, key, note, section, table
from phiconv.reporting.error_part import error_section
from phiconv.reporting.markup import Markup, join, tag
from phiconv.reporting.quality_part import quality_section
from phiconv.reporting.size_part import size_section
from phiconv.reporting.text_part import text_section

if TYPE_CHECKING:
    from phiconv.reporting.numbers import Candidate, Report

__all__ = ["page"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser loads nothing and runs nothing, whatever is in the page."""


def page(report: Report) -> bytes:
    """The page; the same report gives the same bytes."""
    title = f"What became of {report.original.name}"
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Markup(style)),
    )
    parts = [
        size_section(report),
        quality_section(report),
        *(error_section(candidate) for candidate in report.candidates),
        *([] if report.text is None else [text_section(report, report.text)]),
        section("What they were made of", *map(_origin, report.candidates)),
    ]
    made = f"Written by phiconv {__version__}. The same models and text give the same bytes."
    body = tag("body", _header(title, report), tag("main", *parts), tag("footer", tag("p", made)))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n".encode()


def _header(title: str, report: Report) -> Markup:
    count = len(report.candidates)
    what = "one model is" if count == 1 else f"{count} models are"
    return tag(
        "header",
        tag("h1", title),
        tag("p", f"A is the original; {what} compared with it."),
        key(report.models),
    )


def _origin(candidate: Candidate) -> Markup:
    """What a receipt says of a candidate."""
    title = f"{candidate.stored.letter}: {candidate.stored.name}"
    origin = candidate.origin
    if origin is None:
        return note(title, f"Nobody knows: {candidate.no_origin}.")
    files = {"Files that were written": origin.outputs, "Files that were read": origin.sources}
    sums = (
        table(caption, ("file", "SHA-256"), [(name, tag("code", each)) for name, each in some], kind="words")
        for caption, some in files.items()
    )
    remark = join("Nothing of this is checked here; ", tag("code", "phiconv verify"), " does that.")
    return card(
        title,
        table("What its receipt says", ("fact", "value"), origin.facts, kind="words"),
        folded("Files and sums", *sums),
        tag("p", remark, class_="muted"),
    )
