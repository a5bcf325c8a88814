"""The metadata of a GGUF file: every key and value that llama.cpp's converter writes for the family.

The order is the one that the route convert_hf_to_gguf.py, then llama-quantize, ends with, so that whole files
can be compared. Where phiconv writes another value on purpose, docs/gguf.md says so and why.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeAlias

from gguf import GGUFWriter, Metadata, gguf_writer
from gguf.constants import GGML_QUANT_VERSION, GGUFValueType, Keys
from gguf.utility import size_label

from phiconv.architectures import ARCHITECTURES
from phiconv.architectures.config import fits_float32
from phiconv.errors import printable
from phiconv.ir.model import as_text, title_of
from phiconv_formats.gguf.model_card import read_model_card
from phiconv_formats.gguf.scale_types import BF16_SCALES
from phiconv_formats.gguf.values import GgufValue
from phiconv_formats.gguf.vocabulary import name_for_runtime, tokenizer_metadata
from phiconv_formats.tokenizers.chat_templates import with_line_feeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from phiconv.architectures import Architecture
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Hyperparameters, Model, ModelCard
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["described", "file_metadata"]

_TEMPLATE = Keys.Tokenizer.CHAT_TEMPLATE
_U32, _F32, _STRING = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING


def _linear(hp: Hyperparameters) -> float | None:
    """By how much positions are divided, if they are."""
    scaling = hp.rope.scaling
    return scaling.factor if scaling is not None and scaling.kind == "linear" else None


_Value: TypeAlias = "tuple[GGUFValueType, Callable[[Hyperparameters], float | int | str | None]]"

_VALUES: dict[str, _Value] = {
    "context_length": (_U32, lambda hp: hp.max_position_embeddings),
    "embedding_length": (_U32, lambda hp: hp.hidden_size),
    "feed_forward_length": (_U32, lambda hp: hp.intermediate_size),
    "block_count": (_U32, lambda hp: hp.num_hidden_layers),
    "vocab_size": (_U32, lambda hp: hp.vocab_size),
    "attention.head_count": (_U32, lambda hp: hp.num_attention_heads),
    "attention.head_count_kv": (_U32, lambda hp: hp.num_key_value_heads),
    "attention.key_length": (_U32, lambda hp: hp.head_dim),
    "attention.value_length": (_U32, lambda hp: hp.head_dim),
    "attention.layer_norm_epsilon": (_F32, lambda hp: hp.norm_epsilon),
    "attention.layer_norm_rms_epsilon": (_F32, lambda hp: hp.norm_epsilon),
    # Zero is how the runtime tells Phi-4 from the others.
    "attention.sliding_window": (_U32, lambda hp: hp.sliding_window or 0),
    "expert_count": (_U32, lambda hp: hp.experts.count if hp.experts else None),
    "expert_used_count": (_U32, lambda hp: hp.experts.used if hp.experts else None),
    "rope.dimension_count": (_U32, lambda hp: hp.rope.dimensions),
    "rope.freq_base": (_F32, lambda hp: hp.rope.theta),
    "rope.scaling.original_context_length": (_U32, lambda hp: hp.rope.original_context),
    "rope.scaling.type": (_STRING, lambda hp: "linear" if _linear(hp) else None),
    "rope.scaling.factor": (_F32, _linear),
}
"""What the keys of an architecture say; a None is left out."""

_ASSUMED: dict[str, Callable[[Hyperparameters], float]] = {
    "attention.key_length": lambda hp: hp.hidden_size / hp.num_attention_heads,
    "attention.value_length": lambda hp: hp.hidden_size / hp.num_attention_heads,
    "rope.freq_base": lambda _: 10000,
}
"""What the runtime takes where a key is missing."""

# generation_config.json -> an attribute of gguf's Metadata, and the type that its key has.
_SAMPLING = {
    "top_k": ("sampling_top_k", int),
    "top_p": ("sampling_top_p", float),
    "min_p": ("sampling_min_p", float),
    "temperature": ("sampling_temp", float),
    "repetition_penalty": ("sampling_penalty_repeat", float),
}
_FITS: dict[type, Callable[[Any], bool]] = {
    int: lambda value: value == int(value) and -(1 << 31) <= value < 1 << 31,
    float: fits_float32,
}


def file_metadata(
    model: Model, tensors: Sequence[OutputTensor], file_type: int, importance: ImportanceMatrix | None = None
) -> tuple[list[tuple[str, GgufValue]], list[str]]:
    """Every key of the file, in order, and notes on what could not be taken over.

    Args:
        model: The model; another GGUF keeps its own keys, and a file of plain tensors gets only the last two
            and no architecture.
        tensors: What will be stored; their number of weights names the size class.
        file_type: llama.cpp's number of the recipe (``general.file_type``).
        importance: The importance matrix that the weights were quantized with, if any.
    """
    pairs: list[tuple[str, GgufValue]] = []
    notes: list[str] = []
    if model.format == "gguf":  # another GGUF keeps what it says, but for what is written below
        general = Keys.General
        ours = {general.QUANTIZATION_VERSION, general.FILE_TYPE, general.ALIGNMENT, BF16_SCALES}
        pairs += [(key, _kept(key, value)) for key, value in model.metadata.items() if key not in ours]
    elif model.architecture is not None and model.hyperparameters is not None:
        architecture, hp = ARCHITECTURES[model.architecture], model.hyperparameters
        name = architecture.gguf.name
        pairs.append((Keys.General.ARCHITECTURE, GgufValue(_STRING, name)))
        if hp.rope.long_factor:
            key = Keys.Rope.SCALING_ATTN_FACTOR.format(arch=name)
            pairs.append((key, GgufValue(_F32, hp.rope.short_mscale)))
        origin, notes = described(model, tensors)
        pairs += origin
        pairs += _sizes(architecture, hp)
        if model.tokenizer is not None:
            pairs += tokenizer_metadata(model.tokenizer, architecture=name, vocab_size=hp.vocab_size)
    pairs.append((Keys.General.QUANTIZATION_VERSION, GgufValue(_U32, GGML_QUANT_VERSION)))
    pairs.append((Keys.General.FILE_TYPE, GgufValue(_U32, file_type)))
    return pairs + (_importance(importance) if importance else []), notes


def _kept(key: str, value: Any) -> Any:
    """A value of another GGUF; a chat template gets the line ends that all have."""
    if key != _TEMPLATE and not key.startswith(f"{_TEMPLATE}."):
        return value
    text = value.value
    return GgufValue(_STRING, with_line_feeds(text)) if isinstance(text, str) else value


def _sizes(architecture: Architecture, hp: Hyperparameters) -> Iterator[tuple[str, GgufValue]]:
    """The hyperparameters that llama.cpp's converter writes for the family, in its order."""
    for entry in architecture.gguf.keys:
        key, may_be_missing = entry.removesuffix("?"), entry.endswith("?")
        kind, value_of = _VALUES[key]
        value = value_of(hp)
        if value is not None and not (may_be_missing and value == _ASSUMED[key](hp)):
            yield f"{architecture.gguf.name}.{key}", GgufValue(kind, value)


