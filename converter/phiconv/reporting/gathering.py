"""Gathers what a report says from models that were opened."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from phiconv.errors import InputError, UsageError
from phiconv.ir.model import as_text, title_of
from phiconv.quality.along import predictions_along
from phiconv.quality.comparison import compare, match
from phiconv.quantizers import decode
from phiconv.reporting.grid import error_grid, matrices
from phiconv.reporting.numbers import Candidate, Errors, Histogram, Origin, Report, Stored
from phiconv.reporting.passages import text_numbers
from phiconv.verification.judging import find_receipt
from phiconv.verification.stated import read_receipt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

    from phiconv.conversion.pipeline import Progress
    from phiconv.ir import Tensor
    from phiconv.ir.model import Hyperparameters, Model
    from phiconv.quality.comparison import Difference, Pair
    from phiconv.reporting.numbers import TextNumbers
    from phiconv.verification.stated import Stated

__all__ = ["gather"]

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WORST = 3
"""Matrices that get a histogram."""

_BINS = 21
_REACH = 4
"""Where a histogram ends, in root mean squares of the errors."""

_TILE = 1 << 20
"""Weights that are counted at a time."""

_LEAST_CONTEXT = 512
_CACHE_BYTES = 2
"""Of a number of the cache: runtimes keep float16 unless told otherwise."""

_ROWS = 12
"""Roles of plain tensors that are shown apart."""


def gather(
    original: Model,
    candidates: Sequence[Model],
    *,
    text: str | ArrayLike | None = None,
    reference_file: Path | None = None,
    context: int = 512,
    llama: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compares every candidate with the original, and reads a text with all of them if there is one.

    Raises:
        InputError: The models do not have the same weights, or one is wrong.
        UsageError: There are no candidates, or too many; the text is shorter than a window.
    """
    if not 0 < len(candidates) < len(_LETTERS):
        raise UsageError(
            f"{len(candidates)} models to compare with the original",
            hint=f"give 1 to {len(_LETTERS) - 1}",
        )
    found = tuple(
        _candidate(letter, original, model, jobs, progress)
        for letter, model in zip(_LETTERS[1:], candidates, strict=False)
    )
    numbers: TextNumbers | None = None
    if text is not None:
        along = predictions_along(
            candidates,
            text,
            original,
            reference_file=reference_file,
            context=context,
            llama=llama,
            progress=progress,
        )
        numbers = text_numbers(along, original.tokenizer or candidates[0].tokenizer)
    return Report(_stored(_LETTERS[0], original), found, _cache(original.hyperparameters), numbers)


# --------------------------------------------------------------------------------------------------- sizes


def _stored(letter: str, model: Model) -> Stored:
    files = {file.identity: file.size for file in model.opened}
    nbytes = sum(_nbytes(tensor) for tensor in model.stored.values())
    name = title_of(model.path) if model.path.is_dir() else as_text(model.path.name)
    return Stored(letter, name, model.format, model.size, nbytes, sum(files.values()), _roles(model))


def _nbytes(tensor: Tensor) -> float:
    return tensor.size * tensor.encoding.bits_per_weight / 8


def _roles(model: Model) -> tuple[tuple[str, tuple[tuple[str, float], ...]], ...]:
    """Bytes by role and type; vectors are together, and tensors without roles by name but for numbers."""
    found: dict[str, dict[str, float]] = {}
    named = model.tensors.items() if model.tensors else model.stored.items()
    for key, tensor in named:
        name = re.sub(r"\d+", "*", key) if isinstance(key, str) else key.name
        if len(tensor.shape) < 2:
            name = "norms and biases"
        types = found.setdefault(name, {})
        types[tensor.encoding.name] = types.get(tensor.encoding.name, 0) + _nbytes(tensor)
    rows = [(name, tuple(sorted(types.items(), key=lambda t: -t[1]))) for name, types in found.items()]
    rows.sort(key=lambda row: -sum(nbytes for _, nbytes in row[1]))
    return tuple(rows[:_ROWS])


