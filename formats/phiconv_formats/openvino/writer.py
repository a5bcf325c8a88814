"""An OpenVINO model, laid out in full before a weight is read.

A folder for OpenVINO GenAI, or the two files of the model alone.
"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv._version import __version__
from phiconv.errors import UsageError
from phiconv_formats.folders.companions import companion_files, json_bytes, model_config
from phiconv_formats.openvino.emitter import emit_decoder
from phiconv_formats.openvino.graph import ELEMENT_BITS, Graph
from phiconv_formats.openvino.packing import parts_of
from phiconv_formats.openvino.tokenizer_ir import tokenizer_ir
from phiconv_formats.openvino.tokenizer_patterns import odd_added
from phiconv_formats.openvino.weights import Weights
from phiconv_formats.shared.output import OutputFile, Package
from phiconv_formats.tokenizers.limits import added_token_notes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv.tokenization.tokenizer import Tokenizer
    from phiconv_formats.shared.output import OutputTensor, RuntimeSettings

__all__ = ["package"]

_MODEL = "openvino_model.xml"


def package(
    model: Model,
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    *,
    file_name: str,
    recipe: str,
    split_max_size: int | None = None,
    importance: ImportanceMatrix | None = None,  # noqa: ARG001 - nothing here weighs errors
    settings: RuntimeSettings | None = None,  # noqa: ARG001 - those of another runtime
) -> Package:
    """Lays the whole output out; see `phiconv_formats.Writer`. Without a file name it is a folder."""
    if split_max_size is not None:
        raise UsageError("--split-max-size means nothing for openvino")
    document_name = file_name or _MODEL
    stem = PurePath(document_name).stem
    graph = Graph()
    weights = Weights(graph, tensors, encodings)
    emit_decoder(graph, weights, model)
    document = graph.xml(_info(encodings, recipe))
    odd = odd_added(model.tokenizer) if model.tokenizer is not None and not file_name else ()
    files = {document_name: document, **({} if file_name else _other_files(model))}
    weights_file = OutputFile(f"{stem}.bin", graph.size, graph.chunks)
    small = [OutputFile(name, len(data), ((0, data),)) for name, data in files.items()]
    return Package(
        (*small, weights_file),
        weights.streams(weights_file.name),
        (*_runtime_notes(model), *added_token_notes("OpenVINO", odd), *_notes(tensors, encodings, recipe)),
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
    files = {"config.json": json_bytes(model_config(model)), **companion_files(model)}
    if model.tokenizer is not None:
        files |= tokenizer_ir(model.tokenizer)
        files["generation_config.json"] = json_bytes(_generation(model, model.tokenizer))
    return files


def _generation(model: Model, tokenizer: Tokenizer) -> dict[str, object]:
    """The generation settings, with the special tokens: without them GenAI knows no end of a text."""
    special: dict[str, object] = dict(tokenizer.special_ids)
    if tokenizer.eos_ids:
        special["eos"] = tokenizer.eos_ids[0] if len(tokenizer.eos_ids) == 1 else list(tokenizer.eos_ids)
    found = {f"{role}_token_id": special[role] for role in ("bos", "eos", "pad") if role in special}
    return found | dict(model.card.generation)


def _runtime_notes(model: Model) -> list[str]:
    """What OpenVINO is known to do wrong with this model."""
    hp, notes = model.hyperparameters, []
    if hp is None:
        return []
    if hp.sliding_window is not None and hp.sliding_window < hp.max_position_embeddings:
        window = f"the sliding window of {hp.sliding_window} tokens"
        notes.append(f"OpenVINO 2025.4 ignores {window} unless ATTENTION_BACKEND is SDPA; 2026.4 does not")
    rope, first = hp.rope, hp.rope.original_context
    same = (rope.short_factor, rope.short_mscale) == (rope.long_factor, rope.long_mscale)
    if rope.long_factor and not same and hp.max_position_embeddings > first:
        notes.append(
            f"a prompt of more than {first} tokens that is computed in chunks, as model servers do, has the "
            "short rotary factors in its first ones; give --long-context for such texts"
        )
    return notes


def _notes(tensors: Sequence[OutputTensor], encodings: Sequence[Encoding], recipe: str) -> list[str]:
    """How the matrices of the layers are stored, where not all are as the recipe's name says."""
    counts: Counter[str] = Counter()
    bits = set()
    for tensor, encoding in zip(tensors, encodings, strict=True):
        shape, role = tensor.tensor.shape, tensor.role
        if len(shape) < 2 or role is None or role.layer is None or role.name == "router":
            continue
        kind = parts_of(encoding, shape)[0].type
        bits.add(ELEMENT_BITS[kind])
        groups = f"groups of {encoding.block_size}" if encoding.block_size != shape[-1] else "whole rows"
        counts[kind if isinstance(encoding, ir.FloatEncoding) else f"{kind} in {groups}"] += 1
    if len(counts) < 2 and (4 in bits or not recipe.startswith(("int4", "nf4", "mxfp4"))):
        return []
    found = ", ".join(f"{count} as {kind}" for kind, count in counts.most_common())
    return [f"matrices of the layers: {found}; rows do not divide into other groups, or options say so"]
