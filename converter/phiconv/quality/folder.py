"""Measures a calibration folder: all windows through one stage of the decoder, then through the next one.

Between two stages the vectors of all tokens lie on the disk, so a run that was ended goes on after the last
finished stage. Memory holds one batch of windows, whatever the model, and the number of tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv.conversion.identity import identity_of
from phiconv.conversion.outputs import check_space, explain
from phiconv.conversion.tasks import HERE, in_order
from phiconv.errors import InputError, OutputError
from phiconv.forward import threads
from phiconv.forward.stages import stages_of
from phiconv.ir.importance import ColumnSums
from phiconv.quality.batches import BATCH_TOKENS, batches, begun
from phiconv.quality.moments import Collector, Measured
from phiconv.quality.passing import Passage
from phiconv.quality.sensitivity import measure_sensitivities
from phiconv.quality.workspace import Workspace, file_sha256
from phiconv_formats.calibration.arrays import ArrayFile, open_array
from phiconv_formats.calibration.manifest import (
    IMATRIX,
    MANIFEST,
    Manifest,
    SensitivityEntry,
    TextEntry,
    manifest_text,
    read_manifest,
    squares_of,
    windows_of,
)
from phiconv_formats.gguf.imatrix_writer import imatrix_file, measured_matrices

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.conversion.tasks import Workers
    from phiconv.forward.stages import Stage
    from phiconv.ir.model import Model, Role
    from phiconv.ir.moments import ModelIdentity
    from phiconv.quality.batches import Progress
    from phiconv_formats.calibration.manifest import InputEntry, PartName

__all__ = ["Texts", "is_measured", "measure_folder"]

_PIECES, _PIECE = 8, 64
"""How many pieces of the texts sensitivities are measured on, and tokens of each: variety counts more than
length."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What is computed.

    Attributes:
        entries: The texts.
        fit: Windows to fit to, shape (windows, context).
        check: Windows to judge by.
        bos: What the first token of each window is replaced with; None for nothing.
        sensitivity: Whether it is tried, too, what rounding one matrix does to the predictions.
    """

    entries: tuple[TextEntry, ...]
    fit: NDArray[np.intp]
    check: NDArray[np.intp]
    bos: int | None
    sensitivity: bool = False

    @property
    def tokens(self) -> dict[PartName, int]:
        """How many of each part."""
        return {"fit": self.fit.size, "check": self.check.size}

    @property
    def pieces(self) -> NDArray[np.intp]:
        """A few short pieces, from windows all over the texts, shape (pieces, tokens)."""
        windows = np.concatenate([self.fit, self.check])
        length = min(_PIECE, windows.shape[1])
        start = (windows.shape[1] - length) // 2
        chosen = sorted({i * len(windows) // _PIECES for i in range(_PIECES)})
        return begun(windows[chosen, start : start + length], self.bos)

    def batches(self) -> Iterator[tuple[PartName, int, NDArray[np.intp]]]:
        """Windows that are computed at a time: their part, their first token's number, and tokens."""
        at = 0
        parts: tuple[tuple[PartName, NDArray[np.intp]], ...] = (("fit", self.fit), ("check", self.check))
        for part, windows in parts:
            for batch in batches(*windows.shape):
                ids = begun(windows[batch], self.bos)
                yield part, at, ids
                at += ids.size


def is_measured(model: Model, texts: Texts, folder: Path) -> bool:
    """Whether a folder is a finished measurement of just this."""
    try:
        found = read_manifest(folder / MANIFEST)
    except InputError:
        return False
    own = (identity_of(model), texts.fit.shape[1], texts.bos, texts.tokens, texts.entries)
    measured = own == (found.model, found.context, found.bos, dict(found.tokens), found.texts)
    return measured and (bool(found.sensitivities) or not texts.sensitivity)


def measure_folder(
    model: Model,
    texts: Texts,
    destination: Path,
    *,
    force: bool,
    workers: Workers = HERE,
    progress: Progress | None,
) -> None:
    """Measures what goes into every matrix, and writes it.

    Args:
        model: The model.
        texts: What it reads.
        destination: The folder, which appears when all is done.
        force: Replace an older calibration, and forget an unfinished one of something else.
        workers: Where.
        progress: Is told how far this run is.

    Raises:
        InputError: Something is wrong with the model.
        OutputError: The folder cannot be written.
    """
    stages = stages_of(model)
    names = measured_matrices(model)  # a model that llama.cpp does not know is refused before the work
    measured = [[Measured(model, each, texts.tokens) for each in stage.inputs] for stage in stages]
    identity = identity_of(model)
    with _explained(destination):
        space = Workspace(destination, _run_of(model, identity, texts), force=force)
        done = len(space.stages)
        tokens = sum(texts.tokens.values())
        size = 2 * 4 * tokens * _width(model) + sum(each.size for some in measured[done:] for each in some)
        if workers.executor is not None:
            size += max(sum(each.scratch_size for each in some) for some in measured)
        check_space(space.folder, size)
        steps = _Steps(model, stages[done:], measured[done:], tokens, progress)
        for stage, some in list(zip(stages, measured, strict=True))[done:]:
            _measure_stage(model, stage, some, texts, space, workers, steps)
        entries = tuple(entry for stage_entries in space.stages for entry in stage_entries)
        _write_imatrix(space, names, entries, texts)
        sensitivities = _sensitivities(model, texts, space, workers, progress) if texts.sensitivity else ()
        manifest = Manifest(
            identity,
            texts.fit.shape[1],
            texts.bos,
            texts.tokens,
            texts.entries,
            file_sha256(space.folder / IMATRIX),
            entries,
            _keep_windows(space, texts),
            sensitivities,
        )
        space.write(MANIFEST, manifest_text(manifest).encode())
        space.publish()