def _importance(importance: ImportanceMatrix) -> list[tuple[str, GgufValue]]:
    """What llama-quantize says of the importance matrix; of the file only the name, not where it was."""
    string = GGUFValueType.STRING
    pairs = [("quantize.imatrix.file", GgufValue(string, as_text(importance.path.name)))]
    if importance.datasets:
        pairs.append(("quantize.imatrix.dataset", GgufValue(string, importance.datasets[0])))
    pairs.append(("quantize.imatrix.entries_count", GgufValue(_U32, len(importance.weights))))
    if importance.chunks:
        pairs.append(("quantize.imatrix.chunks_count", GgufValue(_U32, importance.chunks)))
    return pairs


def described(
    model: Model, tensors: Sequence[OutputTensor], kind: str = "model"
) -> tuple[list[tuple[str, GgufValue]], list[str]]:
    """``general.*``: name, origin and licence, by the heuristics of the `gguf` package; and notes.

    Args:
        model: Whose name it is.
        tensors: What is in the file; their number of weights names the size class.
        kind: What the file is (``general.type``).
    """
    counts = _parameter_counts(tensors)
    metadata, notes = _describe(model.card, counts[0])
    if metadata.name is None:
        metadata.name = title_of(model.card.folder) if model.card.folder else "model"
    if model.tokenizer is not None:
        metadata.name = name_for_runtime(metadata.name, model.tokenizer)
    if metadata.size_label is None:
        metadata.size_label = size_label(*counts)
    collector = _collector()
    collector.add_type(kind)
    metadata.set_gguf_meta_model(collector)
    # The arrays among them (tags, languages) are lists of strings.
    array = GGUFValueType.ARRAY
    return [
        (key, GgufValue(value.type, value.value, _STRING if value.type == array else None))
        for key, value in collector.kv_data[0].items()
        if key != Keys.General.ARCHITECTURE
    ], notes


def _collector() -> GGUFWriter:
    """A writer that collects keys with their official names and types, and is never opened."""
    silence = logging.Filter("phiconv")  # it would log what kind of file it writes
    gguf_writer.logger.addFilter(silence)
    try:
        return GGUFWriter(None, "")
    finally:
        gguf_writer.logger.removeFilter(silence)


def _describe(card: ModelCard, parameters: int) -> tuple[Metadata, list[str]]:
    """What is known of the model's name and origin, and notes on what could not be read."""
    origin: dict[str, Any] = {}
    if isinstance(name := card.config.get("_name_or_path"), str) and name:
        origin["_name_or_path"] = name
    folder = card.folder.resolve() if card.folder else None
    readme, notes = read_model_card(folder)
    named = folder.with_name(title_of(folder)) if folder else None
    metadata = Metadata.apply_metadata_heuristic(Metadata(), readme, origin, named, parameters)
    for key, (attribute, kind) in _SAMPLING.items():
        value = card.generation.get(key)
        if type(value) not in {int, float}:
            continue
        if _FITS[kind](value):
            setattr(metadata, attribute, kind(value))
        else:
            notes.append(f"generation_config.json: a GGUF cannot hold {key} {printable(value, 40)}")
    return metadata, notes


def _parameter_counts(tensors: Sequence[OutputTensor]) -> tuple[int, int, int, int]:
    """What `gguf.size_label` takes: weights in all, outside experts, of one expert, and how many experts."""
    experts = [t.tensor for t in tensors if t.role is not None and t.role.name.startswith("experts_")]
    total = sum(t.tensor.size for t in tensors)
    shared = total - sum(t.size for t in experts)
    return total, shared, sum(t.size // t.shape[0] for t in experts), experts[0].shape[0] if experts else 0
