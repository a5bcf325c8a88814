"""An OpenVINO model, laid out in full before a weight is read.

A folder for OpenVINO GenAI, or the two files of the model alone. A model that sees is several graphs, in a
folder.
"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv._version import __version__
from phiconv.errors import UsageError
from phiconv_formats.folders.companions import companion_files, json_bytes, model_config
from phiconv_formats.openvino.graph import ELEMENT_BITS
from phiconv_formats.openvino.names import MODEL
from phiconv_formats.openvino.packing import parts_of
from phiconv_formats.openvino.parts import parts_of_model, streams
from phiconv_formats.openvino.tokenizer_ir import tokenizer_ir
from phiconv_formats.openvino.tokenizer_patterns import odd_added
from phiconv_formats.openvino.vision import check_senses, files_of_senses
from phiconv_formats.shared.output import OutputFile, Package
from phiconv_formats.tokenizers.limits import added_token_notes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv.tokenization.tokenizer import Tokenizer
    from phiconv_formats.openvino.parts import Part
    from phiconv_formats.shared.output import OutputTensor, RuntimeSettings

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
    settings: RuntimeSettings | None = None,  # noqa: ARG001 - those of another runtime
) -> Package:
    """Lays the whole output out; see `phiconv_formats.Writer`. Without a file name it is a folder."""
    if split_max_size is not None:
        raise UsageError("--split-max-size means nothing for openvino")
    check_senses(model)
    stem = PurePath(file_name).stem if file_name else MODEL
    parts = parts_of_model(model, tensors, encodings, stem)
    # The document of a single model has the very name that was asked for, whatever its suffix looks like.
    documents = {file_name or f"{part.stem}.xml": part.graph.xml(_info(part, recipe)) for part in parts}
    odd = odd_added(model.tokenizer) if model.tokenizer is not None and not file_name else ()
    files = {**documents, **({} if file_name else _other_files(model))}
    small = [OutputFile(name, len(data), ((0, data),)) for name, data in files.items()]
    weights = [OutputFile(f"{part.stem}.bin", part.graph.size, part.graph.chunks) for part in parts]
    return Package(
        (*small, *weights),
        streams(parts, tensors),
        (*_runtime_notes(model), *added_token_notes("OpenVINO", odd), *_notes(tensors, encodings, recipe)),
        own_folder=not file_name,
    )


def _info(part: Part, recipe: str) -> dict[str, str | Mapping[str, str]]:
    """What OpenVINO reads about how to run it, and people about how it was made."""
    own: dict[str, str | Mapping[str, str]] = {"phiconv": {"version": __version__, "recipe": recipe}}
    if not part.is_decoder:
        return own
    options = {"ACTIVATIONS_SCALE_FACTOR": "8.0"}  # keeps float16 activations on a GPU within their range
    if part.weights.all_floats:
        options["KV_CACHE_PRECISION"] = "f16"
    return {"runtime_options": options, **own}


def _other_files(model: Model) -> dict[str, bytes]:
    """What stands around the model in a folder."""
    files = {"config.json": json_bytes(model_config(model)), **companion_files(model)}
    if model.senses is not None and model.senses.vision is not None:
        files |= files_of_senses(model, model.senses, model.senses.vision)
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
        if len(shape) < 2 or role is None or role.layer is None or role.name == "router" or tensor.in_encoder:
            continue
        kind = parts_of(encoding, shape)[0].type
        bits.add(ELEMENT_BITS[kind])
        groups = f"groups of {encoding.block_size}" if encoding.block_size != shape[-1] else "whole rows"
        counts[kind if isinstance(encoding, ir.FloatEncoding) else f"{kind} in {groups}"] += 1
    if len(counts) < 2 and (4 in bits or not recipe.startswith(("int4", "nf4", "mxfp4"))):
        return []
    found = ", ".join(f"{count} as {kind}" for kind, count in counts.most_common())
    return [f"matrices of the layers: {found}; rows do not divide into other groups, or options say so"]