def _sensitivities(
    model: Model, texts: Texts, space: Workspace, workers: Workers, progress: Progress | None
) -> tuple[SensitivityEntry, ...]:
    """What rounding one matrix does to the predictions."""

    def step(number: int, count: int) -> None:
        if progress is not None:  # with every stage there are more branches
            progress(number * number, count * count, "rounding one matrix at a time")

    found = measure_sensitivities(model, texts.pieces, space.folder, step, workers)
    return tuple(SensitivityEntry(each.role.layer, each.role.name, each.divergence) for each in found)


def _measure_stage(
    model: Model,
    stage: Stage,
    measured: Sequence[Measured],
    texts: Texts,
    space: Workspace,
    workers: Workers,
    steps: _Steps,
) -> None:
    """Takes all windows through a stage."""
    bare, before, after = model.bare(), space.stream(), None
    collector = Collector(model, measured, space, workers)
    if stage.calls[-1][1].operation != "logits":
        shape = (sum(texts.tokens.values()), _width(model))
        after = space.rows(ArrayFile(f"stream.{len(space.stages) % 2}.npy", "float32", shape))
    parts = [*texts.batches()]
    first = {"fit": 0, "check": texts.fit.size}
    passages = (
        Passage(bare, stage, ids, at, at - first[part], collector.sinks(part), before, after)
        for part, at, ids in parts
    )
    with threads.parallel(), np.errstate(all="ignore"):
        for (part, _, ids), seen in zip(parts, in_order(workers, passages), strict=True):
            collector.take(part, seen)
            steps.step(stage, measured, ids.size)
        entries = collector.finish()
    space.finish_stage(entries, None if after is None else after.file)


def _width(model: Model) -> int:
    """Of what goes from one stage to the next."""
    return model.hyperparameters.hidden_size if model.hyperparameters else 0


def _keep_windows(space: Workspace, texts: Texts) -> str:
    """Writes the tokens that were computed; returns the SHA-256 of the file."""
    file = windows_of(texts.fit.shape[1], texts.tokens)
    array = space.create(file)
    array[...] = np.concatenate([ids for _, _, ids in texts.batches()])
    del array
    return space.seal(file)


def _write_imatrix(
    space: Workspace, names: dict[str, Role], entries: Sequence[InputEntry], texts: Texts
) -> None:
    """The importance matrix of the sums of squares that were measured."""
    found = {(e.layer, role): e for e in entries for role in e.roles}
    sums = {}
    for name, role in names.items():
        entry = found[role.layer, role.name]
        counts = np.array([part.tokens for part in entry.parts.values()], np.int64).sum(axis=0).reshape(-1)
        file = squares_of(entry.stem, entry.columns, len(counts), entry.squares)
        sums[name] = ColumnSums(open_array(space.folder, file), counts)
    windows = len(texts.fit) + len(texts.check)
    datasets = [entry.name for entry in texts.entries]
    matrix = imatrix_file(IMATRIX, sums, datasets=datasets, chunks=windows, chunk_size=texts.fit.shape[1])
    space.write(IMATRIX, b"".join(chunk for _, chunk in matrix.chunks))


def _run_of(model: Model, identity: ModelIdentity, texts: Texts) -> str:
    """What tells a measurement from others: an unfinished one goes on only if it is the same."""
    windows = [hashlib.sha256(part.astype("<i8").tobytes()).hexdigest() for part in (texts.fit, texts.check)]
    shape, entries = texts.fit.shape, [asdict(entry) for entry in texts.entries]
    what = [str(model.path.resolve()), asdict(identity), windows, shape[1], texts.bos, entries, BATCH_TOKENS]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


class _Steps:
    """Tells the progress: a step is a batch in a stage, and counts as much as it takes multiplications."""

    def __init__(
        self,
        model: Model,
        stages: Sequence[Stage],
        measured: Sequence[Sequence[Measured]],
        tokens: int,
        progress: Progress | None,
    ) -> None:
        self._model, self._progress, self._tokens = model, progress, tokens
        self._layers = model.hyperparameters.num_hidden_layers if model.hyperparameters else 0
        self._total = sum(
            self._work(stage, some) * tokens for stage, some in zip(stages, measured, strict=True)
        )
        self._done = 0.0

    def _work(self, stage: Stage, measured: Sequence[Measured]) -> float:
        """Multiplications for a token."""
        work = sum(each.products / self._tokens for each in measured)
        for each in stage.inputs:
            for role in each.roles:
                if role.layer is not None:
                    work += self._model.tensors[role].size * each.used / (each.experts or 1)
        return work

    def step(self, stage: Stage, measured: Sequence[Measured], tokens: int) -> None:
        """So many tokens are through a stage."""
        self._done += self._work(stage, measured) * tokens
        if self._progress is not None:
            name = "the output" if stage.layer is None else f"layer {stage.layer + 1} of {self._layers}"
            total = max(round(self._total / 1e6), 1)
            self._progress(min(round(self._done / 1e6), total), total, name)


@contextlib.contextmanager
def _explained(destination: Path) -> Iterator[None]:
    """Makes errors of the system those of an output."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError) or error.errno is None:
            raise
        raise explain(error, destination) from error
