"""An OpenVINO model, laid out in full before a weight is read.

A folder for OpenVINO GenAI, or the two files of the model alone.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv._version import __version__
from phiconv.errors import UsageError
from phiconv_formats.companions import companion_files, json_bytes
from phiconv_formats.openvino.emitter import emit_decoder
from phiconv_formats.openvino.graph import Graph
from phiconv_formats.openvino.tokenizer_ir import tokenizer_ir
from phiconv_formats.openvino.weights import Weights
from phiconv_formats.output import OutputFile, Package

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from phiconv.importance import ImportanceMatrix
    from phiconv.ir import Encoding
    from phiconv.model import Model
    from phiconv.tokenizer import Tokenizer
    from phiconv_formats.output import OutputTensor

__all__ = ["package"]

_MODEL = "openvino_model"

# What belongs to another machine, or to remote code.
_DROPPED = ("_name_or_path", "auto_map", "quantization", "quantization_config")


def package(
    model: Model,
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    *,
    file_name: str,
    recipe: str,
    split_max_size: int | None = None,
    importance: ImportanceMatrix | None = None,  # noqa: ARG001 - nothing here weighs errors
) -> Package:
    """Lays the whole output out; see `phiconv_formats.Writer`. Without a file name it is a folder."""
    if split_max_size is not None:
        raise UsageError("--split-max-size means nothing for openvino")
    stem = PurePath(file_name).stem if file_name else _MODEL
    graph = Graph()
    weights = Weights(graph, tensors, encodings)
    emit_decoder(graph, weights, model)
    document = graph.xml(_info(encodings, recipe))
    files = {f"{stem}.xml": document, **({} if file_name else _other_files(model))}
    weights_file = OutputFile(f"{stem}.bin", graph.size, graph.chunks)
    small = [OutputFile(name, len(data), ((0, data),)) for name, data in files.items()]
    return Package(
        (*small, weights_file),
        weights.streams(weights_file.name),
        tuple(_notes(tensors, encodings)),
        own_folder=not file_name,
    )


def _info(encodings: Sequence[Encoding], recipe: str) -> dict[str, str | Mapping[str, str]]:
    """What OpenVINO reads about how to run it, and people about how it was made."""
    options = {"ACTIVATIONS_SCALE_FACTOR": "8.0"}  # keeps float16 activations on a GPU within their range
    if all(isinstance(encoding, ir.FloatEncoding) for encoding in encodings):
        options["KV_CACHE_PRECISION"] = "f16"
    return {"runtime_options": options, "phiconv": {"version": __version__, "recipe": recipe}}


def _other_files(model: Model) -> dict[str, bytes]:
    """What stands around the model in a folder."""
    config = {key: value for key, value in model.card.config.items() if key not in _DROPPED}
    files = {"config.json": json_bytes(config), **companion_files(model)}
    if model.tokenizer is not None:
        files |= tokenizer_ir(model.tokenizer)
        files["generation_config.json"] = json_bytes(_generation(model, model.tokenizer))
    return files


def _generation(model: Model, tokenizer: Tokenizer) -> dict[str, object]:
    """The generation settings, with the special tokens: without them GenAI knows no end, or refuses to run."""
    special: dict[str, object] = dict(tokenizer.special_ids)
    if tokenizer.eos_ids:
        special["eos"] = tokenizer.eos_ids[0] if len(tokenizer.eos_ids) == 1 else list(tokenizer.eos_ids)
    found = {f"{role}_token_id": special[role] for role in ("bos", "eos", "pad") if role in special}
    return found | dict(model.card.generation)


def _notes(tensors: Sequence[OutputTensor], encodings: Sequence[Encoding]) -> list[str]:
    """Matrices that are stored otherwise than most, because their rows do not divide into groups."""
    sizes = {
        (e.block_size, t.tensor.columns)
        for t, e in zip(tensors, encodings, strict=True)
        if not isinstance(e, ir.FloatEncoding) and e.block_size != t.tensor.columns
    }
    usual = max((size for size, _ in sizes), default=0)
    notes = [
        f"rows of {columns} weights do not divide by {usual}: they are cut into groups of {size}"
        for size, columns in sorted(sizes)
        if columns % usual
    ]
    whole = {
        t.tensor.columns
        for t, e in zip(tensors, encodings, strict=True)
        if usual and e.block_size == t.tensor.columns and t.tensor.columns % usual and len(t.tensor.shape) > 1
    }
    return notes + [f"rows of {c} weights do not divide by {usual}: those have 8 bits" for c in sorted(whole)]
