"""A GGUF file as a checkpoint: its weights under the names that Hugging Face checkpoints have.

A file of an architecture that phiconv does not know stays a file of plain tensors. So does one that is no
whole model (an adapter, an importance matrix, a vocabulary alone), or that holds tensors of a type that
phiconv cannot decode: all of them can be looked at and copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf.constants import Keys

from phiconv import ir
from phiconv.architectures.architecture import full_name
from phiconv.errors import UsageError
from phiconv.ir.findings import keeping
from phiconv.ir.interleaving import halves_in_order
from phiconv.ir.model import Checkpoint, ModelCard
from phiconv_formats.gguf.config import generation_config, model_config
from phiconv_formats.gguf.entries import Entries
from phiconv_formats.gguf.left_out import supplied_notes
from phiconv_formats.gguf.names import ARCHITECTURE_OF_NAME, LLAMA3_FACTORS, parse_name
from phiconv_formats.gguf.reader import open_gguf
from phiconv_formats.gguf.vocabulary_reader import read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from phiconv.architectures import Architecture
    from phiconv_formats.gguf.names import Stored
    from phiconv_formats.gguf.reader import GgufFile
    from phiconv_formats.gguf.values import GgufValue

__all__ = ["open_checkpoint"]

_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight", LLAMA3_FACTORS)
"""Tensors that are hyperparameters."""


def open_checkpoint(path: Path, companions: Path | None = None) -> Checkpoint:
    """Opens a GGUF file, or all files of a split one.

    Raises:
        MissingFileError, MalformedFileError: See `reader.open_gguf`.
        ConfigError: A key is missing or has a wrong value, in a file of an architecture that phiconv knows.
        UsageError: ``companions`` for a file that says all itself.
    """
    if companions is not None:
        raise UsageError("--config: a GGUF has its configuration and tokenizer itself", path=path)
    with keeping(lambda found: found and _plain(path, found.stored, found.metadata)):
        file = open_gguf(path)
    plain, architecture = _plain(path, file.tensors, file.metadata), _architecture(file)
    if architecture is None:
        return plain
    with keeping(lambda _: plain):
        return _model(path, file, architecture)


def _plain(path: Path, tensors: Mapping[str, ir.Tensor], metadata: Mapping[str, GgufValue]) -> Checkpoint:
    """The file as one of plain tensors; its tokenizer is there to look at."""
    entries = Entries(metadata, path)
    return Checkpoint(
        path,
        "gguf",
        tensors,
        read_tokenizer=lambda vocab_size: read_vocabulary(entries, vocab_size),
        metadata=metadata,
    )


def _model(path: Path, file: GgufFile, architecture: Architecture) -> Checkpoint:
    """The file as a model of this family."""
    entries = Entries(file.metadata, file.path, architecture.gguf.name)
    config = model_config(entries, file.tensors, architecture)
    if (name := entries.text(Keys.General.NAME)) is not None:
        config["_name_or_path"] = name
    return Checkpoint(
        path=path,
        format="gguf",
        stored=file.tensors,
        config=config,
        config_path=file.path,
        read_tokenizer=lambda vocab_size: read_vocabulary(entries, vocab_size),
        card=ModelCard(None, config, generation_config(entries), supplied=supplied_notes(entries, config)),
        metadata=file.metadata,
        tensors=_checkpoint_names(file.tensors, architecture, config),
    )


def _architecture(file: GgufFile) -> Architecture | None:
    """The architecture, where the file is a whole model that phiconv knows."""
    entries = Entries(file.metadata, file.path)
    architecture = ARCHITECTURE_OF_NAME.get(entries.text(Keys.General.ARCHITECTURE) or "")
    whole = bool(file.tensors) and (entries.text(Keys.General.TYPE) or "model") == "model"
    decoded = not any(isinstance(t.encoding, ir.RawEncoding) for t in file.tensors.values())
    return architecture if whole and decoded else None


def _checkpoint_names(
    stored: Mapping[str, ir.Tensor], architecture: Architecture, config: Mapping[str, Any]
) -> dict[str, ir.Tensor]:
    """The weights under the checkpoint's names; one that has none there keeps its own."""
    result: dict[str, ir.Tensor] = {}
    for name, tensor in stored.items():
        found = parse_name(name, architecture)
        if found is not None and (views := _views(found, tensor, architecture, config, stored)):
            result |= {
                f"{full_name(found.roles[0], path, found.layer)}.{found.part}": view
                for path, view in views.items()
            }
        elif name not in _FACTORS:
            result[name] = tensor
    return result


def _views(
    found: Stored,
    tensor: ir.Tensor,
    architecture: Architecture,
    config: Mapping[str, Any],
    stored: Mapping[str, ir.Tensor],
) -> dict[str, ir.Tensor]:
    """The checkpoint's tensors that a stored one holds, by their paths; {} if it is none of its weights."""
    roles = found.roles
    if len(roles) == 1:
        heads = _heads(config).get(roles[0]) if architecture.gguf.neighbours else None
        if heads is not None and len(tensor.shape) <= 2 and heads > 0 and tensor.rows % (2 * heads) == 0:
            tensor = halves_in_order(tensor, heads)
        return {architecture.apart(roles[0]): tensor}
    if architecture.group(roles[0]) == roles:
        return {architecture.names[roles[0]]: tensor}
    # llama.cpp's loaders take queries, keys and values fused or split, whatever the checkpoint does.
    if f"blk.{found.layer}.{roles[0]}.{found.part}" in stored:
        return {}
    return {architecture.apart(role): view for role, view in _unfuse(tensor, config).items()}


def _heads(config: Mapping[str, Any]) -> dict[str, int]:
    heads = config["num_attention_heads"]
    return {"attn_q": heads, "attn_k": config.get("num_key_value_heads", heads)}


def _unfuse(tensor: ir.Tensor, config: Mapping[str, Any]) -> dict[str, ir.Tensor]:
    """Queries, keys and values of one stored matrix or bias; {} if it has not their number of rows."""
    heads, kv_heads = _heads(config).values()
    groups = heads + 2 * kv_heads
    if len(tensor.shape) > 2 or groups == 0 or tensor.rows % groups:
        return {}
    head_dim = tensor.rows // groups
    first, second = heads * head_dim, (heads + kv_heads) * head_dim
    ends = {"attn_q": (0, first), "attn_k": (first, second), "attn_v": (second, tensor.rows)}
    return {role: tensor.slice_rows(start, stop) for role, (start, stop) in ends.items()}
