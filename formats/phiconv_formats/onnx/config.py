"""genai_config.json: what ONNX Runtime GenAI has to know of a model, and what it cannot run.

Facts from ONNX Runtime GenAI 0.18. It looks tokenizers and chat templates up in the files beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiconv.errors import UnsupportedModelError
from phiconv_formats.onnx.names import rotates_inside
from phiconv_formats.onnx.rotary import has_two_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.ir.model import Hyperparameters, Model
    from phiconv_formats.onnx.targets import Target

__all__ = ["check_model", "make_config", "runtime_notes"]

# Tokens by whose ids the runtime finds calls of tools and thoughts in an answer.
_MARKS = {
    "bot_token_id": ("<tool_call>", "<|tool_call|>"),
    "eot_token_id": ("</tool_call>", "<|/tool_call|>"),
    "bor_token_id": ("<think>",),
    "eor_token_id": ("</think>",),
}

# Settings of a search with the values that GenAI takes where generation_config.json has none.
_SAMPLING = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}

_SWITCH = 4096
"""The original context that GenAI's LongRoPE takes every model of type phi3 and phimoe to have."""


def make_config(
    model: Model, graph: str, target: Target, session: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The object of genai_config.json.

    Args:
        model: The model.
        graph: File name of the ONNX model.
        target: What it is for.
        session: Entries of ONNX Runtime's session configuration.
    """
    hp = model.hyperparameters
    assert hp is not None  # noqa: S101 - output_tensors has looked
    generation = model.card.generation
    sampling = {key: _number(generation.get(key), default) for key, default in _SAMPLING.items()}
    return {
        "model": {
            **_token_ids(model),
            "context_length": hp.max_position_embeddings,
            "decoder": _decoder(hp, graph, target, session or {}),
            "type": model.architecture,
            "vocab_size": hp.vocab_size,
        },
        "search": {
            "diversity_penalty": 0.0,
            "do_sample": sampling["do_sample"],
            "early_stopping": True,
            "length_penalty": 1.0,
            "max_length": hp.max_position_embeddings,
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": sampling["temperature"],
            "top_k": sampling["top_k"],
            "top_p": sampling["top_p"],
        },
    }


def _number(value: Any, default: float) -> Any:
    """A setting as a file has it, or the default where it is missing or of another type."""
    kinds = {bool: (bool,), int: (int,), float: (int, float)}[type(default)]
    return value if type(value) in kinds else default


def _decoder(hp: Hyperparameters, graph: str, target: Target, session: Mapping[str, str]) -> dict[str, Any]:
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    if not (target.rotates and rotates_inside(hp.rope, hp.head_dim)):
        inputs["position_ids"] = "position_ids"
    return {
        "session_options": {
            "log_id": "onnxruntime-genai",
            "provider_options": [target.provider] if target.provider else [],
            **session,
        },
        "filename": graph,
        "head_size": hp.head_dim,
        "hidden_size": hp.hidden_size,
        "inputs": inputs,
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": hp.num_attention_heads,
        "num_hidden_layers": hp.num_hidden_layers,
        "num_key_value_heads": hp.num_key_value_heads,
    }


def _token_ids(model: Model) -> dict[str, Any]:
    """The ids of special tokens: as generation_config.json says, else config.json, else the tokenizer."""
    tokenizer = model.tokenizer
    special = tokenizer.special_ids if tokenizer is not None else {}

    def find(name: str) -> list[int]:
        key = f"{name}_token_id"
        for place in (model.card.generation, model.card.config):
            value = place.get(key)
            ids = [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
            if ids:
                return ids
        return [special[name]] if name in special else []

    ends = list(dict.fromkeys(find("eos")))
    own = special.get("eos")
    if own is not None and own not in ends:
        ends.insert(0, own)
    first = (ends or [0])[0]
    result: dict[str, Any] = {
        "bos_token_id": (find("bos") or [1])[0],
        "eos_token_id": ends if len(ends) > 1 else first,
        "pad_token_id": (find("pad") or [first])[0],
    }
    texts = {text: i for i, text in enumerate(tokenizer.tokens)} if tokenizer is not None else {}
    for key, marks in _MARKS.items():
        found = next((texts[mark] for mark in marks if mark in texts), None)
        if found is not None:
            result[key] = found
    return result


def check_model(model: Model, target: Target) -> None:
    """Refuses what ONNX Runtime's operators cannot compute.

    Raises:
        UnsupportedModelError: A shape that its attention does not take, or experts on another target.
    """
    hp = model.hyperparameters
    assert hp is not None  # noqa: S101 - output_tensors has looked
    if hp.experts is not None and not target.experts:
        raise UnsupportedModelError(
            "a mixture of experts is supported on processors only", path=model.path, hint="give --target cpu"
        )
    if hp.head_dim % 8:
        raise UnsupportedModelError(
            f"ONNX Runtime's attention takes heads of a multiple of 8 dimensions, not of {hp.head_dim}",
            path=model.path,
            hint="choose another format",
        )


def runtime_notes(model: Model) -> list[str]:
    """What ONNX Runtime GenAI (0.18) is known to do wrong with this model, whoever writes the folder."""
    hp = model.hyperparameters
    assert hp is not None  # noqa: S101 - output_tensors has looked
    original = hp.rope.original_context
    if not has_two_tables(hp.rope, hp.max_position_embeddings):
        return []
    if model.senses is not None:  # it does so only for types of text alone
        note = (
            f"ONNX Runtime GenAI does not take up a text again at the {original + 1}th token of a model that "
            "sees, when the long rotary factors begin: an answer that crosses that point is off, see "
            "--long-context"
        )
        return [note]
    if original == _SWITCH:
        return []
    note = (
        f"ONNX Runtime GenAI takes up a text again at its {_SWITCH + 1}th token, when the long rotary "
        f"factors begin for most models; here they begin after {original}: an answer that crosses that "
        "point is off"
    )
    return [note]