def _cache(hp: Hyperparameters | None) -> tuple[tuple[int, int], ...]:
    """Bytes of the keys and values of all layers; all positions are kept, whatever a sliding window shows."""
    if hp is None:
        return ()
    last = hp.max_position_embeddings
    contexts = [_LEAST_CONTEXT << k for k in range(64) if _LEAST_CONTEXT << k < last] + [last]
    each = 2 * hp.num_hidden_layers * hp.num_key_value_heads * hp.head_dim * _CACHE_BYTES
    return tuple((count, count * each) for count in contexts)


# -------------------------------------------------------------------------------------------------- errors


def _candidate(
    letter: str, original: Model, model: Model, jobs: int | None, progress: Progress | None
) -> Candidate:
    found = compare(original, model, jobs=jobs, progress=progress)
    pairs = {pair[0]: pair for pair in match(original, model)[1]}
    worst = [each for each in matrices(found) if 0 < each.difference.relative_rmse < math.inf][:_WORST]
    errors = Errors(
        found,
        error_grid(found),
        {each.name: each.bits_b * each.difference.weights / 8 for each in matrices(found)},
        tuple(_histogram(pairs[each.name], each.difference) for each in worst),
    )
    try:
        origin = _origin(model.path)
    except InputError as error:
        return Candidate(_stored(letter, model), errors, None, f"its receipt cannot be read: {error.message}")
    missing = "" if origin else "there is no receipt beside it"
    return Candidate(_stored(letter, model), errors, origin, missing)


def _histogram(pair: Pair, difference: Difference) -> Histogram:
    """Counts errors in bins as wide as each other, around zero."""
    name, a, b = pair
    weights = max(difference.weights - max(difference.nonfinite_a, difference.nonfinite_b), 1)
    unit = math.sqrt(difference.square_a / weights)
    reach = min(difference.max_error, _REACH * math.sqrt(difference.square_error / weights))
    counts = np.zeros(_BINS, np.int64)
    step = max(_TILE // max(a.columns, 1), 1)
    for start in range(0, a.rows, step):
        stop = min(start + step, a.rows)
        x, y = (decode(t.read(start, stop), t.columns).astype(np.float64) for t in (a, b))
        error = (y - x)[np.isfinite(x) & np.isfinite(y)]
        bins = np.floor((error / reach + 1) * (_BINS / 2)).astype(np.intp)
        counts += np.bincount(np.clip(bins, 0, _BINS - 1), minlength=_BINS)
    edges = np.linspace(-reach / unit, reach / unit, _BINS + 1)
    return Histogram(name, tuple(edges.tolist()), tuple((counts / max(counts.sum(), 1)).tolist()))


# ------------------------------------------------------------------------------------------------- receipts


def _origin(path: Path) -> Origin | None:
    """What the receipt of an output says.

    Raises:
        InputError: There is one, and it cannot be read.
    """
    place = find_receipt(path)
    if place is None:
        return None
    stated = read_receipt(place)
    sums = (tuple(sorted(each.items())) for each in (stated.outputs, stated.sources))
    return Origin(_facts(stated), *sums)


def _facts(stated: Stated) -> tuple[tuple[str, str], ...]:
    internal: Mapping[str, object] = stated.statement["predicate"]["buildDefinition"]["internalParameters"]
    external = stated.statement["predicate"]["buildDefinition"]["externalParameters"]
    options = [f"{name} = {_value(value)}" for name, value in external["options"].items()]
    versions = [f"{name} {version}" for name, version in stated.versions.items()]
    return (
        ("made of", stated.source_name),
        ("format", stated.format),
        ("recipe", str(internal["recipe"])),
        ("options", ", ".join(options) or "none"),
        *((("adapters", f"{len(stated.lora)} merged"),) if stated.lora else ()),
        ("made by", ", ".join(versions)),
    )


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
