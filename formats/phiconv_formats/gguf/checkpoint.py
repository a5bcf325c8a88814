"""A GGUF file as a checkpoint: its weights under the names that Hugging Face checkpoints have.

A file of an architecture that phiconv does not know stays a file of plain tensors. So does one that is no
whole model (an adapter, an importance matrix), or that holds tensors of a type that phiconv cannot decode:
all of them can be looked at and copied.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gguf.constants import Keys

from phiconv import ir
from phiconv.ir.model import Checkpoint, ModelCard
from phiconv_formats.gguf.config import generation_config, model_config
from phiconv_formats.gguf.entries import Entries
from phiconv_formats.gguf.names import ARCHITECTURE_NAMES
from phiconv_formats.gguf.reader import open_gguf
from phiconv_formats.gguf.vocabulary_reader import read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from phiconv_formats.gguf.reader import GgufFile

__all__ = ["open_checkpoint"]

_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_QKV = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

# llama.cpp's name in a layer -> that of the checkpoint, by llama.cpp's architecture. Its loaders take
# queries, keys and values fused or split; phi2 and phimoe checkpoints have them split only (see `_unfuse`).
_INSIDE = {
    "phi2": {
        "attn_norm": "input_layernorm",
        **_QKV,
        "attn_output": "self_attn.dense",
        "ffn_up": "mlp.fc1",
        "ffn_down": "mlp.fc2",
    },
    "phi3": {
        **_NORMS,
        **_QKV,
        "attn_qkv": "self_attn.qkv_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_up": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
    },
    "phimoe": {
        **_NORMS,
        **_QKV,
        "attn_output": "self_attn.o_proj",
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": "block_sparse_moe.switch_mlp.gate_proj",
        "ffn_up_exps": "block_sparse_moe.switch_mlp.up_proj",
        "ffn_down_exps": "block_sparse_moe.switch_mlp.down_proj",
    },
}
_NAME = re.compile(r"(?:blk\.([0-9]+)\.)?([a-z_]+)\.(weight|bias)")
_HYPERPARAMETERS = ("rope_factors_long.weight", "rope_factors_short.weight")


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a GGUF file, or all files of a split one.

    Raises:
        MissingFileError, MalformedFileError: See `reader.open_gguf`.
        ConfigError: A key is missing or has a wrong value, in a file of an architecture that phiconv knows.
    """
    file = open_gguf(path)
    architecture = _architecture(file)
    if architecture is None:
        return Checkpoint(path, "gguf", file.tensors, metadata=file.metadata)
    entries = Entries(file.metadata, file.path, architecture)
    config = model_config(entries, file.tensors)
    if (name := entries.text(Keys.General.NAME)) is not None:
        config["_name_or_path"] = name
    return Checkpoint(
        path=path,
        format="gguf",
        stored=file.tensors,
        config=config,
        config_path=file.path,
        read_tokenizer=lambda vocab_size: read_vocabulary(entries, vocab_size),
        card=ModelCard(None, config, generation_config(entries)),
        metadata=file.metadata,
        tensors=_checkpoint_names(file.tensors, architecture, config),
    )


def _architecture(file: GgufFile) -> str | None:
    """llama.cpp's name of the architecture, where the file is a whole model that phiconv knows."""
    entries = Entries(file.metadata, file.path)
    architecture = entries.text(Keys.General.ARCHITECTURE)
    known = architecture in ARCHITECTURE_NAMES.values()
    whole = (entries.text(Keys.General.TYPE) or "model") == "model"
    decoded = not any(isinstance(t.encoding, ir.RawEncoding) for t in file.tensors.values())
    return architecture if known and whole and decoded else None


def _checkpoint_names(
    stored: Mapping[str, ir.Tensor], architecture: str, config: Mapping[str, Any]
) -> dict[str, ir.Tensor]:
    """The weights under the checkpoint's names; one that has none there keeps its own."""
    inside, result = _INSIDE[architecture], {}
    outside = _OUTSIDE | ({"output_norm": "model.final_layernorm"} if architecture == "phi2" else {})
    for name, tensor in stored.items():
        match = _NAME.fullmatch(name)
        layer, base, part = match.groups() if match else (None, "", "")
        if layer is None and base in outside:
            result[f"{outside[base]}.{part}"] = tensor
        elif layer is not None and base in inside:
            result[f"model.layers.{layer}.{inside[base]}.{part}"] = tensor
        elif layer is not None and _fused(name, stored) and (parts := _unfuse(tensor, config)):
            result |= {f"model.layers.{layer}.{_QKV[role]}.{part}": view for role, view in parts.items()}
        elif name not in _HYPERPARAMETERS:
            result[name] = tensor
    return result


def _fused(name: str, stored: Mapping[str, ir.Tensor]) -> bool:
    """Whether a tensor holds queries, keys and values that are nowhere else."""
    return ".attn_qkv." in name and name.replace("attn_qkv", "attn_q") not in stored


def _unfuse(tensor: ir.Tensor, config: Mapping[str, Any]) -> dict[str, ir.Tensor]:
    """Queries, keys and values of one stored matrix or bias; {} if it has not their number of rows."""
    heads = config["num_attention_heads"]
    groups = heads + 2 * config.get("num_key_value_heads", heads)
    if len(tensor.shape) > 2 or groups == 0 or tensor.rows % groups:
        return {}
    head_dim, kv_heads = tensor.rows // groups, (groups - heads) // 2
    first, second = heads * head_dim, (heads + kv_heads) * head_dim
    ends = {"attn_q": (0, first), "attn_k": (first, second), "attn_v": (second, tensor.rows)}
    return {role: tensor.slice_rows(start, stop) for role, (start, stop) in ends.items()}
