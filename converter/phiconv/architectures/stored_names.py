"""Names of tensors that are not a checkpoint's: what a wrapper left in them, or another tool's quantization.

Training wraps a model, and saves it with the wrappers' names in front of its own or inside. These are taken
off where the result is a whole model, so that nothing is guessed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from phiconv.errors import MalformedFileError, UnsupportedModelError, printable
from phiconv.ir import RawEncoding

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from phiconv.architectures.architecture import Architecture
    from phiconv.errors import InputError
    from phiconv.ir import Tensor

__all__ = ["refusal", "unwrapped"]

# PyTorch's FSDP, activation checkpointing and compile name their wrappers so, at any place; PEFT its copies.
_INSIDE = re.compile(
    r"(?<![^.])(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|_forward_module)\."
)
_TRAINED_COPY = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")
_REPLACED = ".original_module."

# How tensors of quantized checkpoints end, and who writes such.
_QUANTIZED = (
    (re.compile(r"\.qweight$"), "GPTQ or AWQ"),
    (re.compile(r"\.weight_packed$"), "compressed-tensors"),
    (re.compile(r"\.(?:absmax|SCB|quant_map)$|\.quant_state\."), "bitsandbytes"),
    (re.compile(r"\.weight_scale(?:_inv)?$"), "FP8 or INT8"),
    (re.compile(r"\.W_q$"), "HQQ"),
    (re.compile(r"\.weight\._data$"), "Quanto"),
    (re.compile(r"_blocks$"), "MXFP4"),
    (re.compile(r"\.codebooks$"), "AQLM"),
)
_LORA = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B)\b|\.lora_magnitude_vector\b")


def unwrapped(names: Collection[str], architecture: Architecture) -> dict[str, str]:
    """The names without what wrappers left, by the stored ones; {} if nothing is left, or two become one.

    Args:
        names: As they are stored.
        architecture: The name of its embedding shows what stands in front of all names.
    """
    copies = {name for name in names if _TRAINED_COPY.search(name)}
    kept = [name for name in names if not (copies and _REPLACED in name)]
    clean = {name: _TRAINED_COPY.sub("", _INSIDE.sub("", name)) for name in kept}
    root, _, inner = f"{architecture.names['token_embedding']}.weight".partition(".")
    prefix = _before(f"{root}.{inner}", clean.values())
    missing = ""
    if prefix is None:  # without its head a model is saved by itself, and its names lack the root
        prefix, missing = _before(inner, clean.values()), f"{root}."
    if prefix is None:
        return {}
    bare = {old: name.removeprefix(prefix) for old, name in clean.items()}
    result = {old: name if name.startswith("lm_head.") else missing + name for old, name in bare.items()}
    same = len(result) == len(names) and all(old == new for old, new in result.items())
    return {} if same or len({*result.values()}) < len(result) else result


def _before(end: str, names: Collection[str]) -> str | None:
    """What stands before this name in the first one that ends with it."""
    found = (name for name in names if name == end or name.endswith(f".{end}"))
    return next((name.removesuffix(end) for name in found), None)


def refusal(stored: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> InputError | None:
    """What these tensors are, where they are of a kind that is no model's; None if they are not."""
    empty = [name for name, tensor in stored.items() if not tensor.size]
    if empty:
        return MalformedFileError(
            f"{len(empty)} tensors are empty, as where DeepSpeed ZeRO-3 saves a part for each process",
            path=path,
            at=f"tensor {empty[0]}",
            hint="gather the weights: zero_to_fp32.py",
        )
    lora = next((name for name in stored if _LORA.search(name)), None)
    if lora is not None:
        return UnsupportedModelError(
            "this is a LoRA adapter, or a model that one is still apart in",
            path=path,
            at=f"tensor {lora}",
            hint="an adapter is given by its folder, as --lora",
        )
    for pattern, usual in _QUANTIZED:
        found = next((name for name in stored if pattern.search(name)), None)
        if found is not None:
            return _quantized(f"tensor {found}", _method(config) or usual, path)
    codes = next((name for name, t in stored.items() if isinstance(t.encoding, RawEncoding)), None)
    return _quantized(f"tensor {codes}", _method(config), path) if codes and _method(config) else None


def _method(config: Mapping[str, Any]) -> str:
    """Who has quantized the model, as config.json has it; "" where it does not say."""
    said = config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, dict) else None
    return printable(method, 40) if isinstance(method, str) else ""


def _quantized(at: str, who: str, path: Path) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"is quantized already, by {who}", path=path, at=at, hint="take the unquantized model"
    )
