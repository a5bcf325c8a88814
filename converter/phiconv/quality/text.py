"""What a model does with a text: the functions of the library that compute, see `phiconv.api`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.conversion.cancelling import heeding
from phiconv.conversion.identity import identity_of
from phiconv.conversion.outputs import partial_files
from phiconv.conversion.paths import expanded
from phiconv.conversion.tasks import Workers
from phiconv.errors import OutputExistsError, UsageError
from phiconv.forward.generation import Generation
from phiconv.forward.interpreter import compute
from phiconv.perception.prompts import make_prompt
from phiconv.quality import calibration, evaluation
from phiconv.quality.documents import Document, chosen, chosen_apart
from phiconv.quality.folder import Texts, is_measured, measure_folder
from phiconv.quality.ranges import measure_ranges
from phiconv.quality.scores import Divergence, Evaluation
from phiconv.quality.texts import supplied_texts
from phiconv.quality.tokens import bos_of, decode, encode, ids_of, opened
from phiconv_formats.calibration.manifest import TextEntry
from phiconv_formats.calibration.ranges import ranges_file
from phiconv_formats.gguf.imatrix_writer import imatrix_file, measured_matrices

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor
    from os import PathLike
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from phiconv.conversion.cancelling import Cancel
    from phiconv.forward.interpreter import Precision
    from phiconv.forward.layers import Array
    from phiconv.ir.model import Model
    from phiconv.quality.batches import Progress

__all__ = [
    "Divergence",
    "Evaluation",
    "calibrate",
    "decode",
    "encode",
    "evaluate",
    "evaluate_all",
    "generate",
    "logits",
]


def logits(
    source: str | PathLike[str] | Model, input_ids: ArrayLike, *, precision: Precision = "float32"
) -> Array:
    """Computes a model's logits with NumPy.

    Args:
        source: A path, as `open_model` takes it, or an open model.
        input_ids: Token ids: sequences of one length, shape (batch, length).
        precision: "float32", or "float64" to see how much of a difference is rounding.

    Returns:
        Shape (batch, length, vocabulary), of the given precision: what follows each token.

    Raises:
        InputError: Something is wrong with the model, or it is a file of plain tensors.
        UsageError: The ids have another shape, or are not in the vocabulary.
    """
    return compute(opened(source), input_ids, precision=precision).all()


def evaluate(
    source: str | PathLike[str] | Model,
    text: str | ArrayLike,
    *,
    reference: str | PathLike[str] | Model | None = None,
    reference_file: str | PathLike[str] | None = None,
    context: int = 512,
    llama: bool = False,
    executor: Executor | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Evaluation:
    """Computes how well a model predicts a text, with NumPy; see `evaluate_all`."""
    return evaluate_all(
        [source],
        text,
        reference=reference,
        reference_file=reference_file,
        context=context,
        llama=llama,
        executor=executor,
        jobs=jobs,
        progress=progress,
        cancel=cancel,
    )[0]


def evaluate_all(
    sources: Sequence[str | PathLike[str] | Model],
    text: str | ArrayLike,
    *,
    reference: str | PathLike[str] | Model | None = None,
    reference_file: str | PathLike[str] | None = None,
    context: int = 512,
    llama: bool = False,
    executor: Executor | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> list[Evaluation]:
    """Computes how well models predict a text, with NumPy.

    Args:
        sources: Paths, as `open_model` takes them, or open models.
        text: The text, or its token ids. It is cut into windows, and the tail is dropped.
        reference: Another model with the same vocabulary, as a rule the unquantized one, to compare the
            predictions with. It is computed once for all models.
        reference_file: A file that keeps what was computed of the reference. The next time, with the same
            reference, text and context, nothing of it is computed again but the logits.
        context: Tokens of a window.
        llama: Score as llama-perplexity does: only the second half of each window, and with a bos token in
            front of the text and of each window, if the tokenizer asks for one. Otherwise every token but a
            window's first one is scored, and no token is added.
        executor: Any `concurrent.futures.Executor` to work in, whose workers see the same files; the numbers
            are the same.
        jobs: How many tasks it does at once; by default one per processor of this machine.
        progress: Is told how far it is.
        cancel: An event; once it is set, the work ends with a CancelledError.

    Returns:
        One for each model, in their order.

    Raises:
        InputError: Something is wrong with a model.
        CancelledError: It was to end.
        OutputError: The file cannot be written.
        UsageError: The text is shorter than a window, or the vocabularies differ.
    """
    models = [opened(source) for source in sources]
    if not models:
        raise UsageError("no model to evaluate", hint="give one or more")
    if reference_file is not None and reference is None:
        raise UsageError("a file for a reference, and no reference", hint="give --reference, too")
    bos = bos_of(models[0]) if llama else None
    return evaluation.evaluate(
        models,
        ids_of(models[0], text, bos),
        reference=None if reference is None else opened(reference),
        reference_file=None if reference_file is None else expanded(reference_file),
        context=context,
        llama=llama,
        bos=bos,
        workers=Workers(executor, jobs),
        progress=heeding(progress, cancel),
    )


def calibrate(
    source: str | PathLike[str] | Model,
    text: str | Sequence[str] | ArrayLike | None,
    destination: str | PathLike[str],
    *,
    tokens: int | None = None,
    context: int = 512,
    dataset: str | Sequence[str] = "",
    force: bool = False,
    reuse: bool = False,
    sensitivity: bool = False,
    executor: Executor | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Path:
    """Measures with NumPy what goes into a model's matrices.

    Args:
        source: A path, as `open_model` takes it, or an open model.
        text: A text or several, or the token ids of one; None for the texts that come with phiconv. Each is
            cut into windows, and the tail is dropped.
        destination: Where the name ends in ``.gguf`` or ``.dat``, a file: an importance matrix as
            llama-imatrix writes it, a GGUF; in ``.json``, the ranges of activations (see `convert`).
            Otherwise a folder: an importance matrix and second moments.
        tokens: About how many to compute, evenly from all texts: by default all for a file, 8192 for a
            folder.
        context: Tokens of a window.
        dataset: The text's name, for the file; several names for several texts.
        force: Replace what exists.
        sensitivity: Also try, for a folder, what rounding one matrix does to the predictions. A conversion to
            a size (`Choices.target_size`) chooses by that.
        reuse: Keep a folder that exists if it is of the same model, texts and tokens.
        executor: Any `concurrent.futures.Executor` to work in, whose workers see the same files; the numbers
            are the same.
        jobs: How many tasks it does at once; by default one per processor of this machine.
        progress: Is told how far it is.
        cancel: An event; once it is set, the work ends with a CancelledError.

    Returns:
        The file or folder.

    Raises:
        InputError: Something is wrong with the model.
        CancelledError: It was to end.
        OutputError: The destination cannot be written.
        UsageError: The text is shorter than a window, or a text or the tokens than two where it is a folder.
    """
    model, path, workers = opened(source), expanded(destination), Workers(executor, jobs)
    progress = heeding(progress, cancel)
    is_file = path.suffix.lower() in {".gguf", ".dat", ".json"}
    if is_file and not force and path.exists():  # it would be a pity to find it out after an hour
        raise OutputExistsError("exists already", path=path, hint="give --force to replace it")
    bos = bos_of(model)
    documents = _documents(model, text, dataset, bos)
    if not is_file:
        fit, check = chosen_apart(documents, context, 8192 if tokens is None else tokens)
        entries = tuple(TextEntry(each.name, each.sha256) for each in documents)
        texts = Texts(entries, fit, check, bos, sensitivity)
        if not (reuse and is_measured(model, texts, path)):
            measure_folder(model, texts, path, force=force, workers=workers, progress=progress)
        return path
    if path.suffix.lower() == ".json":
        return _calibrate_ranges(
            model, path, documents, tokens, context, workers, force=force, progress=progress
        )
    names = measured_matrices(model)
    ids = chosen(documents, context, tokens)
    sums, chunks = calibration.column_sums(
        model, ids, set(names.values()), context=context, bos=bos, workers=workers, progress=progress
    )
    by_name = {name: sums[role] for name, role in names.items()}
    datasets = [each.name for each in documents]
    file = imatrix_file(path.name, by_name, datasets=datasets, chunks=chunks, chunk_size=context)
    with partial_files(path.parent, (file,), force=force):
        return path


def _calibrate_ranges(
    model: Model,
    path: Path,
    documents: list[Document],
    tokens: int | None,
    context: int,
    workers: Workers,
    *,
    force: bool,
    progress: Progress | None,
) -> Path:
    ids = chosen(documents, context, 8192 if tokens is None else tokens)
    found = measure_ranges(model, ids, context=context, workers=workers, progress=progress)
    texts = [each.name for each in documents]
    file = ranges_file(path.name, found, identity_of(model), texts=texts, tokens=np.size(ids))
    with partial_files(path.parent, (file,), force=force):
        return path


def generate(
    source: str | PathLike[str] | Model,
    prompt: str | Sequence[int],
    count: int = 32,
    *,
    pictures: Sequence[NDArray[np.uint8]] = (),
    sounds: Sequence[NDArray[np.floating[Any]]] = (),
) -> Iterator[int]:
    """Continues a text with the likeliest tokens, to see whether a model works.

    Every token costs a pass over all weights. What attention needs of the tokens before stays in memory, and
    so do the weights as they are stored, if that takes at most half of the memory that is free.

    Args:
        source: A path, as `open_model` takes it, or an open model.
        prompt: The text, or its token ids. A text gets a bos token in front if the tokenizer asks for one.
        count: Most tokens to generate.
        pictures: Red, green, blue, uint8 of shape (height, width, 3), for a model that sees. The prompt is a
            text with tags where they stand, ``<|image_1|>`` (or ``<image>``), or else they come before it. It
            may have other special tokens, too.
        sounds: The same for ``<|audio_1|>``: one channel, 16,000 samples per second, from -1 to 1.

    Yields:
        Token ids; one that ends a generation is the last.

    Raises:
        InputError: Something is wrong with the model.
        UsageError: The prompt is empty, or its ids are not in the vocabulary; the model does not see.
    """
    model = opened(source)
    tokenizer = model.tokenizer
    ids, features = _with_senses(model, prompt, pictures, sounds)
    if not ids:
        raise UsageError("the prompt has no tokens", hint="give some text to continue")
    ends = set() if tokenizer is None else {*tokenizer.eos_ids, tokenizer.special_ids.get("eos")}
    generation = Generation(model)
    token: int | None = None
    for _ in range(count):
        scores = generation.start(ids, features) if token is None else generation.extend(token)
        token = int(scores.argmax())
        yield token
        if token in ends:
            return


def _with_senses(
    model: Model,
    prompt: str | Sequence[int],
    pictures: Sequence[NDArray[np.uint8]],
    sounds: Sequence[NDArray[np.floating[Any]]],
) -> tuple[list[int], Array | None]:
    """The ids of a prompt, negative where the features stand that come with them."""
    bos = bos_of(model)
    if not pictures and not sounds:
        return np.asarray(ids_of(model, prompt, bos)).reshape(-1).tolist(), None
    if not isinstance(prompt, str):
        raise UsageError("a prompt with pictures or sounds is a text, not token ids")

    def encoded(text: str) -> list[int]:
        return [*np.asarray(ids_of(model, text, bos, special=True)).tolist()]

    return make_prompt(model.senses, prompt, encoded, pictures, sounds)


def _documents(
    model: Model, text: str | Sequence[str] | ArrayLike | None, names: str | Sequence[str], bos: int | None
) -> list[Document]:
    """The texts of a calibration, by name, and their tokens.

    Raises:
        UsageError: There is no text, or there are more or fewer names than texts.
    """
    texts: list[Any]
    if text is None:
        found = supplied_texts()
        names, texts = [*found], [*found.values()]
    elif isinstance(text, (list, tuple)) and text and all(isinstance(each, str) for each in text):
        texts = [*text]
    else:
        texts = [text]
    names = [names] * len(texts) if isinstance(names, str) else [*names]
    if len(names) != len(texts):
        raise UsageError(f"{len(names)} names for {len(texts)} texts")
    documents = []
    for name, each in zip(names, texts, strict=True):
        ids = np.asarray(ids_of(model, each, bos)).reshape(-1)
        data = each.encode("utf-8", "surrogatepass") if isinstance(each, str) else ids.astype("<i8").tobytes()
        documents.append(Document(name, hashlib.sha256(data).hexdigest(), ids))
    return documents
