"""What a report says, before it is drawn: numbers and names, and nothing of how they look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiconv.quality.comparison import Comparison
    from phiconv.quality.scores import Evaluation
    from phiconv.reporting.grid import ErrorGrid

__all__ = [
    "Candidate",
    "Errors",
    "Histogram",
    "Origin",
    "Passage",
    "Report",
    "Stored",
    "TextNumbers",
    "Token",
]


@dataclass(frozen=True, slots=True)
class Stored:
    """How a model is stored.

    Attributes:
        letter: What pictures call it: A is the original.
        name: Of its file or folder.
        format: The format.
        weights: How many there are.
        nbytes: Bytes of the weights.
        file_bytes: Bytes of all files that it was opened from.
        roles: Bytes of the weights by what they are for, and of each by type, the largest first.
    """

    letter: str
    name: str
    format: str
    weights: int
    nbytes: float
    file_bytes: int
    roles: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]

    @property
    def bits_per_weight(self) -> float:
        """Over all weights."""
        return 8 * self.nbytes / max(self.weights, 1)

    @property
    def types(self) -> tuple[str, ...]:
        """The types of its weights, those of the most bytes first."""
        found: dict[str, float] = {}
        for _, some in self.roles:
            for name, nbytes in some:
                found[name] = found.get(name, 0) + nbytes
        return tuple(sorted(found, key=lambda name: -found[name]))


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often errors of a matrix have which size.

    Attributes:
        name: The matrix.
        edges: Of the bins, in units of the root mean square of the original's weights.
        shares: Part of the weights in each bin; the outer bins have all that is beyond them, too.
    """

    name: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Errors:
    """How far a candidate's weights are from the original's.

    Attributes:
        comparison: Every tensor, the worst first.
        grid: Layers and matrices; None where weights have no roles.
        sizes: Bytes of every matrix of the comparison in the candidate, by name.
        histograms: Of the worst matrices.
    """

    comparison: Comparison
    grid: ErrorGrid | None
    sizes: dict[str, float]
    histograms: tuple[Histogram, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a receipt says; nobody has checked here whether it is true.

    Attributes:
        facts: Names and values: source, format, options, versions.
        outputs, sources: Files and their SHA-256 sums.
    """

    facts: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    sources: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is compared with the original.

    Attributes:
        stored: How it is stored.
        errors: Of its weights.
        origin: What its receipt says; None where there is none.
        no_origin: Why there is none.
    """

    stored: Stored
    errors: Errors
    origin: Origin | None
    no_origin: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a text, and what was predicted in its place.

    Attributes:
        text: The token.
        divergence: Of the candidate's prediction from the original's, in nats.
        original, candidate: The likeliest tokens and their probabilities, the likeliest first.
    """

    text: str
    divergence: float
    original: tuple[tuple[str, float], ...]
    candidate: tuple[tuple[str, float], ...]

    @property
    def same(self) -> bool:
        """Whether both find the same token likeliest."""
        return self.original[0][0] == self.candidate[0][0]


@dataclass(frozen=True, slots=True)
class Passage:
    """Some tokens of a text in a row.

    Attributes:
        start: Number of scored tokens before it.
        tokens: The tokens.
    """

    start: int
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class TextNumbers:
    """What the models make of a text.

    Attributes:
        evaluations: Of each candidate.
        starts: Where the pieces begin that the text is cut into, in scored tokens.
        curves: Mean divergence of each candidate in each of them, in nats.
        passages: The stretch of the text where candidates diverge most, one for each.
    """

    evaluations: tuple[Evaluation, ...]
    starts: tuple[int, ...]
    curves: tuple[tuple[float, ...], ...]
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report says.

    Attributes:
        original: The model before.
        candidates: What became of it.
        cache: Bytes of keys and values by tokens of context; empty for files of plain tensors.
        text: What was computed on a text; None where there was none.
    """

    original: Stored
    candidates: tuple[Candidate, ...]
    cache: tuple[tuple[int, int], ...]
    text: TextNumbers | None

    @property
    def models(self) -> tuple[Stored, ...]:
        """The original and the candidates."""
        return (self.original, *(each.stored for each in self.candidates))
