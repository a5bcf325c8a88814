"""A LiteRT model, laid out in full before a weight is read: one file for LiteRT-LM, or the graph alone."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from phiconv._version import __version__
from phiconv.errors import MissingFileError, UsageError
from phiconv_formats.folders.companions import (
    companion_files,
    json_bytes,
    made_tokenizer_files,
    model_config,
)
from phiconv_formats.litert.container import (
    LLM_METADATA,
    MODEL,
    TOKENIZER,
    Section,
    header,
    stored_zlib,
)
from phiconv_formats.litert.emitter import emit_decoder
from phiconv_formats.litert.graph import Graph
from phiconv_formats.litert.metadata import llm_metadata
from phiconv_formats.litert.rotary import Tables
from phiconv_formats.litert.targets import TARGETS, context_of
from phiconv_formats.litert.weights import Weights
from phiconv_formats.shared.output import OutputFile, Package, RuntimeSettings
from phiconv_formats.tokenizers.ends import stop_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv_formats.litert.targets import Target
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["KEPT", "NOTE", "package"]

NOTE = "phiconv/"
"""What the names of files begin with that are kept in the graph, for phiconv to read it again."""

KEPT = ("tokenizer_config.json", "generation_config.json")
"""Of those beside the weights; config.json is always there, and the tokenizer has a section of its own."""

_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_GRAPH = ".tflite"


def package(
    model: Model,
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    *,
    file_name: str,
    recipe: str,
    split_max_size: int | None = None,
    importance: ImportanceMatrix | None = None,  # noqa: ARG001 - nothing here weighs errors
    settings: RuntimeSettings | None = None,
) -> Package:
    """Lays the whole output out; see `phiconv_formats.Writer`.

    Raises:
        UsageError: A context that is longer than the model's.
        MissingFileError: No tokenizer, where the file needs one.
    """
    if split_max_size is not None:
        raise UsageError("--split-max-size means nothing for litert: all is in one file")
    assert model.hyperparameters is not None  # noqa: S101 - names.output_tensors has looked
    settings = settings or RuntimeSettings()
    target = TARGETS[settings.target or next(iter(TARGETS))]
    context = context_of(model, settings.context)
    graph = Graph()
    weights = Weights(graph, tensors, encodings)
    tables = Tables(graph, model.hyperparameters.rope, model.hyperparameters.head_dim, context)
    emit_decoder(graph, weights, tables, model, target.steps(context), target.norm_scale)
    alone = file_name.lower().endswith(_GRAPH)
    if not alone and model.tokenizer is None:
        raise MissingFileError(
            "no tokenizer beside the weights, and a .litertlm has one",
            path=model.path,
            hint="name its folder with --config, or write the graph alone, to a .tflite",
        )
    companions = {} if alone else _companions(model)
    kept = {name: companions[name] for name in KEPT if name in companions}
    notes = {NOTE + name: data for name, data in ({_CONFIG: json_bytes(model_config(model))} | kept).items()}
    laid = graph.finish(f"phiconv {__version__}, {recipe}", notes)
    front, start = ([], 0) if alone else _front(model, companions[_TOKENIZER], laid.size, context, target)
    chunks = (*front, (start, laid.flatbuffer), *((start + at, data) for at, data in laid.chunks))
    file = OutputFile(file_name, start + laid.size, chunks)
    return Package(
        (file,),
        weights.streams(file_name, start, laid),
        (*_runtime_notes(model, context, alone=alone), *_notes(tensors, encodings, recipe)),
    )


def _front(
    model: Model, tokenizer: bytes, size: int, context: int, target: Target
) -> tuple[list[tuple[int, bytes]], int]:
    """What stands before the graph in the file, with its offsets, and where the graph begins."""
    parts = {LLM_METADATA: llm_metadata(model, context), TOKENIZER: stored_zlib(tokenizer)}
    items = {"model_type": "tf_lite_prefill_decode"}
    if target.backends:
        items["backend_constraint"] = target.backends
    sections = [Section(kind, len(data), {}) for kind, data in parts.items()]
    top, places = header([*sections, Section(MODEL, size, items)])
    return [(0, top), *zip(places[:-1], parts.values(), strict=True)], places[-1]


def _companions(model: Model) -> dict[str, bytes]:
    """The source's own files, and a tokenizer.json made of what is known where it has none.

    That file's ids are the source's; SentencePiece's says nothing of tokens that were added later.
    """
    files = companion_files(model)
    return files if _TOKENIZER in files else made_tokenizer_files(model) | files


def _runtime_notes(model: Model, context: int, *, alone: bool) -> list[str]:
    """What is to be known of this file."""
    hp = model.hyperparameters
    assert hp is not None  # noqa: S101 - names.output_tensors has looked
    notes = [f"a text has room for {context} tokens; --context says otherwise"]
    rope = hp.rope
    if rope.long_factor and rope.short_factor != rope.long_factor:
        kind = "long" if rope.is_long(context) else "short"
        notes.append(f"LongRoPE's {kind} factors count at every length, as for a text of {context} tokens")
    if not alone and model.tokenizer is not None and not stop_ids(model.tokenizer):
        notes.append("no token ends a text, as far as the tokenizer says: LiteRT-LM opens no session with it")
    return notes


def _notes(tensors: Sequence[OutputTensor], encodings: Sequence[Encoding], recipe: str) -> list[str]:
    """How the matrices of the layers are stored, where not all are as the recipe's name says."""
    counts = Counter(
        encoding.name
        for tensor, encoding in zip(tensors, encodings, strict=True)
        if tensor.role is not None and tensor.role.layer is not None and len(tensor.tensor.shape) > 1
    )
    kinds = {re.sub(r"_g\d+$", "", name) for name in counts}
    if len(kinds) < 2:
        return []
    found = ", ".join(f"{count} as {name}" for name, count in counts.most_common())
    return [
        f"matrices of the layers: {found}; not all rows divide into the blocks of {recipe}, or options say so"
    ]
