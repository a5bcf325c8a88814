"""The hyperparameters of a GGUF file, as the config.json object of the same model on the Hugging Face hub.

So one parser per architecture reads both, whatever file a model comes from.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf.constants import Keys

from phiconv.errors import ConfigError, MalformedFileError
from phiconv.ir import FloatEncoding
from phiconv.ir.rope import Rope
from phiconv_formats.gguf.entries import shortest
from phiconv_formats.gguf.left_out import supplied_window
from phiconv_formats.gguf.llama3_factors import find_llama3
from phiconv_formats.gguf.names import LLAMA3_FACTORS, parse_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.architectures import Architecture
    from phiconv.ir import Tensor
    from phiconv_formats.gguf.entries import Entries

__all__ = ["generation_config", "model_config"]

# Keys of config.json and of GGUF: those that must be there, and those that may be missing.
_NEEDED = {
    "hidden_size": Keys.LLM.EMBEDDING_LENGTH,
    "intermediate_size": Keys.LLM.FEED_FORWARD_LENGTH,
    "num_hidden_layers": Keys.LLM.BLOCK_COUNT,
    "num_attention_heads": Keys.Attention.HEAD_COUNT,
    "max_position_embeddings": Keys.LLM.CONTEXT_LENGTH,
}
_OPTIONAL = {
    "num_key_value_heads": Keys.Attention.HEAD_COUNT_KV,
    "head_dim": Keys.Attention.KEY_LENGTH,
    "bos_token_id": Keys.Tokenizer.BOS_ID,
    "eos_token_id": Keys.Tokenizer.EOS_ID,
    "pad_token_id": Keys.Tokenizer.PAD_ID,
}
_EXPERTS = {
    "num_local_experts": Keys.LLM.EXPERT_COUNT,
    "num_experts_per_tok": Keys.LLM.EXPERT_USED_COUNT,
}
_EPSILONS = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")

# generation_config.json -> the file's key.
_SAMPLING_INTEGERS = {"top_k": Keys.General.SAMPLING_TOP_K}
_SAMPLING_NUMBERS = {
    "top_p": Keys.General.SAMPLING_TOP_P,
    "min_p": Keys.General.SAMPLING_MIN_P,
    "temperature": Keys.General.SAMPLING_TEMP,
    "repetition_penalty": Keys.General.SAMPLING_PENALTY_REPEAT,
}

_ORIGINAL = "original_max_position_embeddings"
_MOST_FACTORS = 1 << 16  # half of the rotated dimensions of a head; the Phi models have 16 to 64


def model_config(
    entries: Entries, tensors: Mapping[str, Tensor], architecture: Architecture
) -> dict[str, Any]:
    """Makes config.json from the metadata, and from what the tensors alone say.

    Args:
        entries: The metadata.
        tensors: The tensors by their names in the file. Only factors of rotary frequencies are read.
        architecture: The family.

    Raises:
        ConfigError: A key is missing, of a wrong type, or asks for something that the family does not have.
        MalformedFileError: A tensor is missing or has another shape than the keys say.
    """
    config: dict[str, Any] = {
        "architectures": [architecture.classes[0]],
        "model_type": architecture.name,
        "hidden_act": architecture.hidden_act,
        "vocab_size": _tensor(tensors, "token_embd.weight", entries).shape[0],
    }
    keys = {key.removesuffix("?") for key in architecture.gguf.keys}
    needed = _NEEDED | (_EXPERTS if "expert_count" in keys else {})
    config |= {key: entries.need(template) for key, template in needed.items()}
    found = {key: entries.integer(template) for key, template in _OPTIONAL.items()}
    config |= {key: value for key, value in found.items() if value is not None}
    if entries.integer(Keys.Attention.VALUE_LENGTH) not in {None, _head_dim(config)}:
        raise entries.error(Keys.Attention.VALUE_LENGTH, "is not the size of a key")
    template = next(f"{{arch}}.{key}" for key in _EPSILONS if key in keys)
    if (epsilon := entries.number(template)) is None:
        raise entries.error(template, "missing")
    config[architecture.epsilon] = epsilon
    config["tie_word_embeddings"] = "output.weight" not in tensors
    if architecture.windowed:
        # The runtime takes 0 for "all positions".
        window = entries.integer(Keys.Attention.SLIDING_WINDOW) or supplied_window(entries, config)
        config["sliding_window"] = window or None
    config |= _bias_keys(architecture, tensors)
    return config | _rope(entries, tensors, config, architecture)


def _bias_keys(architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, bool]:
    """The keys that announce biases, as the tensors of the first layer have them."""
    stored = (parse_name(name, architecture) for name in tensors)
    present = {s.roles[0] for s in stored if s is not None and s.part == "bias" and s.layer in {None, 0}}
    return {key: bool(present & {*roles}) for key, roles in architecture.bias_keys.items()}


def generation_config(entries: Entries) -> dict[str, Any]:
    """The sampling settings, under the keys of generation_config.json; some may be 0 or -1, for none."""
    integers, numbers = _SAMPLING_INTEGERS.items(), _SAMPLING_NUMBERS.items()
    found: dict[str, Any] = {key: entries.integer(k, least=-(1 << 31)) for key, k in integers}
    found |= {key: entries.any_number(k) for key, k in numbers}
    return {key: value for key, value in found.items() if value is not None}


def _tensor(tensors: Mapping[str, Tensor], name: str, entries: Entries) -> Tensor:
    if name not in tensors:
        raise MalformedFileError(
            "this tensor is missing", path=entries.path, at=f"tensor {name}", hint="download the file again"
        )
    return tensors[name]


# ---------------------------------------------------------------------------------------- rotary embeddings


def _rope(
    entries: Entries, tensors: Mapping[str, Tensor], config: Mapping[str, Any], architecture: Architecture
) -> dict[str, Any]:
    """The keys of the rotary embedding."""
    head_dim = _head_dim(config)
    rotated = entries.integer(Keys.Rope.DIMENSION_COUNT)
    rotated = head_dim if rotated is None else rotated
    if not 0 < rotated <= head_dim:
        message = f"rotates {rotated} of the {head_dim} dimensions of a head"
        raise entries.error(Keys.Rope.DIMENSION_COUNT, message)
    result: dict[str, Any] = {
        "rope_theta": entries.number(Keys.Rope.FREQ_BASE) or 10000.0,
        "partial_rotary_factor": _fraction(rotated, head_dim),
        "rope_scaling": _scaling(entries, architecture),
    }
    original = entries.integer(Keys.Rope.SCALING_ORIG_CTX_LEN)
    if original is not None or "rope.scaling.original_context_length" in architecture.gguf.keys:
        original = config["max_position_embeddings"] if original is None else original
        result[_ORIGINAL] = original
    factors = [name for name in tensors if name.startswith("rope_factors_")]
    mscale = entries.number(Keys.Rope.SCALING_ATTN_FACTOR)
    if factors:
        known = {**config, **result}
        result["rope_scaling"] = _longrope(entries, tensors, rotated, known, mscale, architecture)
    elif mscale not in {None, 1.0}:
        raise entries.error(Keys.Rope.SCALING_ATTN_FACTOR, f"is {mscale}, and there are no LongRoPE factors")
    elif LLAMA3_FACTORS in tensors:
        divisors = _factors(entries, tensors, LLAMA3_FACTORS, rotated // 2)
        result["rope_scaling"] = find_llama3(divisors, result["rope_theta"], rotated, entries)
    return result


def _scaling(entries: Entries, architecture: Architecture) -> dict[str, Any] | None:
    """``rope_scaling`` as far as keys say it, which is how positions are divided by a number."""
    kind, factor = entries.text(Keys.Rope.SCALING_TYPE), entries.number(Keys.Rope.SCALING_FACTOR)
    if kind == "linear" and "rope.scaling.factor" in architecture.gguf.keys:
        return {"rope_type": "linear", "factor": factor or 1.0}
    if kind not in {None, "none", "longrope"} or factor not in {None, 1.0}:
        raise entries.error(Keys.Rope.SCALING_TYPE, "only longrope is supported, not other ways of scaling")
    return None


def _head_dim(config: Mapping[str, Any]) -> int:
    size: int = config.get("head_dim") or config["hidden_size"] // max(config["num_attention_heads"], 1)
    return size


def _fraction(rotated: int, head_dim: int) -> float:
    """The ``partial_rotary_factor`` for which ``int(head_dim * factor)`` is ``rotated``."""
    factor = rotated / head_dim
    return factor if int(head_dim * factor) == rotated else math.nextafter(factor, 2)


def _longrope(
    entries: Entries,
    tensors: Mapping[str, Tensor],
    rotated: int,
    config: Mapping[str, Any],
    mscale: float | None,
    architecture: Architecture,
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "long_factor": _factors(entries, tensors, "rope_factors_long.weight", rotated // 2),
        "short_factor": _factors(entries, tensors, "rope_factors_short.weight", rotated // 2),
        "type": "longrope",
    }
    mscale = 1.0 if mscale is None else mscale  # the runtime's default
    if architecture.mscales:
        factors = {"long_mscale": mscale, "short_mscale": mscale}
        return result | factors | {_ORIGINAL: config[_ORIGINAL]}
    context, original = config["max_position_embeddings"], config[_ORIGINAL]
    # The formula's own value is left to the formula: config.json does not have it, and float32 rounds it.
    if original > 1 and shortest(Rope.longrope_mscale(context / original, original)) == mscale:
        return result
    return result | {"attention_factor": mscale}


def _factors(entries: Entries, tensors: Mapping[str, Tensor], name: str, count: int) -> list[float]:
    """One list of divisors of frequencies."""
    tensor = _tensor(tensors, name, entries)
    if tensor.shape != (count,) or count > _MOST_FACTORS:
        message = f"has shape {list(tensor.shape)}, but half of the rotated dimensions are {count}"
        raise ConfigError(message, path=entries.path, at=f"tensor {name}")
    stored = tensor.read(0, count)
    if not isinstance(tensor.encoding, FloatEncoding) or not isinstance(stored, np.ndarray):
        message = f"is stored as {tensor.encoding.name}, where F32 is expected"
        raise MalformedFileError(message, path=entries.path, at=f"tensor {name}")
    values = stored.astype(np.float32).reshape(-1)
    if not (np.isfinite(values) & (values > 0)).all():
        raise MalformedFileError("a divisor is not positive", path=entries.path, at=f"tensor {name}")
    return [shortest(value) for value in values.tolist()]
