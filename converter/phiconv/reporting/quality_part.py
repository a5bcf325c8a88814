"""The part of a page that compares the candidates: figures of each, and size against quality."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from phiconv.reporting import charts
from phiconv.reporting.cards import aside, card, drawn, key, section, table
from phiconv.reporting.figures import figure, percent
from phiconv.units import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.quality.scores import Divergence
    from phiconv.reporting.markup import Markup
    from phiconv.reporting.numbers import Report, TextNumbers

__all__ = ["quality_section"]

_NO_TEXT = (
    "No text was given. What needs one is left out: how far predictions are from those of A, the curves "
    "along the text, and the text coloured by it. Give --text."
)


def quality_section(report: Report) -> Markup:
    """Figures, and where there are several candidates the line through the best."""
    errors, measure = [c.errors.comparison.total.relative_rmse for c in report.candidates], "relative RMSE"
    if report.text is not None:
        errors, measure = [d.mean for d in _divergences(report.text)], "mean divergence, nats"
    cards = [card("Figures", _of_weights(report), *_of_predictions(report))]
    if len(errors) > 1:
        cards.append(_against_size(report, errors, measure))
    return section("Quality", *cards)


def _of_weights(report: Report) -> Markup:
    rows = []
    for candidate in report.candidates:
        total = candidate.errors.comparison.total
        ratio = f"{total.sqnr:.2f} dB" if math.isfinite(total.sqnr) else "not defined"
        if total.square_error == 0:
            ratio = "no error"
        error = f"{percent(total.relative_rmse)} %"
        rows.append((candidate.stored.letter, error, figure(total.max_error), ratio))
    return table("Errors of all weights", ("model", "relative RMSE", "max error", "SQNR"), rows)


def _divergences(text: TextNumbers) -> list[Divergence]:
    return [each.divergence for each in text.evaluations if each.divergence is not None]


def _of_predictions(report: Report) -> list[Markup]:
    text = report.text
    if text is None:
        return [aside(_NO_TEXT)]
    found = _divergences(text)
    first = text.evaluations[0]
    rows = [
        (
            candidate.stored.letter,
            f"{one.perplexity:.6g}",
            *map(figure, (other.mean, other.percentile_99, other.maximum)),
            percent(other.same_top),
        )
        for candidate, one, other in zip(report.candidates, text.evaluations, found, strict=True)
    ]
    head = ("model", "perplexity", "mean", "99 %", "max", "same, %")
    caption = f"On the text: {first.tokens} tokens scored in {first.windows} windows of {first.context}"
    remark = (
        f"Perplexity of A: {found[0].perplexity:.6g}. Mean, 99 % and max are of the divergence from A, in "
        "nats; “same” says how often both find the same one likeliest."
    )
    return [table(caption, head, rows), aside(remark)]


def _against_size(report: Report, errors: Sequence[float], measure: str) -> Markup:
    models = report.models[1:]
    best = charts.best_line([(model.nbytes, error) for model, error in zip(models, errors, strict=True)])
    rows = [
        (model.letter, size_text(model.nbytes), figure(error), "yes" if i in best else "no")
        for i, (model, error) in enumerate(zip(models, errors, strict=True))
    ]
    return card(
        "Size against quality",
        drawn(charts.quality("quality", models, errors, measure), key(models, 1)),
        *([] if all(errors) else [aside("A point on the lower edge is one without an error.")]),
        table("Size and quality", ("model", "weights", measure, "on the line"), rows),
    )
