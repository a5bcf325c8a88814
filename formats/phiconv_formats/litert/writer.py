"""A LiteRT model, laid out in full before a weight is read: one file for LiteRT-LM, or the graph alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv._version import __version__
from phiconv.errors import UsageError
from phiconv_formats.litert.emitter import emit_decoder
from phiconv_formats.litert.graph import Graph
from phiconv_formats.litert.rotary import Tables
from phiconv_formats.litert.targets import TARGETS, context_of
from phiconv_formats.litert.weights import Weights
from phiconv_formats.shared.output import OutputFile, Package, RuntimeSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["package"]


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
    laid = graph.finish(f"phiconv {__version__}, {recipe}", {})
    start = 0
    chunks = ((start, laid.flatbuffer), *((start + at, data) for at, data in laid.chunks))
    file = OutputFile(file_name, start + laid.size, chunks)
    return Package((file,), weights.streams(file_name, start, laid))
